"""A trial: originals and their anonymised versions, split, detected afresh and embedded.

It knows nothing of how the pictures were anonymised, so it serves any tool's output: two folders
and a table of links.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from anonymize.eval.cache import Cache, fingerprint
from anonymize.eval.links import Link
from anonymize.eval.stats import Array

from anonymize.detectors import MTCNN, Detector, by_subject
from anonymize.embedders import Embedder, chip
from anonymize.errors import ConfigError, Withhold
from anonymize.images import read
from anonymize.record import Floats, Pixels

Progress = Callable[[str, int, int], None]
"""Takes what is being done, how much is done, and out of how much."""


LEAST = 8
"""People who can be searched for, below whom an evaluation is refused."""

UNREADABLE = 64
"""Side of the grey picture that stands for one that cannot be read."""


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, slots=True, eq=False)
class Shots:
    """Pictures as an attacker sees them, one row each.

    Attributes:
        folder: what `paths` are relative to.
        paths: where they are.
        people: (N,) int, the person they truly show.
        links: (N,) int, the row of the other side's picture made of (or from) this one, or -1.
        digests: SHA-256 of each file.
        found: (N,) bool, whether a face was detected.
        landmarks: (N, 5, 2) of the subject; where no face was found, where it would be expected.
        boxes: (N, 4) of the subject, zeros where none was found.
        sizes: (N, 2) width and height.
        readable: (N,) bool.
    """

    folder: Path
    paths: list[str]
    people: Array
    links: Array
    digests: list[str]
    found: Array
    landmarks: Floats
    boxes: Floats
    sizes: Array
    readable: Array

    def image(self, row: int) -> Pixels:
        """One picture; grey where it cannot be read, which finds nobody."""
        try:
            return read(self.folder / self.paths[row])
        except Withhold:
            return np.full((UNREADABLE, UNREADABLE, 3), 128, np.uint8)

    def chip(self, row: int) -> Pixels:
        """The aligned (150, 150, 3) chip of one picture."""
        return chip(self.image(row), self.landmarks[row])


@dataclass(frozen=True, slots=True)
class Chosen:
    """Sources that take part, those of them that are enrolled, and the attacker's people."""

    sources: frozenset[str]
    enrolled: frozenset[str]
    attacker: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Originals O, anonymised pictures A, and who plays which part.

    Half of the people belong to the attacker, who may learn from their pairs of original and
    output; the evaluation's people are others. Of each person about half of the originals are
    enrolled in the gallery; probes are made of the rest, so no probe's own source is ever enrolled.

    Attributes:
        o, a: the two sides.
        attacker: (people,) bool, whose pairs the attacker knows.
        enrolled: (len(o.paths),) bool.
        names: of the people, private.
        seed: of every random choice of the evaluation.
    """

    o: Shots
    a: Shots
    attacker: Array
    enrolled: Array
    names: list[str]
    seed: int
    cache: Cache
    progress: Progress = silent
    _views: dict[str, View] = field(default_factory=dict)

    @property
    def chosen(self) -> Chosen:
        """Who plays which part, for another release of the same originals."""
        enrolled = {path for path, kept in zip(self.o.paths, self.enrolled, strict=True) if kept}
        mine = {name for name, known in zip(self.names, self.attacker, strict=True) if known}
        return Chosen(frozenset(self.o.paths), frozenset(enrolled), frozenset(mine))

    def view(self, embedder: Embedder) -> View:
        """Everything embedded by one recogniser."""
        known = label(embedder)
        if known not in self._views:
            shared = (self.cache, embedder, self.progress)
            o = embed(self.o, *shared, f"embed originals ({embedder.name})")
            a = embed(self.a, *shared, f"embed outputs ({embedder.name})")
            self._views[known] = View(self, embedder.name, o, a)
        return self._views[known]

    def rows(self, side: str, *, attacker: bool, enrolled: bool | None = None) -> Array:
        """Rows of `o` or `a` of the attacker's or the evaluation's people.

        Args:
            side: `o` or `a`.
            attacker: whose people.
            enrolled: only rows whose original is enrolled (True), is not (False), or all (None).
        """
        shots = self.o if side == "o" else self.a
        mask = self.attacker[shots.people] == attacker
        if enrolled is not None:
            state = self.enrolled if side == "o" else self.enrolled[shots.links]
            mask = mask & (state == enrolled)
        return np.nonzero(mask)[0]


@dataclass(frozen=True, eq=False)
class View:
    """A trial through the eyes of one recogniser: unit vectors whose dot product is the score.

    Attributes:
        trial: what was embedded.
        name: of the recogniser.
        raw_o, raw_a: (N, D), (M, D) embeddings as the recogniser gave them.
    """

    trial: Trial
    name: str
    raw_o: Floats
    raw_a: Floats

    @cached_property
    def centre(self) -> Floats:
        """(D,) mean of the attacker's originals: some recognisers' embeddings share a large one."""
        rows = self.trial.rows("o", attacker=True)
        return np.asarray(self.raw_o[rows][self.trial.o.found[rows]].mean(0))

    @cached_property
    def o(self) -> Floats:
        """(N, D) originals, centred and normalised."""
        return unit(self.raw_o - self.centre)

    @cached_property
    def a(self) -> Floats:
        """(M, D) outputs, centred and normalised like the originals."""
        return unit(self.raw_a - self.centre)


def label(embedder: Embedder) -> str:
    """A recogniser's name, with a mark of its weights where they come from the user's file."""
    return f"{embedder.name} {getattr(embedder, 'fingerprint', '')}".strip()


def unit(vectors: Floats) -> Floats:
    """Rows scaled to length 1."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9))


def embed(
    shots: Shots, cache: Cache, embedder: Embedder, progress: Progress = silent, what: str = "embed"
) -> Floats:
    """(N, D) embeddings of pictures, by content and landmarks from the cache where known."""

    def one(row: int) -> Array:
        marks = shots.landmarks[row].astype(np.float32)
        name = fingerprint(shots.digests[row].encode(), marks.tobytes())
        kept = f"embedding {label(embedder)} {name}"
        return cache.get(kept, lambda: embedder([shots.chip(row)])[0])

    return np.stack(_mapped(one, range(len(shots.paths)), progress, what)).astype(np.float32)


def _mapped(
    one: Callable[[int], Array], rows: Sequence[int], progress: Progress, what: str
) -> list[Array]:
    """Results in order, computed in threads on single pictures, so batch sizes cannot matter."""
    results = []
    with ThreadPoolExecutor() as pool:
        for done, result in enumerate(pool.map(one, rows), 1):
            results.append(result)
            progress(what, done, len(rows))
    return results


def load(
    originals: Path,
    anonymised: Path,
    links: Iterable[Link],
    *,
    cache: Cache | None = None,
    detector: Detector | None = None,
    seed: int = 0,
    people: int | None = None,
    images: int | None = None,
    like: Chosen | None = None,
    progress: Progress = silent,
) -> Trial:
    """Splits, detects and prepares a trial.

    Every choice is made by a hash of seed and path, so the order of the links is of no account.

    Args:
        originals, anonymised: the two folders.
        links: from `link`.
        cache: of detections and embeddings.
        detector: finds faces on both sides alike; MTCNN unless given.
        seed: of the split.
        people: at most so many people, chosen by the seed among those with two originals or more.
        images: at most so many originals of each.
        like: play the same parts as in this other trial over the same originals.
        progress: told about detection.

    Raises:
        ConfigError: fewer than 8 people of whom anything can be probed.
    """
    links = list(links)
    like = like or _choose(links, seed, people, images)
    chosen = sorted((i for i in links if i.source in like.sources), key=lambda i: i.source)
    names = sorted({item.person for item in chosen})
    attacker = np.array([name in like.attacker for name in names])
    number = {name: index for index, name in enumerate(names)}
    published = [item for item in chosen if item.output is not None]
    row = {item.source: index for index, item in enumerate(chosen)}
    enrolled = np.array([item.source in like.enrolled for item in chosen])
    cache, detector = cache or Cache(None), detector or MTCNN()
    back = {item.source: index for index, item in enumerate(published)}
    o = _shots(
        originals,
        [item.source for item in chosen],
        [number[item.person] for item in chosen],
        [back.get(item.source, -1) for item in chosen],
        (cache, detector, progress, "detect faces in originals"),
    )
    a = _shots(
        anonymised,
        [str(item.output) for item in published],
        [number[item.person] for item in published],
        [row[item.source] for item in published],
        (cache, detector, progress, "detect faces in outputs"),
    )
    return Trial(*_expected(o, a, attacker), attacker, enrolled, names, seed, cache, progress)


def _hash(seed: int, *parts: str) -> str:
    text = "\0".join([str(seed), *parts])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _choose(links: list[Link], seed: int, people: int | None, images: int | None) -> Chosen:
    """Takes people and pictures by hash, and splits them."""
    by_person: dict[str, list[Link]] = {}
    for item in sorted(links, key=lambda item: _hash(seed, "picture", item.source)):
        by_person.setdefault(item.person, []).append(item)
    kept = {name: items[:images] for name, items in by_person.items()}
    able = [n for n, items in kept.items() if len(items) > 1 and any(i.output for i in items)]
    if len(able) < LEAST:
        raise ConfigError(
            f"got {len(able)} people with two originals and an output, expected at least {LEAST}: "
            "originals are grouped into people by their folder"
        )
    able.sort(key=lambda name: _hash(seed, "chosen", name))
    others = sorted(set(kept) - set(able), key=lambda name: _hash(seed, "chosen", name))
    able, others = (able, others) if people is None else (able[:people], [])
    # each kind is split by itself, so that either half has people who can be searched for
    attacker = {*able[: len(able) // 2], *others[: len(others) // 2]}
    sources = [item for name in (*able, *others) for item in kept[name]]
    enrolled = {source for name in (*able, *others) for source in _gallery(kept[name], seed)}
    return Chosen(frozenset(i.source for i in sources), frozenset(enrolled), frozenset(attacker))


def _gallery(items: list[Link], seed: int) -> list[str]:
    """A person's sources that are enrolled: half of them, but never all that have an output."""
    order = sorted(items, key=lambda item: _hash(seed, "enrol", item.source))
    published = [item for item in order if item.output is not None]
    if len(items) == 1:
        return [items[0].source]
    # one published picture is kept for the probes, and one is enrolled if there is another
    rest = [item for item in order if item not in published[:1]]
    rest.sort(key=lambda item: item not in published[1:2])
    return [item.source for item in rest[: max(1, len(items) // 2)]]


def _shots(
    folder: Path,
    paths: list[str],
    people: list[int],
    links: list[int],
    tools: tuple[Cache, Detector, Progress, str],
) -> Shots:
    cache, detector, progress, what = tools
    digests = [hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in paths]
    label = type(detector).__name__

    def look(row: int) -> Array:
        return cache.get(f"face {label} {digests[row]}", lambda: _face(folder / paths[row]))

    def _face(path: Path) -> Array:
        """17 numbers: found (-1 unreadable), width, height, box (4), landmarks (10)."""
        try:
            image = read(path)
        except Withhold:
            return np.array([-1, UNREADABLE, UNREADABLE, *[0] * 14], np.float32)
        found, size = detector([image])[0], (image.shape[1], image.shape[0])
        if not found:
            return np.array([0, *size, *[0] * 14], np.float32)
        face = by_subject(found, image.shape[:2])[0]
        return np.array([1, *size, *face.box, *face.landmarks.ravel()], np.float32)

    if not paths:
        raise ConfigError(f"{folder}: found no picture to evaluate")
    table = np.stack(_mapped(look, range(len(paths)), progress, what))
    return Shots(
        folder,
        paths,
        np.array(people),
        np.array(links),
        digests,
        found=table[:, 0] > 0,
        landmarks=table[:, 7:].reshape(-1, 5, 2),
        boxes=table[:, 3:7],
        sizes=table[:, 1:3].astype(np.int64),
        readable=table[:, 0] >= 0,
    )


def shots(folder: Path, paths: list[str], cache: Cache, progress: Progress, what: str) -> Shots:
    """Pictures of nobody in particular, such as training faces."""
    nobody = [-1] * len(paths)
    return _shots(folder, paths, nobody, nobody, (cache, MTCNN(), progress, what))


def _expected(o: Shots, a: Shots, attacker: Array) -> tuple[Shots, Shots]:
    """Puts landmarks where no face was found: where the attacker's originals have them.

    A clever attacker does not give up when a detector does.
    """
    rows = attacker[o.people] & o.found
    if not rows.any():
        raise ConfigError("no face was found in any original: nothing can be evaluated")
    usual = np.median(o.landmarks[rows] / o.sizes[rows][:, None], axis=0)
    for shots in (o, a):
        lost = ~shots.found
        shots.landmarks[lost] = usual * shots.sizes[lost][:, None]
    return o, a
