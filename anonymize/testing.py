"""Contracts of components, as checks to call from the tests of whoever writes one.

    from anonymize.testing import check_generator

    def test_my_generator() -> None:
        check_generator(MyGenerator)

A check makes the component twice, uses it as a run does, and says in an `AssertionError` which
promise it broke. The pictures come out of the bundled generator, so no photographs are needed.
Writers have theirs in `anonymize.testing_writers`, attacks in `anonymize.eval.testing`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from anonymize.aligners import CROP_SIZE, TEMPLATE
from anonymize.detectors import Detector
from anonymize.embedders import Embedder, chip
from anonymize.errors import ConfigError, Withhold
from anonymize.generators import Generator, Inpaint, Job, Learner
from anonymize.identities import invent
from anonymize.outlines import outline
from anonymize.priors import CODE
from anonymize.readers import Reader, Source
from anonymize.record import Face, Floats, Pixels
from anonymize.stages import job

PEOPLE, PICTURES = 12, 2


def check_generator(make: Callable[[], Generator]) -> None:
    """Checks what `generators.Generator` promises, and `generators.Learner` where it is one.

    Args:
        make: the generator's class, or a function that makes one with its options.

    Raises:
        AssertionError: a promise is broken.
    """
    generator, other = make(), make()
    _generator_attributes(generator)
    jobs = _jobs(generator)
    if isinstance(generator, Learner):
        _learning([generator, make(), other], jobs)
    jobs = [*jobs[:3], replace(jobs[3], person=None)]  # the last one is a bystander
    before = [array.copy() for j in jobs for array in (j.crop, j.mask, j.landmarks)]
    made = generator(jobs)
    _crops(generator, made, len(jobs))
    after = [array for j in jobs for array in (j.crop, j.mask, j.landmarks)]
    _equal(before, after, "the generator changed the jobs that it was given")
    _equal(made, other(jobs), "another generator, made alike, gives other faces")
    alone = [generator([one])[0] for one in reversed(jobs)][::-1]
    _equal(made, alone, "a face depends on what else is in its batch, or on the order")
    expect(list(generator([])) == [], "no jobs must give no faces")
    if not generator.baseline:
        _blind(generator, jobs, made)


def _learning(alike: Sequence[Any], jobs: Sequence[Job]) -> None:
    """Two of three generators must learn the same, the third what was learnt, as a resumed run."""
    shown = [replace(job, code=None, seed=0) for job in jobs]
    learnt, again = (generator.fit(iter(shown)) for generator in alike[:2])
    expect(isinstance(learnt, bytes), f"fit returned {type(learnt).__name__}, not bytes")
    expect(learnt == again, "fit returns other bytes for the same faces")
    alike[0].restore(learnt)
    with _working("what fit returned cannot be restored elsewhere"):
        alike[2].restore(learnt)


def _generator_attributes(generator: Generator) -> None:
    expect(isinstance(generator.name, str) and generator.name != "", "name must be a text")
    expect(isinstance(generator.size, int) and generator.size >= 16, "size must be 16 or more")
    known = isinstance(getattr(type(generator), "baseline", None), bool)
    expect(known, "baseline must be True or False on the class: it is asked for before making one")
    label = getattr(generator, "label", "x")
    expect(isinstance(label, str) and len(label.splitlines()) == 1, "label must be one line")


def _jobs(generator: Generator) -> list[Job]:
    """Crops of noise: PICTURES for each of PEOPLE people, with codes where there is a prior."""
    rng, size, jobs = np.random.default_rng(0), generator.size, []
    for number in range(PEOPLE * PICTURES):
        coarse = rng.integers(0, 256, (8, 8, 3))
        image = np.kron(coarse, np.ones((-(-size // 8), -(-size // 8), 1))).astype(np.uint8)
        marks = (TEMPLATE + rng.normal(0, 1.5, (5, 2))) * (size / CROP_SIZE)
        face = Face(np.zeros(4, np.float32), 1.0, marks.astype(np.float32))
        blank = job(outline(image, face, size, "face"), generator.baseline)
        code = rng.standard_normal(CODE).astype(np.float32)
        drawn = getattr(generator, "prior", None) is not None
        own = code / np.linalg.norm(code) if drawn else None
        jobs.append(replace(blank, code=own, seed=number, person=f"p{number // PICTURES:016x}"))
    return jobs


def _crops(generator: Generator, made: Sequence[Pixels], count: int) -> None:
    expect(len(made) == count, f"{count} jobs gave {len(made)} faces")
    for crop in made:
        expect(isinstance(crop, np.ndarray), f"a face is {type(crop).__name__}, not an array")
        expect(crop.dtype == np.uint8, f"a face has dtype {crop.dtype}, not uint8")
        shape = (generator.size, generator.size, 3)
        expect(crop.shape == shape, f"a face has shape {crop.shape}, not {shape}")


def _blind(generator: Generator, jobs: Sequence[Job], made: Sequence[Pixels]) -> None:
    """A generator that is no baseline must not look inside the region, even where it could."""
    noise = np.random.default_rng(1).integers(0, 256, jobs[0].crop.shape).astype(np.uint8)
    seeing = [replace(j, crop=np.where(j.mask[..., None], noise, j.crop)) for j in jobs]
    _equal(made, generator(seeing), "a face depends on the pixels that it is to replace")
    if getattr(generator, "prior", None) is not None:
        cells = generator.cells  # type: ignore[attr-defined]
        guess = cells(jobs)
        expected = (len(jobs), len(generator.prior.mean))  # type: ignore[attr-defined]
        expect(np.shape(guess) == expected, f"cells has shape {np.shape(guess)}, not {expected}")
        expect(np.isfinite(guess).all(), "cells is not finite")
        _equal(guess, cells(seeing), "the guess of the cell depends on the removed face")


def check_detector(make: Callable[[], Detector]) -> None:
    """Checks what `detectors.Detector` promises, on drawn faces and on pictures without one.

    Args:
        make: the detector's class, or a function that makes one.

    Raises:
        AssertionError: a promise is broken.
    """
    detector, pictures = make(), _scenes()
    images = [image for image, _ in pictures]
    before = [image.copy() for image in images]
    found = detector(images)
    expect(len(found) == len(images), f"{len(images)} pictures gave {len(found)} answers")
    _equal(images, before, "the detector changed the pictures that it was given")
    for faces, (image, truth) in zip(found, pictures, strict=True):
        _faces(faces, image)
        if truth is None:
            expect(not faces, f"a face was found in a plain picture of shape {image.shape}")
        else:
            _close(faces, truth)
    message = "another detector, made alike, finds other faces"
    _equal(_numbers(found), _numbers(make()(images)), message)
    alone = [detector([image])[0] for image in reversed(images)][::-1]
    message = "what is found depends on what else is in the batch, or on the order"
    _equal(_numbers(found), _numbers(alone), message)
    expect(list(detector([])) == [], "no pictures must give no answers")


def _scenes() -> list[tuple[Pixels, Floats | None]]:
    """Pictures of several sizes with the landmarks of their one face, or None without one."""
    scenes: list[tuple[Pixels, Floats | None]] = []
    for shift, (crop, marks) in enumerate(pictures[0] for pictures in _people()[:3]):
        canvas = np.full((CROP_SIZE + 60 + 7 * shift, CROP_SIZE + 101, 3), 120, np.uint8)
        top, left = 20 + 5 * shift, 30 + 9 * shift
        canvas[top : top + CROP_SIZE, left : left + CROP_SIZE] = crop
        scenes.append((canvas, (marks + np.array([left, top])).astype(np.float32)))
    for rows, columns in ((90, 120), (7, 300), (1, 1)):
        scenes.append((np.full((rows, columns, 3), 90, np.uint8), None))
    return scenes


def _faces(faces: Sequence[Face], image: Pixels) -> None:
    expect(isinstance(faces, tuple), f"the faces of a picture are {type(faces).__name__}, no tuple")
    for face in faces:
        expect(isinstance(face, Face), f"a face is {type(face).__name__}, not a Face")
        for name, shape in (("box", (4,)), ("landmarks", (5, 2))):
            array = getattr(face, name)
            expect(np.shape(array) == shape, f"{name} has shape {np.shape(array)}, not {shape}")
            expect(array.dtype == np.float32, f"{name} has dtype {array.dtype}, not float32")
            expect(np.isfinite(array).all(), f"{name} is not finite")
        x1, y1, x2, y2 = face.box
        expect(x1 < x2 and y1 < y2, "box must be x1, y1, x2, y2 with x1 < x2 and y1 < y2")
        expect(isinstance(face.score, float) and 0 <= face.score <= 1, "score must be in 0..1")
    scores = [face.score for face in faces]
    expect(scores == sorted(scores, reverse=True), "faces must come best score first")


def _close(faces: Sequence[Face], truth: Floats) -> None:
    """The first face must be the drawn one: points (x, y), left and right as seen."""
    expect(len(faces) > 0, "a drawn face in the middle of a picture was not found")
    apart = np.linalg.norm(truth[1] - truth[0])
    off = np.linalg.norm(faces[0].landmarks - truth, axis=1).max() / apart
    message = f"a landmark is {off:.2f} eye distances off: (x, y)? left and right as seen?"
    expect(bool(off < 0.5), message)


def _numbers(found: Sequence[Sequence[Face]]) -> list[Floats]:
    return [
        np.array([[*f.box, f.score, *f.landmarks.ravel()] for f in faces], np.float32)
        for faces in found
    ]


def check_embedder(make: Callable[[], Embedder]) -> None:
    """Checks what `embedders.Embedder` promises, on chips of drawn people.

    Args:
        make: the embedder's class, or a function that makes one.

    Raises:
        AssertionError: a promise is broken.
    """
    embedder = make()
    expect(isinstance(embedder.name, str) and embedder.name != "", "name must be a text")
    people = _people()[:6]
    chips = [chip(*picture) for pictures in people for picture in pictures]
    before = [one.copy() for one in chips]
    vectors = embedder(chips)
    expect(isinstance(vectors, np.ndarray), f"got {type(vectors).__name__}, not an array")
    expect(vectors.dtype == np.float32, f"embeddings have dtype {vectors.dtype}, not float32")
    shaped = vectors.ndim == 2 and len(vectors) == len(chips)
    expect(shaped, f"{len(chips)} chips gave an array of shape {vectors.shape}, not (N, D)")
    expect(bool(np.isfinite(vectors).all()), "embeddings are not finite")
    _equal(chips, before, "the embedder changed the chips that it was given")
    slack = 1e-3 * float(np.linalg.norm(vectors, axis=1).max())
    alone = np.concatenate([embedder([one]) for one in reversed(chips)])[::-1]
    _near(
        vectors, alone, slack, "an embedding depends on what else is in its batch, or on the order"
    )
    _near(vectors, make()(chips), slack, "another embedder, made alike, gives other embeddings")
    none = np.shape(embedder([]))
    expect(none == (0, vectors.shape[1]), f"no chips gave shape {none}, not (0, D)")
    _telling(vectors, np.repeat(np.arange(len(people)), PICTURES))


def _telling(vectors: Floats, who: Floats) -> None:
    """Euclidean distances must be smaller within people than between them."""
    apart = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    same = (who[:, None] == who[None]) & ~np.eye(len(who), dtype=bool)
    own, other = apart[same].mean(), apart[who[:, None] != who[None]].mean()
    message = "pictures of one person are as far apart as those of different people"
    expect(bool(own < 0.9 * other), f"{message}: {own:.3g} and {other:.3g}")


def check_reader(make: Callable[[Path], Reader], source: Path) -> None:
    """Checks what `readers.Reader` promises, on a data set and on damaged copies of it.

    Args:
        make: the reader's class, or a function that opens a path with it.
        source: a small data set in the reader's format: a file or a folder.

    Raises:
        AssertionError: a promise is broken.
    """
    reader = make(source)
    listed = list(reader)
    _sources(listed)
    counts = dict(reader.ignored)
    good = all(isinstance(k, str) and isinstance(n, int) for k, n in counts.items())
    expect(good, "ignored must hold a number for each kind")
    expect(list(reader) == listed, "reading a second time gives other pictures")
    expect(dict(reader.ignored) == counts, "reading a second time counts what is ignored again")
    again = make(source)  # a resumed run has a reader that listed nothing
    for item in reversed(listed):
        with _working("a reader that has listed nothing cannot load"):
            data = again.load(item.path)
        expect(isinstance(data, bytes) and data != b"", "load must return the bytes of a picture")
        expect(reader.load(item.path) == data, "loading a picture twice gives other bytes")
    _damaged(make, source)


def _sources(listed: Sequence[Source]) -> None:
    expect(len(listed) > 0, "the reader found no picture in its source")
    for item in listed:
        expect(isinstance(item, Source), f"got {type(item).__name__}, not a Source")
        expect(isinstance(item.path, str) and item.path != "", "path must be a text")
        labelled = item.label is None or (isinstance(item.label, str) and item.label != "")
        expect(labelled, f"label is {item.label!r}, not a text or None")
    expect(len({item.path for item in listed}) == len(listed), "two pictures have one locator")


def _damaged(make: Callable[[Path], Reader], source: Path) -> None:
    """Cuts, empties, garbles and removes each of a few files in turn: a reason, never a crash."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    for file in files[:4]:
        data = file.read_bytes()
        middle = len(data) // 2
        ways = {
            "cut": data[:middle],
            "emptied": b"",
            "garbled": data[:middle]
            + bytes(b ^ 0x55 for b in data[middle : middle + 64])
            + data[middle + 64 :],
            "overwritten": b"\xff" * len(data),
        }
        for way, changed in ways.items():
            with _copy(source) as copy, _only_reasons(f"a file that was {way}", source):
                _within(copy, source, file).write_bytes(changed)
                reader = make(copy)
                _load_all(reader, list(reader))
        with _copy(source) as copy, _only_reasons("a file that was removed", source):
            reader = make(copy)
            listed = list(reader)
            _within(copy, source, file).unlink()
            _load_all(reader, listed)


def _load_all(reader: Reader, listed: Sequence[Source]) -> None:
    for item in listed:
        try:
            data = reader.load(item.path)
            expect(isinstance(data, bytes), f"load returned {type(data).__name__}, not bytes")
        except Withhold as result:
            told = {text for text in (item.path, item.label) if text and not text.isdigit()}
            said = next((text for text in told if text in result.reason), None)
            expect(said is None, f"the public reason {result.reason!r} holds the source's {said!r}")


@contextmanager
def _only_reasons(case: str, source: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        pass
    except AssertionError:
        raise
    except Exception as error:
        what = f"{case} ({source.name}) raised {type(error).__name__}: {error}"
        raise AssertionError(f"{what}; expected ConfigError or Withhold") from error


@contextmanager
def _copy(source: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / source.name
        if source.is_dir():
            shutil.copytree(source, copy)
        else:  # with what lies beside it: an index, or the pictures of a table
            shutil.copytree(source.parent, copy.parent, dirs_exist_ok=True)
        yield copy


def _within(copy: Path, source: Path, file: Path) -> Path:
    return copy if file == source else copy / file.relative_to(source)


@cache
def _people() -> list[list[tuple[Pixels, Floats]]]:
    """PICTURES crops (128, 128, 3) with landmarks (5, 2) of each of PEOPLE drawn people."""
    generator = Inpaint(steps=4, noise=1, emphasis=1, views=1)
    names: dict[str, Floats | None] = dict.fromkeys(map(str, range(PEOPLE)))
    people = invent(generator.prior, bytes(32), names).values()
    empty = np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    whole = np.ones((CROP_SIZE, CROP_SIZE), bool)
    drawn = []
    for number, person in enumerate(people):
        rng = np.random.default_rng(number)
        marks = [(TEMPLATE + rng.normal(0, 1, (5, 2))).astype(np.float32) for _ in range(PICTURES)]
        jobs = [Job(empty, whole, m, person.code, int(rng.integers(2**63))) for m in marks]
        drawn.append(list(zip(generator(jobs), marks, strict=True)))
    return drawn


@contextmanager
def _working(broken: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{broken}: {type(error).__name__}: {error}") from error


def expect(kept: bool, broken: str) -> None:
    """Says which promise is broken; unlike `assert`, with `python -O` too."""
    if not kept:
        raise AssertionError(broken)


def _equal(first: Sequence[Any] | Floats, second: Sequence[Any] | Floats, broken: str) -> None:
    expect(all(np.array_equal(a, b) for a, b in zip(first, second, strict=True)), broken)


def _near(first: Floats, second: Floats, slack: float, broken: str) -> None:
    expect(bool(np.abs(first - second).max() <= slack), broken)
