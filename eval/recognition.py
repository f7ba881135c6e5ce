"""What a face recogniser says of a dataset's labels, and of how easily its people are found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
from anonymize.eval.stats import Array, Estimate, hits, share

from anonymize.detectors import Detector, by_subject
from anonymize.embedders import Embedder, chip
from anonymize.record import Floats, Pixels

EACH = 20
"""Pictures of one person in a sample: more say little of labels and leave less for others."""

LEAST_OTHERS = 2
"""Further pictures of a person that a suspicion needs: of two, either may be the wrong one."""

LEAST_PEOPLE = 8
"""People below whom a rate of identification is not given."""

BATCH = 256

T = TypeVar("T")
U = TypeVar("U")


def each(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Results in order, computed in threads a batch at a time: memory does not grow with items."""
    source = iter(items)
    with ThreadPoolExecutor() as pool:
        while batch := list(islice(source, BATCH)):
            yield from pool.map(work, batch)


@dataclass(frozen=True, slots=True)
class Faces:
    """Sampled pictures: their numbers (N,), people (N,) and embeddings (N, D); NaN without face."""

    numbers: Array
    people: Array
    vectors: Floats

    @property
    def found(self) -> Array:
        """(N,) bool, whether a face was found."""
        return np.isfinite(self.vectors[:, 0])


def sample(people: Array, usable: Array, limit: int | None, seed: int) -> Array:
    """Numbers of the pictures that the recogniser is to see, rising.

    Whole people are drawn, at most `EACH` pictures of each, because one picture of somebody says
    nothing of labels; with no limit, all pictures of everybody who has two.

    Args:
        people: (N,) whose picture each is, -1 where nobody says.
        usable: (N,) bool, readable and no copy of another one.
        limit: most pictures.
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(usable & (people >= 0))
    order = rows[np.argsort(people[rows], kind="stable")]
    crowd = np.split(order, np.flatnonzero(np.diff(people[order])) + 1)
    able = [mine for mine in crowd if len(mine) > 1]
    left = len(people) if limit is None else limit
    most = len(people) if limit is None else EACH
    chosen: list[int] = []
    for index in rng.permutation(len(able)):
        mine = rng.permutation(able[index])[: min(most, left - len(chosen))]
        if len(mine) < 2:
            break
        chosen += mine.tolist()
    return np.array(sorted(chosen), np.int64)


def embedding(image: Pixels, detector: Detector, embedder: Embedder, size: int = 128) -> Floats:
    """(size,) embedding of the subject's face; NaN where no face is found."""
    faces = detector([image])[0]
    if not faces:
        return np.full(size, np.nan, np.float32)
    subject = by_subject(faces, image.shape[:2])[0]
    return np.asarray(embedder([chip(image, subject.landmarks)])[0])


@dataclass(frozen=True, slots=True)
class Suspect:
    """A picture that does not look like its person: rows of `Faces`, Euclidean distances.

    Attributes:
        row: of the picture.
        own: median distance to its person's other pictures.
        other: the person that it looks most like.
        distance: median distance to that one's pictures.
    """

    row: int
    own: float
    other: int
    distance: float


def mislabelled(faces: Faces, threshold: float) -> list[Suspect]:
    """Pictures farther from their own person than the recogniser allows, and nearer to another.

    The median is the lower one, so that of three pictures the two that agree acquit each other.

    Args:
        faces: the sample.
        threshold: distance up to which two faces count as one person's.
    """
    rows = np.flatnonzero(faces.found)
    suspects = [
        (row, own)
        for person in np.unique(faces.people[rows])
        for row, own in _outliers(rows[faces.people[rows] == person], faces.vectors, threshold)
    ]
    found = []
    for row, own in suspects:
        gaps = np.linalg.norm(faces.vectors[rows] - faces.vectors[row], axis=1)
        other, distance = _nearest(gaps, faces.people[rows], int(faces.people[row]))
        if distance < own:
            found.append(Suspect(int(row), own, other, distance))
    return sorted(found, key=lambda suspect: suspect.distance - suspect.own)


def _outliers(mine: Array, vectors: Floats, threshold: float) -> Iterator[tuple[int, float]]:
    if len(mine) <= LEAST_OTHERS:
        return
    for row in mine.tolist():
        others = vectors[mine[mine != row]]
        own = _median(np.linalg.norm(others - vectors[row], axis=1))
        if own > threshold:
            yield row, own


def _nearest(gaps: Array, people: Array, own: int) -> tuple[int, float]:
    """The other person whose median distance is least; nobody is infinitely far."""
    best, least = -1, float("inf")
    for person in np.unique(people[people != own]).tolist():
        distance = _median(gaps[people == person])
        if distance < least:
            best, least = person, distance
    return best, least


def _median(values: Array) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])


@dataclass(frozen=True, slots=True)
class Found:
    """How often one picture of a person finds others of that person among everybody's."""

    rank1: Estimate
    matched: Estimate
    people: int
    probes: int


def identified(faces: Faces, threshold: float, seed: int) -> Found | None:
    """Searches half of each person's pictures among the other half of everybody's.

    A picture without a face is a probe that finds nobody. Intervals resample people.

    Args:
        faces: the sample.
        threshold: distance up to which two faces count as one person's.
        seed: of the split and of the intervals.

    Returns:
        None where fewer than `LEAST_PEOPLE` can be searched for.
    """
    gallery, probes = _split(faces, seed)
    enrolled = np.unique(faces.people[gallery])
    if len(enrolled) < LEAST_PEOPLE or not len(probes):
        return None
    gallery = gallery[np.argsort(faces.people[gallery], kind="stable")]
    starts = np.searchsorted(faces.people[gallery], enrolled)
    own = np.searchsorted(enrolled, faces.people[probes])
    rank1, matched = [], []
    for start in range(0, len(probes), BATCH):
        part, mine = probes[start : start + BATCH], own[start : start + BATCH]
        scores = _scores(faces.vectors[part], faces.vectors[gallery], starts)
        rank1.append(hits(scores, mine))
        matched.append(-scores[np.arange(len(part)), mine] <= threshold)
    people = faces.people[probes]
    return Found(
        share(np.concatenate(rank1), people, seed),
        share(np.concatenate(matched), people, seed),
        len(enrolled),
        len(probes),
    )


def _scores(probes: Floats, gallery: Floats, starts: Sequence[int] | Array) -> Array:
    """(P, K) negative distance of each probe to the nearest picture of each enrolled person."""
    squares = (probes**2).sum(1)[:, None] + (gallery**2).sum(1)[None] - 2 * probes @ gallery.T
    gaps = np.sqrt(np.maximum(squares, 0))
    return np.nan_to_num(-np.minimum.reduceat(gaps, starts, axis=1), nan=-np.inf)


def _split(faces: Faces, seed: int) -> tuple[Array, Array]:
    """Rows that are enrolled, all with a face, and the others of the same people."""
    rng = np.random.default_rng(seed)
    gallery: list[int] = []
    probes: list[int] = []
    for person in np.unique(faces.people):
        mine = np.flatnonzero(faces.people == person)
        seen = rng.permutation(mine[faces.found[mine]])
        enrolled = seen[: max(1, len(mine) // 2)]
        if len(enrolled) and len(mine) > len(enrolled):
            gallery += enrolled.tolist()
            probes += sorted(set(mine.tolist()) - set(enrolled.tolist()))
    return np.array(gallery, np.int64), np.array(probes, np.int64)
