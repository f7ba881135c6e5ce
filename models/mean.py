"""Writes the mean of two exported generators of the same networks.

    python models/mean.py A B OUT [--share 0.5]

The way in a straight line from the weights that a training began with to those it ended with often
holds better ones than either end (Wortsman et al., Robust fine-tuning, 2022): what was learnt last
is there already, and what was there before not yet lost. All but the U-Net and the adapter is A's.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from anonymize.generators import write_sums

WEIGHTS = (
    "unet/diffusion_pytorch_model.safetensors",
    "adapter/diffusion_pytorch_model.safetensors",
)


def mean(first: Path, second: Path, out: Path, share: float) -> None:
    """Writes `out`: weights that lie a `share` of the way from the first folder's to the second's.

    Raises:
        FileExistsError: `out` is there.
        KeyError, RuntimeError: the networks differ.
    """
    shutil.copytree(first, out)
    for name in WEIGHTS:
        other = load_file(second / name)
        mixed = {
            key: value.float().lerp(other[key].float(), share).to(value.dtype)
            for key, value in load_file(first / name).items()
        }
        save_file(mixed, out / name, metadata={"format": "pt"})
    write_sums(out)


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("first", metavar="A", type=Path)
    parser.add_argument("second", metavar="B", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of B")
    given = parser.parse_args()
    if not 0 <= given.share <= 1:
        parser.error(f"--share: got {given.share}, expected 0 to 1")
    if given.out.exists():
        parser.error(f"{given.out} exists: choose another folder")
    mean(given.first, given.second, given.out, given.share)


if __name__ == "__main__":
    main()
