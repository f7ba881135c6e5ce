"""The contract checks: everything built in keeps them, and each kind of broken toy is caught."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anonymize.eval import attacks, learned
from anonymize.eval.attacks import Attack
from anonymize.eval.risk import Search
from anonymize.eval.testing import Staged, check_attack
from anonymize.eval.trial import Trial
from test_formats import pairs, rec, shards, table, tsv

from anonymize import registry
from anonymize.detectors import MTCNN
from anonymize.embedders import DlibEmbedder
from anonymize.errors import Withhold
from anonymize.generators import Blur, Inpaint, Mask
from anonymize.ksame import KSamePixel
from anonymize.readers import Folder, Source, open_source
from anonymize.testing import (
    check_detector,
    check_embedder,
    check_generator,
    check_reader,
)
from anonymize.testing_writers import check_writer
from anonymize.tsv import MsCelebTsvWriter
from anonymize.writers import FolderWriter


# hub needs a checkpoint (test_hub), aligned expects a face wherever it is asked (test_aligned)
@pytest.mark.parametrize("name", sorted(set(registry.BUILTIN["generator"]) - {"hub"}))
def test_generators(name: str) -> None:
    check_generator(registry.find("generator", name)[0])


@pytest.mark.parametrize("name", sorted(set(registry.BUILTIN["detector"]) - {"aligned"}))
def test_detectors(name: str) -> None:
    check_detector(registry.find("detector", name)[0])


def test_embedders() -> None:
    """The others need files that are not in the repository."""
    check_embedder(registry.find("embedder", "dlib")[0])


@pytest.fixture
def crowd(people: Path) -> list[tuple[str, bytes]]:
    chosen = sorted(people.iterdir())[:3]
    return [(p.name, f.read_bytes()) for p in chosen for f in sorted(p.glob("*.jpg"))[:3]]


READERS: dict[str, Callable[[Path, list[tuple[str, bytes]]], Path]] = {
    "manifest": table,
    "msceleb-tsv": tsv,
    "recordio": rec,
    "verification-bin": pairs,
    "webdataset": shards,
}


@pytest.mark.parametrize("name", READERS)
def test_readers_of_files(name: str, crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    made = registry.find("reader", name)[0]
    source = READERS[name](tmp_path, crowd)
    check_reader(made, source)
    if "skip_bad" in inspect.signature(made).parameters:
        check_reader(partial(made, skip_bad=True), source)


def test_the_reader_of_folders(dataset: Path) -> None:
    check_reader(Folder, dataset)


READ_AS = {"manifest": "images.csv", "manifest-parquet": "images.parquet"}


@pytest.mark.parametrize("name", sorted(registry.names("writer")))
def test_writers(name: str) -> None:
    if name in ("img2dataset", "manifest-parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    made = registry.find("writer", name)[0]

    check_writer(made, lambda root: open_source(root / READ_AS.get(name, "")))


class Careless(FolderWriter):
    """Forgets where it put things."""

    def put(self, record: Any, person: str, data: bytes) -> str:
        FolderWriter.put(self, record, person, data)
        return "somewhere"


class Greedy(FolderWriter):
    """Writes whatever it gets."""

    def write(self, record: Any, person: str) -> tuple[str, str]:
        return self.put(record, person, b"x"), "0"


class Forgetful(MsCelebTsvWriter):
    """Appends to what a killed run left behind."""

    def begin(self, marks: Any) -> None:
        path = self.root / self.NAME
        length = path.stat().st_size if path.exists() else 0
        MsCelebTsvWriter.begin(self, {self.NAME: length})


@pytest.mark.parametrize(
    ("made", "reader", "message"),
    [
        (Careless, "folder", "locators are not those"),
        (Greedy, "folder", "without output must be refused"),
        (Forgetful, "msceleb-tsv", "gives other bytes"),
    ],
)
def test_broken_writers_are_caught(made: Any, reader: str, message: str) -> None:
    opened = registry.find("reader", reader)[0]
    with pytest.raises(AssertionError, match=message):
        check_writer(made, opened)


def test_every_reader_is_checked() -> None:
    assert {*READERS, "folder"} == set(registry.BUILTIN["reader"])


ON_EMBEDDINGS = [
    attacks.oa,
    attacks.ao,
    attacks.negation,
    attacks.set_averaging,
    attacks.control,
    learned.linear,
]


@pytest.mark.parametrize("attack", ON_EMBEDDINGS, ids=lambda attack: attack.__name__)
def test_attacks(attack: Attack) -> None:
    check_attack(attack)


# --- broken on purpose ----------------------------------------------------------------------


class Nameless(Mask):
    name = ""


class Unlabelled(Mask):
    label = "two\nlines"


class Narrow(Mask):
    def __call__(self, jobs: Any) -> Any:
        return [np.zeros((64, 64, 3), np.uint8) for _ in jobs]


class Floating(Mask):
    def __call__(self, jobs: Any) -> Any:
        return [job.crop / 255 for job in jobs]


class Short(Mask):
    def __call__(self, jobs: Any) -> Any:
        return super().__call__(jobs)[:-1]


class Painting(Mask):
    """Draws into what it was given."""

    def __call__(self, jobs: Any) -> Any:
        for job in jobs:
            job.crop[:] = 3
        return super().__call__(jobs)


class Moody(Mask):
    """Draws by chance."""

    def __call__(self, jobs: Any) -> Any:
        return [np.random.default_rng().integers(0, 256, j.crop.shape, np.uint8) for j in jobs]


class Born(Mask):
    """Every copy of it is another one."""

    def __init__(self) -> None:
        self.level = int(np.random.default_rng().integers(1 << 30)) % 251

    def __call__(self, jobs: Any) -> Any:
        return [np.full_like(job.crop, self.level) for job in jobs]


class Averaging(Blur):
    """Mixes the faces of a batch."""

    def __call__(self, jobs: Any) -> Any:
        mean = np.mean([job.crop for job in jobs] or [0], axis=0).astype(np.uint8)
        return [mean for _ in jobs]


class Ordered(Mask):
    """Remembers how many it has made."""

    def __call__(self, jobs: Any) -> Any:
        return [np.full_like(job.crop, index) for index, job in enumerate(jobs)]


class Peeking(Blur):
    """Claims to anonymise and obscures."""

    baseline = False


class PeekingPrior(Inpaint):
    """Guesses the cell from the face."""

    def cells(self, jobs: Any) -> Any:
        guess = np.zeros((len(jobs), len(self.prior.mean)), np.float32)
        guess[:, 0] = [job.crop[job.mask].mean() for job in jobs]
        return guess


class Amnesiac(KSamePixel):
    """Keeps what it learnt to itself."""

    def fit(self, jobs: Any) -> bytes:
        self.kept = super().fit(jobs)
        return b"in memory"

    def restore(self, learnt: bytes) -> None:
        super().restore(self.kept)


class Fitful(KSamePixel):
    """Learns something else each time."""

    def fit(self, jobs: Any) -> bytes:
        return super().fit(jobs) + np.random.default_rng().bytes(8)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Nameless, "name must be"),
        (Unlabelled, "label must be one line"),
        (Narrow, r"shape \(64, 64, 3\), not \(128, 128, 3\)"),
        (Floating, "dtype float64"),
        (Short, "4 jobs gave 3 faces"),
        (Painting, "changed the jobs"),
        (Moody, "another generator, made alike"),
        (Born, "another generator, made alike"),
        (Averaging, "depends on what else is in its batch"),
        (Ordered, "depends on what else is in its batch"),
        (Peeking, "depends on the pixels that it is to replace"),
        (PeekingPrior, "the guess of the cell depends on the removed face"),
        (Fitful, "fit returns other bytes"),
        (Amnesiac, "cannot be restored elsewhere"),
    ],
)
def test_broken_generators_are_caught(made: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_generator(made)


class Lists(MTCNN):
    def __call__(self, images: Any) -> Any:
        return [list(faces) for faces in super().__call__(images)]


class Doubles(MTCNN):
    def __call__(self, images: Any) -> Any:
        found = super().__call__(images)
        return [tuple(f.but(box=f.box.astype(float)) for f in faces) for faces in found]


class Swapped(MTCNN):
    """Gives rows before columns."""

    def __call__(self, images: Any) -> Any:
        found = super().__call__(images)
        return [tuple(f.but(landmarks=f.landmarks[:, ::-1]) for f in faces) for faces in found]


class Mirrored(MTCNN):
    """Gives left and right as the person has them."""

    def __call__(self, images: Any) -> Any:
        order, found = [1, 0, 2, 4, 3], super().__call__(images)
        return [tuple(f.but(landmarks=f.landmarks[order]) for f in faces) for faces in found]


class Blind(MTCNN):
    def __call__(self, images: Any) -> Any:
        return [() for _ in images]


class Dreaming(MTCNN):
    """Finds in every picture what is in the first."""

    def __call__(self, images: Any) -> Any:
        return super().__call__(images)[:1] * len(images)


class Worst(MTCNN):
    """Gives the worst face first."""

    def __call__(self, images: Any) -> Any:
        found = super().__call__(images)
        return [tuple(f.but(score=s) for f in faces for s in (0.2, f.score)) for faces in found]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Lists, "list, no tuple"),
        (Doubles, "box has dtype float64"),
        (Swapped, "eye distances off"),
        (Mirrored, "eye distances off"),
        (Blind, "was not found"),
        (Dreaming, "eye distances off|plain picture"),
        (Worst, "best score first"),
    ],
)
def test_broken_detectors_are_caught(made: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_detector(made)


class Toy:
    """An embedder of a few pixels; the broken ones below change one thing each."""

    name = "toy"

    def __call__(self, chips: Any) -> Any:
        return np.array([c[60:100:8, 40:120:8].ravel() for c in chips], np.float32).reshape(-1, 150)


class Same(Toy):
    def __call__(self, chips: Any) -> Any:
        return np.ones((len(chips), 16), np.float32)


class Flat(Toy):
    def __call__(self, chips: Any) -> Any:
        return super().__call__(chips).ravel()


class Double(Toy):
    def __call__(self, chips: Any) -> Any:
        return super().__call__(chips).astype(float)


class Centred(Toy):
    """Takes the mean of whatever it is given together."""

    def __call__(self, chips: Any) -> Any:
        vectors = super().__call__(chips)
        return vectors - vectors.mean(0) if len(vectors) else vectors


class Infinite(Toy):
    def __call__(self, chips: Any) -> Any:
        return super().__call__(chips) / np.float32(0)


class Empty(Toy):
    def __call__(self, chips: Any) -> Any:
        return super().__call__(chips) if len(chips) else np.zeros(0, np.float32)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Same, "as far apart as those of different people"),
        (Flat, r"not \(N, D\)"),
        (Double, "dtype float64"),
        (Centred, "depends on what else is in its batch"),
        (Infinite, "not finite"),
        (Empty, r"not \(0, D\)"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_broken_embedders_are_caught(made: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_embedder(made)


class Once(Folder):
    """Can be read once."""

    spent = False

    def __iter__(self) -> Iterator[Source]:
        if not Once.spent:
            Once.spent = True
            yield from super().__iter__()


class Counting(Folder):
    """Never forgets what it passed over."""

    def __iter__(self) -> Iterator[Source]:
        before = self.ignored.get("not a picture", 0)
        yield from super().__iter__()
        self.ignored["not a picture"] += before + 1


class Numbered(Folder):
    """Locators mean something after listing only."""

    def __iter__(self) -> Iterator[Source]:
        self.known = list(super().__iter__())
        yield from (Source(str(n), s.label) for n, s in enumerate(self.known))

    def load(self, locator: str) -> bytes:
        return super().load(self.known[int(locator)].path)


class Blurting(Folder):
    """Tells in public what could not be read."""

    def load(self, locator: str) -> bytes:
        try:
            return super().load(locator)
        except Withhold as error:
            raise Withhold(f"cannot read {locator}") from error


class Crashing(Folder):
    def load(self, locator: str) -> bytes:
        return (self.root / locator).read_bytes()


class Strict(Folder):
    """Falls over a file that is not a JPEG."""

    def load(self, locator: str) -> bytes:
        data = super().load(locator)
        if data[:2] != b"\xff\xd8":
            raise ValueError("no JPEG")
        return data


class Twice(Folder):
    def __iter__(self) -> Iterator[Source]:
        for source in super().__iter__():
            yield from (source, source)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Once, "a second time gives other pictures"),
        (Counting, "counts what is ignored again"),
        (Numbered, "listed nothing cannot load: AttributeError"),
        (Blurting, "the public reason"),
        (Crashing, "removed .* raised FileNotFoundError"),
        (Strict, "raised ValueError: no JPEG"),
        (Twice, "two pictures have one locator"),
    ],
)
def test_broken_readers_are_caught(made: Any, message: str, dataset: Path) -> None:
    (dataset / "notes.txt").write_text("not a picture")
    with pytest.raises(AssertionError, match=message):
        check_reader(made, dataset)


def changed(trial: Trial, **fields: Any) -> list[Search]:
    """The searches of the naive attack with some fields replaced."""
    (search,) = attacks.oa(trial, Staged())
    values = {name: getattr(search, name) for name in Search.__slots__}
    return [Search(**{**values, **{n: change(search) for n, change in fields.items()}})]


def knowing(trial: Trial, embedder: Any) -> list[Search]:
    """Reads the truth."""

    def told(search: Search) -> Any:
        return np.eye(search.scores.shape[1], dtype=np.float32)[search.own]

    return changed(trial, scores=told)


def enrolling(trial: Trial, embedder: Any) -> list[Search]:
    """Searches among all originals, those of the probes included."""
    view = trial.view(embedder)
    rows, people, _ = attacks.probes_of(view)
    everything = trial.rows("o", attacker=False)
    known = attacks.Gallery(
        view.o[everything], trial.o.people[everything], trial.o.found[everything]
    )
    return [attacks.searched(view, "enrolling", known, view.a[rows], people)]


def moody(trial: Trial, embedder: Any) -> list[Search]:
    return changed(trial, scores=lambda s: np.random.default_rng().normal(size=s.scores.shape))


def shifted(trial: Trial, embedder: Any) -> list[Search]:
    return changed(trial, own=lambda s: s.own[1:])


def undefined(trial: Trial, embedder: Any) -> list[Search]:
    return changed(trial, scores=lambda s: s.scores * np.nan)


def own_thresholds(trial: Trial, embedder: Any) -> list[Search]:
    """Fixes its thresholds on the people whom it searches for."""
    view = trial.view(embedder)
    enrolled = attacks.gallery(view, "o", attacker=False)
    rows = trial.rows("o", attacker=False, enrolled=False)
    return changed(
        trial, nonmated=lambda s: attacks.nonmated(enrolled, view.o[rows], trial.o.people[rows])
    )


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (lambda *_: [], "a list of searches"),
        (knowing, "the attack finds strangers"),
        (enrolling, "by its own original"),
        (moody, "other scores the second time"),
        (shifted, "own has shape"),
        (undefined, "NaN"),
        (own_thresholds, "people who are not the attacker's"),
    ],
)
def test_broken_attacks_are_caught(attack: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_attack(attack)


def test_a_component_that_only_adds_to_a_good_one_passes() -> None:
    """The checks ask for what is promised and for no more."""

    class Named(DlibEmbedder):
        def __init__(self) -> None:
            super().__init__()
            self.name = "named"

    class Painted(Blur):
        label = "not anonymisation: a wash of colour"

    check_embedder(Named)
    check_generator(Painted)
