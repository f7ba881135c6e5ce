"""The metadata join: matching outputs to originals without looking at a single pixel."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
from anonymize.eval.risk import Search
from anonymize.eval.stats import Array
from anonymize.eval.trial import Shots, Trial
from PIL import Image

from anonymize.record import Floats


def join(trial: Trial) -> list[Search]:
    """Metadata: names, order, sizes, bytes, dates, EXIF, and how many pictures a label has.

    The attacker has the list of the original files, such as the ones that circulate with
    withdrawn datasets, and joins it with the release's listing. A release in which this finds
    anyone was not anonymised, whatever its faces look like.
    """
    rows = np.nonzero(~trial.attacker[trial.o.people])[0]
    outputs = np.nonzero(~trial.attacker[trial.a.people])[0]
    people = np.unique(trial.o.people[rows])
    joins = {
        "name": _names,
        "order": _order,
        "size": _size,
        "bytes": _bytes,
        "date": _date,
        "exif": _exif,
        "count": _count,
    }
    searches = []
    for variant, compare in joins.items():
        pictures = compare(trial, outputs, rows)
        scores = [pictures[:, trial.o.people[rows] == person].max(1) for person in people]
        searches.append(
            Search(
                "metadata-join",
                variant,
                "metadata",
                np.stack(scores, 1).astype(np.float32),
                np.searchsorted(people, trial.a.people[outputs]),
                trial.a.people[outputs],
                np.zeros(0, np.float32),
                np.zeros((0, len(people)), np.float32),
                np.zeros(len(people), np.int64),
            )
        )
    return searches


def _words(path: str) -> set[str]:
    """The parts of a path that could name someone: folders, the stem, and the words in them.

    In any script; numbers without their leading zeros.
    """
    *folders, stem = path.rsplit(".", 1)[0].casefold().split("/")
    words = {word for word in re.split(r"[\W_]+", stem) if len(word) > 2}
    words |= {word for folder in folders for word in re.split(r"[\W_]+", folder) if word}
    return {word.lstrip("0") or word for word in words | {*folders, stem}}


def _names(trial: Trial, outputs: Array, rows: Array) -> Floats:
    left = [_words(trial.a.paths[i]) for i in outputs]
    right = [_words(trial.o.paths[i]) for i in rows]
    return np.array([[len(a & b) for b in right] for a in left], np.float32)


def _near(left: Array, right: Array) -> Floats:
    """The nearer, the better: (M,) and (N,) numbers to (M, N) scores."""
    return -np.abs(left[:, None].astype(np.float64) - right[None]).astype(np.float32)


def _order(trial: Trial, outputs: Array, rows: Array) -> Floats:
    """Where each file stands in its side's sorted listing, 0..1."""
    return _near(_place(trial.a, outputs), _place(trial.o, rows))


def _place(shots: Shots, chosen: Array) -> Array:
    paths = [shots.paths[i] for i in chosen]
    listing = {path: index for index, path in enumerate(sorted(paths))}
    return np.array([listing[path] for path in paths]) / max(1, len(paths) - 1)


def _size(trial: Trial, outputs: Array, rows: Array) -> Floats:
    apart = np.abs(trial.a.sizes[outputs][:, None] - trial.o.sizes[rows][None]).sum(2)
    return np.asarray(-apart, np.float32)


def _bytes(trial: Trial, outputs: Array, rows: Array) -> Floats:
    return _near(*_ranks(trial, outputs, rows, lambda path: path.stat().st_size))


def _date(trial: Trial, outputs: Array, rows: Array) -> Floats:
    return _near(*_ranks(trial, outputs, rows, lambda path: path.stat().st_mtime_ns))


def _ranks(trial: Trial, outputs: Array, rows: Array, of: object) -> tuple[Array, Array]:
    """Where each file stands among those of its own side, 0..1; equal values share a place."""
    from scipy.stats import rankdata

    assert callable(of)
    sides = []
    for shots, chosen in ((trial.a, outputs), (trial.o, rows)):
        values = [of(shots.folder / shots.paths[i]) for i in chosen]
        sides.append((rankdata(values) - 1) / max(1, len(values) - 1))
    return sides[0], sides[1]


def _count(trial: Trial, outputs: Array, rows: Array) -> Floats:
    """How many pictures share the picture's folder."""
    sides = []
    for shots, chosen in ((trial.a, outputs), (trial.o, rows)):
        folders = [str(Path(shots.paths[i]).parent) for i in chosen]
        counts = Counter(folders)
        sides.append(np.array([counts[folder] for folder in folders]))
    return _near(sides[0], sides[1])


def _exif(trial: Trial, outputs: Array, rows: Array) -> Floats:
    left, right = (_tags(s, r) for s, r in ((trial.a, outputs), (trial.o, rows)))
    return np.array([[len(a & b) for b in right] for a in left], np.float32)


def _tags(shots: Shots, rows: Array) -> list[set[str]]:
    return [_read_tags(shots.folder / shots.paths[row]) for row in rows]


def _read_tags(path: Path) -> set[str]:
    try:
        opened = Image.open(path)
    except (OSError, ValueError):
        return set()
    with opened as picture:
        tags = {f"{tag}={value}" for tag, value in picture.getexif().items()}
        texts = {k: v for k, v in picture.info.items() if isinstance(v, str | bytes)}
        return tags | {f"{name}={value!r}" for name, value in texts.items()}
