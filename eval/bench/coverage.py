"""Whether every face was replaced: looks for faces in outputs that still are the source's pixels.

    python eval/bench/coverage.py SRC DST

Two detectors search every output of an unsealed release. A face counts as left over when the pixels
between its eyes and mouth differ from the source's by less than recompression explains.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from anonymize.detectors import MTCNN, CenterFace
from anonymize.images import decode, encode, read
from anonymize.record import Face, Pixels
from anonymize.state import read_links


def changed(before: Pixels, after: Pixels, face: Face) -> bool:
    """Whether the inner face differs by more than JPEG at the same quality makes it differ."""
    low = np.maximum(face.landmarks.min(0).astype(int), 0)
    high = np.maximum(face.landmarks.max(0).astype(int) + 1, low + 1)
    part = (slice(low[1], high[1]), slice(low[0], high[0]))
    again = decode(encode(before))
    noise = np.abs(again[part].astype(int) - before[part]).mean()
    moved = np.abs(after[part].astype(int) - before[part]).mean()
    return bool(moved > 2 * noise + 1)


def main() -> None:
    """Reads the arguments, searches, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("dst", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs = read_links(args.dst)
    detectors = {"mtcnn": MTCNN(), "centerface": CenterFace()}

    def search(pair: tuple[str, str]) -> list[tuple[str, bool]]:
        before, after = read(args.src / pair[0]), read(args.dst / pair[1])
        return [
            (name, changed(before, after, face))
            for name, detector in detectors.items()
            for face in detector([after])[0]
        ]

    with ThreadPoolExecutor() as pool:
        found = [face for faces in pool.map(search, pairs) for face in faces]
    for name in detectors:
        mine = [new for detector, new in found if detector == name]
        print(f"{name}: {len(mine)} faces in {len(pairs)} outputs, {mine.count(False)} left over")


if __name__ == "__main__":
    main()
