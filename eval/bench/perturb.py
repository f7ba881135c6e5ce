"""What perturbations are worth: recoded, blurred, by another recogniser, by one that learnt.

    python eval/bench/perturb.py SRC OUT --people 120 --images 3 --densenet FILE

OUT keeps the chosen originals, a release of each method, its copies and a report on each; what is
there already is not made again. FILE is a recogniser that the perturbations were not made against:
dlib's face_recognition_densenet_model_v1.dat or .dat.bz2. The key is fixed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from anonymize.eval.command import Request, carry_out
from anonymize.eval.report import read_report, spread

from anonymize.images import encode, read
from anonymize.recipe import Recipe
from anonymize.record import Pixels
from anonymize.run import run
from anonymize.state import read_links
from anonymize.sweep import take

BLUR = 1.5
"""Standard deviation in pixels of the blur that a reader may apply."""


def _blurred(image: Pixels) -> Pixels:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), BLUR), np.uint8)


COPIES: dict[str, Callable[[Pixels], bytes]] = {
    "JPEG 75": lambda image: encode(image, "jpg", 75),
    f"blur {BLUR}": lambda image: encode(_blurred(image), "jpg", 95),
}
"""What somebody who wants to get rid of a perturbation does first."""


def release(out: Path, method: str) -> Path:
    """The release of the originals by one method, made unless it is there."""
    folder = out / method.replace(":", "-")
    if not (folder / "run.json").is_file():
        key = hashlib.sha256(b"perturbations").digest()
        resume = folder.with_name(f"{folder.name}.private").is_dir()
        recipe = Recipe(generator=method)
        run(out / "originals", folder, recipe, key=key, workers=os.cpu_count() or 1, resume=resume)
    return folder


def copied(folder: Path, name: str) -> Path:
    """A copy of a release in which every picture went through one of `COPIES`."""
    target = folder.with_name(f"{folder.name} {name}")
    for _, output in read_links(folder):
        path = target / output
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(COPIES[name](read(folder / output)))
    return target


def attack(out: Path, folder: Path, links: dict[str, str], options: dict[str, Any]) -> Any:
    """The report on a folder of outputs, made unless it is there."""
    report = out / f"report {folder.name}"
    if not (report / "report.json").is_file():
        cache = out / "cache.private" / "embeddings.sqlite"
        request = Request(
            out / "originals", folder, report, links, utilities=["geometry"], cache=cache, **options
        )
        carry_out(request, tell=lambda part: print(f"{folder.name}: {part}", flush=True))
    return read_report(report)


def cells(report: Any, *attacks: str) -> list[str]:
    """Rank-1 of attacks by every recogniser of a report."""
    rows = [row for row in report["attacks"] if row["attack"] in attacks]
    return [
        " ".join(
            filter(None, (row["embedder"], row["attack"], row["variant"], spread(row["rank1"])))
        )
        for row in rows
    ]


def main() -> None:
    """Reads the arguments, makes what is missing, prints a line per copy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--people", type=int, default=120)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--densenet", help="file of a recogniser that was not in the ensemble")
    parser.add_argument("--method", action="append", help="default: perturb and perturb:pgd")
    parser.add_argument("--quick", action="store_true", help="without the attackers that learn")
    args = parser.parse_args()
    torch.set_num_threads(1)
    take(args.src, args.out / "originals", args.people, args.images)
    embedders = ["dlib"] + ([f"dlib-densenet:{args.densenet}"] if args.densenet else [])
    for method in args.method or ["perturb", "perturb:pgd"]:
        folder = release(args.out, method)
        links = dict(read_links(folder))
        first = ["oa"] if args.quick else ["oa", "semi-informed"]
        report = attack(args.out, folder, links, {"embedders": embedders, "attacks": first})
        print("| originals |", " | ".join(cells(report, "oo")), "|")
        print(f"| {method} |", " | ".join(cells(report, "oa", "semi-informed")), "|")
        for name in COPIES:
            naive = {"embedders": embedders, "attacks": ["oa"]}
            report = attack(args.out, copied(folder, name), links, naive)
            print(f"| {method}, {name} |", " | ".join(cells(report, "oa")), "|", flush=True)


if __name__ == "__main__":
    main()
