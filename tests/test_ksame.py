"""k-Same: who shares a face with whom, that it is their average, and that it survives a kill."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import PEOPLE, save
from test_run import bystanders, digests

from anonymize import registry, stages
from anonymize.aligners import CROP_SIZE, TEMPLATE, radius
from anonymize.cli import main
from anonymize.detectors import MTCNN, by_subject
from anonymize.embedders import DlibEmbedder, chip
from anonymize.errors import ConfigError, Withhold
from anonymize.generators import BASELINE_NOTE, Job, Learner, Mask
from anonymize.images import read
from anonymize.ksame import SIDE, KSameEigen, KSamePixel, KSameSelect, classes, grouped
from anonymize.outlines import outline
from anonymize.recipe import Recipe
from anonymize.record import Face, Floats, Pixels
from anonymize.run import run
from anonymize.state import read_links

KEY = bytes(range(32))
NAMES = ["k-same-pixel", "k-same-eigen", "k-same-select"]


@pytest.fixture(scope="module")
def sample(people: Path) -> list[Job]:
    """Three aligned pictures of each of the 12 sample people."""
    detector, jobs = MTCNN(), []
    for person in sorted(people.iterdir()):
        for path in sorted(person.glob("*.jpg"))[:3]:
            image = read(path)
            face = by_subject(detector([image])[0], image.shape[:2])[0]
            face = outline(image, face, CROP_SIZE, "face")
            jobs.append(replace(stages.job(face, True), person=person.name))
    return jobs


def fitted(generator: Learner, jobs: list[Job]) -> Learner:
    generator.restore(generator.fit(iter(jobs)))
    return generator


def plain(person: str | None, level: int, seed: int = 0) -> Job:
    """A crop of one grey level."""
    crop = np.full((CROP_SIZE, CROP_SIZE, 3), level, np.uint8)
    face = Face(np.zeros(4, np.float32), 1.0, TEMPLATE, crop=crop)
    face = face.but(crop_from_image=np.eye(2, 3, dtype=np.float32))
    face = face.but(away=radius(TEMPLATE, CROP_SIZE))
    return replace(stages.job(face, True), person=person, seed=seed)


def levels(made: list[Pixels]) -> list[int]:
    """The grey level in the middle of each face."""
    return [int(crop[CROP_SIZE // 2, CROP_SIZE // 2].mean().round()) for crop in made]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("k", [2, 5])
def test_at_least_k_people_share_each_face_and_nobody_has_two(
    name: str, k: int, sample: list[Job]
) -> None:
    generator = fitted(registry.load("generator", name, k=k), sample)
    faces: dict[bytes, set[str | None]] = {}
    for job, made in zip(sample, generator(sample), strict=True):  # type: ignore[operator]
        faces.setdefault(made.tobytes(), set()).add(job.person)
    assert min(len(people) for people in faces.values()) >= k
    assert max(Counter(p for people in faces.values() for p in people).values()) == 1
    assert len(faces) > 1


def embedded(images: list[Pixels]) -> Floats:
    detector, embedder = MTCNN(), DlibEmbedder()
    marks = [by_subject(detector([i])[0], i.shape[:2])[0].landmarks for i in images]
    return embedder([chip(*pair) for pair in zip(images, marks, strict=True)])


def rank1(gallery: Floats, probes: Floats) -> float:
    """Share of probes whose nearest enrolled person, by mean-free distance, is at their index."""
    a, b = gallery - gallery.mean(0), probes - gallery.mean(0)
    nearest = np.linalg.norm(a[None] - b[:, None], axis=2).argmin(1)
    return float((nearest == np.arange(len(probes))).mean())


def test_a_recogniser_names_the_right_person_at_most_once_in_k(sample: list[Job]) -> None:
    """On the faces as made this is certain; it is the originals that show the recogniser works."""
    first, second = sample[::3], sample[1::3]
    enrolled = embedded([job.crop for job in first])
    assert rank1(enrolled, embedded([job.crop for job in second])) > 0.9
    for name in NAMES:
        generator = fitted(registry.load("generator", name, k=3), sample)
        made = generator(second)  # type: ignore[operator]
        assert rank1(enrolled, embedded(made)) <= 1 / 3


def test_released_pictures_are_found_about_once_in_k(tmp_path: Path, people: Path) -> None:
    """With what lies around the face, which k-Same does not hide."""
    summary = run(people, tmp_path / "release", recipe("k-same-pixel"), key=KEY)
    assert (summary.read, summary.written) == (72, 72)
    table = dict(read_links(tmp_path / "release"))
    names = sorted({Path(source).parent.name for source in table})
    pairs = [(f"{name}/0.jpg", table[f"{name}/3.jpg"]) for name in names]
    enrolled = embedded([read(people / source) for source, _ in pairs])
    released = embedded([read(tmp_path / "release" / output) for _, output in pairs])
    assert rank1(enrolled, released) <= 1 / 3 + 2 / 12  # two people more, by their hair
    described = json.loads((tmp_path / "release" / "run.json").read_text())
    assert described["label"] == KSamePixel.label != BASELINE_NOTE
    assert described["recipe"]["generator_options"] == {"k": 3}
    assert described["identities"]["people"] == 0


def recipe(generator: str, **options: object) -> Recipe:
    return Recipe(generator=generator, generator_options={"k": 3, **options})


def test_the_face_is_the_average_of_its_people_whatever_their_number_of_pictures() -> None:
    """Two groups of two; ten pictures of one person weigh as much as one of another."""
    jobs = [plain("a", 10), plain("b", 30), plain("c", 200), *[plain("d", 240)] * 10]
    generator = fitted(KSamePixel(k=2), jobs)
    assert levels(generator(jobs)) == [20, 20, 220, *[220] * 10]  # type: ignore[operator]


def test_the_last_group_takes_the_rest() -> None:
    rng = np.random.default_rng(0)
    groups = grouped(rng.normal(size=(23, 4)), 5)
    assert [len(rows) for rows in groups] == [5, 5, 5, 8]
    assert sorted(np.concatenate(groups).tolist()) == list(range(23))


def test_groups_are_greedy() -> None:
    """Each begins with the first row that is free and takes those nearest to it."""
    points = np.array([0, 50, 1, 52, 2, 51, 53.0])[:, None]
    assert [sorted(rows.tolist()) for rows in grouped(points, 3)] == [[0, 2, 4], [1, 3, 5, 6]]


def test_scenery_is_of_no_account() -> None:
    """What lies outside the region neither groups people nor gets into their face."""
    jobs = []
    for person, inside, outside in (("a", 10, 0), ("b", 30, 255), ("c", 200, 0), ("d", 220, 255)):
        one = plain(person, inside)
        crop = np.where(one.mask[..., None], one.crop, np.uint8(outside))
        jobs.append(replace(one, crop=crop))
    made = fitted(KSamePixel(k=2), jobs)(jobs)  # type: ignore[operator]
    assert levels(made) == [20, 20, 210, 210]
    well_inside = radius(TEMPLATE, CROP_SIZE) < 0.9
    assert max(int(np.ptp(crop[well_inside])) for crop in made) <= 1


def test_all_eigenfaces_give_what_pixels_give_and_few_do_not(sample: list[Job]) -> None:
    pixel = fitted(KSamePixel(k=3), sample)(sample)  # type: ignore[operator]
    whole = fitted(KSameEigen(k=3, components=12), sample)(sample)  # type: ignore[operator]
    few = fitted(KSameEigen(k=3, components=2), sample)(sample)  # type: ignore[operator]

    def gap(made: list[Pixels]) -> float:
        return max(float(np.abs(a.astype(int) - b).max()) for a, b in zip(pixel, made, strict=True))

    assert gap(whole) <= 1
    assert gap(few) > 5


def test_select_keeps_classes_apart(sample: list[Job]) -> None:
    """Two kinds, laid across what pixels would group: nobody shares a face with the other kind."""
    jobs = [plain(f"p{i:02}", 20 * i) for i in range(12)]
    generator = fitted(KSameSelect(k=3, by="test_ksame:odd"), jobs)
    made = generator(jobs)  # type: ignore[operator]
    even, uneven = ({m.tobytes() for m in made[start::2]} for start in (0, 1))
    assert not even & uneven
    assert len(even) == len(uneven) == 2
    together = fitted(KSamePixel(k=3), jobs)(jobs)  # type: ignore[operator]
    assert {m.tobytes() for m in together[::2]} & {m.tobytes() for m in together[1::2]}


def odd(job: Job) -> str:
    """A label function as a user would write one."""
    return "odd" if int((job.person or "p0")[1:]) % 2 else "even"


def test_select_by_the_cell_that_the_context_suggests(sample: list[Job]) -> None:
    """The cell is the bundled prior's guess; faces do not enter it."""
    generator = KSameSelect(k=2)
    hidden = [replace(j, crop=np.where(j.mask[..., None], np.uint8(0), j.crop)) for j in sample]
    kinds = [generator._kind(job) for job in sample]
    assert kinds == [generator._kind(job) for job in hidden]
    assert len(set(kinds)) > 1
    assert generator.hashes


def test_small_classes_are_joined() -> None:
    kinds = ["a"] * 7 + ["b"] * 2 + ["c"] + ["d"] * 4
    assert [rows.tolist() for rows in classes(kinds, 3)] == [
        [7, 8, 9],
        [10, 11, 12, 13],
        [0, 1, 2, 3, 4, 5, 6],
    ]
    assert [rows.tolist() for rows in classes(["x", "y"], 2)] == [[0, 1]]


def test_bystanders_get_the_face_of_a_group_by_the_key() -> None:
    jobs = [plain("a", 10), plain("b", 30), plain("c", 200), plain("d", 240)]
    generator = fitted(KSamePixel(k=2), jobs)
    strangers = [plain(None, 128, seed) for seed in range(8)]
    assert levels(generator(strangers)) == [20, 220] * 4  # type: ignore[operator]


def test_people_whom_it_never_saw_are_withheld_and_nothing_comes_before_fit() -> None:
    with pytest.raises(AssertionError, match="seen nobody"):
        KSamePixel()([plain("a", 1)])
    generator = fitted(KSamePixel(k=2), [plain("a", 10), plain("b", 30)])
    with pytest.raises(Withhold, match="in no group"):
        generator([plain("z", 1)])  # type: ignore[operator]


def test_memory_does_not_grow_with_pictures() -> None:
    """What is kept of a stream is one small array per person."""
    crops: list[weakref.ref[Pixels]] = []

    def stream() -> Iterator[Job]:
        for number in range(40):
            job = plain(f"p{number % 4}", 5 * number)
            crops.append(weakref.ref(job.crop))
            yield job
            assert sum(crop() is not None for crop in crops) <= 2

    learnt = KSamePixel(k=2).fit(stream())
    assert len(learnt) < 2 * 3 * SIDE * SIDE + 4000


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("k-same-pixel", {"k": 1}, "k = 1, expected a whole number from 2"),
        ("k-same-eigen", {"k": 2.5}, r"k = 2\.5"),
        ("k-same-eigen", {"components": 0}, "0 components"),
        ("k-same-eigen", {"components": 2.5}, r"2\.5 components"),
        ("k-same-select", {"by": "no.such.module:f"}, "expected cell or package"),
        ("k-same-select", {"by": "test_ksame:nothing"}, "expected cell or package"),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.load("generator", name, **options)


def test_fewer_than_k_people_are_refused(dataset: Path, tmp_path: Path) -> None:
    arguments = ["run", str(dataset), str(tmp_path / "release"), "--generator", "k-same-pixel"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "got 3 labelled people with a face, expected at least k = 10" in result.stderr
    assert not list((tmp_path / "release").rglob("*.*"))


def test_the_pictures_are_looked_at_with_progress(dataset: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int, int]] = []
    run(dataset, tmp_path / "r", recipe("k-same-pixel"), progress=lambda *line: told.append(line))
    assert [line for line in told if line[0] == "learn"] == [
        ("learn", n, 9, 0) for n in range(1, 10)
    ]


class Spy(Mask):
    """Notes whose face it is asked for."""

    asked: ClassVar[list[str | None]] = []

    def __call__(self, jobs: Sequence[Job]) -> list[Pixels]:
        Spy.asked += [job.person for job in jobs]
        return super().__call__(jobs)


def test_jobs_tell_subjects_from_bystanders(portrait: Pixels, people: Path, tmp_path: Path) -> None:
    """One handle in all pictures of a person, the released one; none for whoever else is there."""
    source = tmp_path / "people"
    for name in ("a", "b"):
        save(source / "someone" / f"{name}.png", bystanders(portrait, people))
    save(source / "nobody.png", portrait)
    run(source, tmp_path / "release", Recipe(generator="test_ksame:Spy"), key=KEY)
    (folder,) = (p.name for p in (tmp_path / "release").iterdir() if p.is_dir())
    assert Counter(Spy.asked) == {folder: 2, None: 3}


class Killed(BaseException):
    """Ends a run as a signal would: nothing catches it."""


def killing(phase: str, count: int) -> object:
    def progress(current: str, done: int, total: int, withheld: int) -> None:
        if (current, done) == (phase, count):
            raise Killed

    return progress


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_run_resumes_to_the_same_bytes(name: str, dataset: Path, tmp_path: Path) -> None:
    """Killed while it learns, and again after some pictures were written."""
    run(dataset, tmp_path / "calm", recipe(name), key=KEY, workers=2, batch_size=3)
    for phase, count, resume in (("learn", 5, False), ("replace", 5, True)):
        with pytest.raises(Killed):
            run(
                dataset,
                tmp_path / "killed",
                recipe(name),
                key=None if resume else KEY,
                batch_size=1,
                resume=resume,
                progress=killing(phase, count),  # type: ignore[arg-type]
            )
    run(dataset, tmp_path / "killed", recipe(name), resume=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "calm")


def test_a_resumed_run_does_not_group_people_again(dataset: Path, tmp_path: Path) -> None:
    """Some faces are out: whoever shares them must go on sharing them, whatever became of SRC."""
    release = tmp_path / "release"
    with pytest.raises(Killed):
        run(dataset, release, recipe("k-same-pixel"), key=KEY, progress=killing("replace", 8))  # type: ignore[arg-type]
    learnt = (tmp_path / "release.private" / "learnt").read_bytes()
    for path in sorted(dataset.glob("*/*.jpg"))[:3]:  # one of the people is somebody else now
        path.write_bytes(sorted(PEOPLE.glob("*/*.jpg"))[-1].read_bytes())
    run(dataset, release, recipe("k-same-pixel"), resume=True)
    assert (tmp_path / "release.private" / "learnt").read_bytes() == learnt
