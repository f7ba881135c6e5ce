"""Naive re-identification of releases: who is this, by a recogniser off the shelf?

    python eval/bench/reidentify.py SRC DST [DST ...] [--densenet FILE]

SRC holds a folder per person, each DST is an unsealed release of it. Gallery: the originals, less
the one that the probe was made from. Probe: each output. Rows are embedders x releases:

* rank-1: share of probes whose nearest original is of the right person (chance: 1 / people)
* centred: rank-1 of an attacker who takes each side's mean embedding away, which undoes what all
  outputs have in common, such as a grey region
* TAR@1e-3: share of mated (output, other original) pairs below the distance that 0.1 % of
  non-mated pairs of originals fall below
* same-key rank-1: share of outputs whose nearest other output is of the same person
* same-key TAR@1e-3: share of mated pairs of outputs below the distance that 0.1 % of non-mated
  pairs of outputs fall below
* collisions: share of pairs of outputs of different people below the distance that 0.1 % of
  non-mated pairs of originals fall below

The first row of each embedder has the originals as probes. A release made by `mask` is the floor
that the context alone gives: no face can be found in it, so the originals' landmarks are used.
Intervals are 95 % bootstraps over people.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anonymize.detectors import MTCNN, by_subject
from anonymize.embedders import DenseNetEmbedder, DlibEmbedder, Embedder, chip
from anonymize.images import read
from anonymize.record import Floats, Pixels
from anonymize.state import read_links


@dataclass(frozen=True, slots=True)
class Pictures:
    """Chips of pictures, None where no face was found; with their people's numbers and sources."""

    chips: list[Pixels | None]
    people: np.ndarray
    sources: list[str]


def landmarks(image: Pixels, detector: MTCNN) -> Floats | None:
    """Those of the subject's face."""
    found = detector([image])[0]
    return by_subject(found, image.shape[:2])[0].landmarks if found else None


def collect(
    folder: Path, paths: Sequence[str], sources: Sequence[str], given: dict[str, Floats | None]
) -> Pictures:
    """Chips of `paths` below `folder`; `given` landmarks by source win over detected ones."""
    detector = MTCNN()
    names = sorted({str(Path(source).parent) for source in sources})

    def one(path: str, source: str) -> Pixels | None:
        image = read(folder / path)
        marks = given[source] if source in given else landmarks(image, detector)
        return None if marks is None else chip(image, marks)

    with ThreadPoolExecutor() as pool:
        chips = list(pool.map(one, paths, sources))
    people = np.array([names.index(str(Path(source).parent)) for source in sources])
    return Pictures(chips, people, list(sources))


def embed(pictures: Pictures, embedder: Embedder) -> Floats:
    """(N, D); rows of pictures without a face are infinitely far from everything."""

    def one(c: Pixels | None) -> Floats:
        return np.full(128, np.inf, np.float32) if c is None else embedder([c])[0]

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(one, pictures.chips)))


def distances(a: Floats, b: Floats) -> Floats:
    """(N, M) Euclidean distances; infinite for rows without a face."""
    finite_a, finite_b = np.nan_to_num(a, posinf=0), np.nan_to_num(b, posinf=0)
    square = (finite_a**2).sum(1)[:, None] + (finite_b**2).sum(1) - 2 * finite_a @ finite_b.T
    square[np.isinf(a).any(1)] = np.inf
    square[:, np.isinf(b).any(1)] = np.inf
    return np.sqrt(np.maximum(square, 0)).astype(np.float32)


def centred(a: Floats) -> Floats:
    """(N, D) unit vectors of what is left without the mean; rows without a face stay infinite."""
    seen = np.isfinite(a).all(1)
    left = a - (a[seen].mean(0) if seen.any() else 0)
    left[seen] /= np.maximum(np.linalg.norm(left[seen], axis=1, keepdims=True), 1e-9)
    return np.asarray(left, np.float32)


def interval(values: np.ndarray, people: np.ndarray) -> tuple[float, float, float]:
    """Mean with a 95 % bootstrap interval that resamples people."""
    groups = [values[people == person] for person in np.unique(people)]
    sums, sizes = np.array([g.sum() for g in groups]), np.array([len(g) for g in groups])
    draws = np.random.default_rng(0).integers(len(groups), size=(2000, len(groups)))
    means = sums[draws].sum(1) / sizes[draws].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def rank1(apart: Floats, probes: Pictures, gallery: Pictures) -> tuple[float, float, float]:
    """Share of probes whose nearest gallery picture is of the same person."""
    apart = _without_own(apart, probes, gallery)
    hits = gallery.people[apart.argmin(1)] == probes.people
    return interval(hits & np.isfinite(apart.min(1)), probes.people)


def tar(
    apart: Floats, limit: float, probes: Pictures, gallery: Pictures
) -> tuple[float, float, float]:
    """Share of mated pairs below `limit`."""
    own = np.array(probes.sources)[:, None] == np.array(gallery.sources)
    mated = (probes.people[:, None] == gallery.people) & ~own
    rows = np.nonzero(mated)[0]
    return interval(apart[mated] < limit, probes.people[rows])


def _without_own(apart: Floats, probes: Pictures, gallery: Pictures) -> Floats:
    own = np.array(probes.sources)[:, None] == np.array(gallery.sources)
    return np.where(own, np.inf, apart).astype(np.float32)


def measure(
    originals: Pictures, releases: dict[str, Pictures], embedder: Embedder
) -> list[dict[str, object]]:
    """One row for the originals and one for each release."""
    gallery = embed(originals, embedder)
    apart = distances(gallery, gallery)
    others = apart[originals.people[:, None] != originals.people]
    limit = float(np.quantile(others, 1e-3))
    rows = []
    for name, probes in {"originals": originals, **releases}.items():
        seen = embed(probes, embedder)
        across, among = distances(seen, gallery), distances(seen, seen)
        different = probes.people[:, None] != probes.people
        strangers, whose = among[different], probes.people[np.nonzero(different)[0]]
        rows.append(
            {
                "embedder": embedder.name,
                "probes": name,
                "found": float(np.mean([c is not None for c in probes.chips])),
                "rank1": rank1(across, probes, originals),
                "centred": rank1(distances(centred(seen), centred(gallery)), probes, originals),
                "tar": tar(across, limit, probes, originals),
                "same_key_rank1": rank1(among, probes, probes),
                "same_key_tar": tar(among, float(np.quantile(strangers, 1e-3)), probes, probes),
                "collisions": interval(strangers < limit, whose),
            }
        )
    return rows


def show(rows: list[dict[str, object]], line: Callable[[str], None] = print) -> None:
    """Prints the rows as a Markdown table, per cent with intervals."""
    titles = "rank-1 | centred | TAR@1e-3 | same-key rank-1 | same-key TAR@1e-3 | collisions"
    line(f"| embedder | probes | face found | {titles} |")
    line("|" + 9 * "---|")
    for row in rows:
        cells = [str(row["embedder"]), str(row["probes"]), f"{100 * float(str(row['found'])):.1f}"]
        for name in ("rank1", "centred", "tar", "same_key_rank1", "same_key_tar", "collisions"):
            mean, low, high = row[name]  # type: ignore[misc]
            cells.append(f"{100 * mean:.2f} ({100 * low:.2f} to {100 * high:.2f})")
        line("| " + " | ".join(cells) + " |")


def main() -> None:
    """Reads the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("src", type=Path)
    parser.add_argument("dst", type=Path, nargs="+")
    parser.add_argument("--densenet", help="dlib's face_recognition_densenet_model_v1.dat[.bz2]")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    releases, sources = {}, list[str]()
    for release in args.dst:
        pairs = read_links(release)
        generator = json.loads((release / "run.json").read_text())["recipe"]["generator"]
        sources = sorted({*sources, *(source for source, _ in pairs)})
        releases[release] = (generator, pairs)
    detector = MTCNN()
    with ThreadPoolExecutor() as pool:
        marks = list(pool.map(lambda s: landmarks(read(args.src / s), detector), sources))
    known = dict(zip(sources, marks, strict=True))
    originals = collect(args.src, sources, sources, known)
    probes = {
        f"{release.name} ({generator})": collect(
            release,
            [o for _, o in pairs],
            [s for s, _ in pairs],
            known if generator == "mask" else {},
        )
        for release, (generator, pairs) in releases.items()
    }
    embedders: list[Embedder] = [DlibEmbedder()]
    if args.densenet:
        embedders.append(DenseNetEmbedder(args.densenet))
    rows = [row for embedder in embedders for row in measure(originals, probes, embedder)]
    print(json.dumps(rows)) if args.json else show(rows)


if __name__ == "__main__":
    main()
