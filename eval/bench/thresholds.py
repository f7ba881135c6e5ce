"""Thresholds of a recogniser at given false match rates, and those of identity codes.

    python eval/bench/thresholds.py SRC [--densenet FILE]

SRC holds a folder per person. At most five pictures of each are embedded; the distance below which
a share FMR of the non-mated pairs falls is the threshold. TMR is the share of mated pairs below it.
A template is the mean embedding of a person's pictures.
The last table does the same for the cosine of identity codes (embeddings centred by the bundled
prior), which is what `identities.LIMIT` speaks of.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from anonymize.detectors import MTCNN, by_subject
from anonymize.embedders import DenseNetEmbedder, DlibEmbedder, chip
from anonymize.generators import Inpaint
from anonymize.images import read
from anonymize.record import Floats, Pixels

RATES = (5e-2, 1e-2, 1e-3, 1e-4)


def table(title: str, apart: Floats, mated: np.ndarray) -> None:
    """Prints thresholds for scores of which smaller means more alike."""
    print(f"{title}: {mated.sum()} mated and {(~mated).sum()} non-mated pairs")
    for rate in RATES:
        limit = np.quantile(apart[~mated], rate)
        print(f"  FMR {rate:g}: {limit:.4f}  TMR {(apart[mated] < limit).mean():.4f}")


def template(name: str, found: Floats, people: np.ndarray) -> None:
    """Prints thresholds for the distance of a face to the mean of a person's others."""
    rows = np.arange(len(people))
    distances, mated = [], []
    for person in np.unique(people):
        own = people == person
        distances.append(np.linalg.norm(found - found[own].mean(0), axis=1)[~own])
        mated.append(np.zeros((~own).sum(), bool))
        for row in rows[own] if own.sum() > 1 else ():
            rest = found[own & (rows != row)].mean(0)
            distances.append(np.linalg.norm(found[row] - rest, keepdims=True))
            mated.append(np.ones(1, bool))
    table(f"{name}, distance to a template", np.concatenate(distances), np.concatenate(mated))


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("--densenet", help="dlib's face_recognition_densenet_model_v1.dat[.bz2]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = MTCNN()
    folders = sorted(path for path in args.src.iterdir() if path.is_dir())
    paths = [path for folder in folders for path in sorted(folder.glob("*.jpg"))[:5]]

    def cut(path: Path) -> Pixels | None:
        image = read(path)
        found = detector([image])[0]
        return chip(image, by_subject(found, image.shape[:2])[0].landmarks) if found else None

    with ThreadPoolExecutor() as pool:
        chips = list(pool.map(cut, paths))
    people = np.array([p.parent.name for p, c in zip(paths, chips, strict=True) if c is not None])
    kept = [c for c in chips if c is not None]
    pairs = np.triu_indices(len(people), 1)
    mated = people[pairs[0]] == people[pairs[1]]
    embedders = [DlibEmbedder()]
    if args.densenet:
        embedders.append(DenseNetEmbedder(args.densenet))  # type: ignore[arg-type]
    for embedder in embedders:
        with ThreadPoolExecutor() as pool:
            found = np.concatenate(list(pool.map(embedder, [[c] for c in kept])))
        gram = found.astype(np.float64) @ found.T
        square = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
        table(f"{embedder.name}, distance", np.sqrt(np.maximum(square, 0))[pairs], mated)
        template(embedder.name, found, people)
        if embedder.name == "dlib":
            codes = Inpaint().prior.code(torch.from_numpy(found)).detach().numpy()
            table("identity codes, minus cosine", -(codes @ codes.T)[pairs], mated)


if __name__ == "__main__":
    main()
