"""`anonymize run` end to end on generated people: the laws that every release must obey."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import save
from PIL import Image

from anonymize import identities, kept
from anonymize.cli import main
from anonymize.detectors import MTCNN
from anonymize.embedders import DlibEmbedder, chip
from anonymize.errors import ConfigError, ReleaseError, WeightsError
from anonymize.generators import Mask
from anonymize.images import read
from anonymize.readers import Folder
from anonymize.recipe import Recipe
from anonymize.record import Pixels
from anonymize.release import problems, seal
from anonymize.run import Summary, run
from anonymize.seeds import write_key
from anonymize.state import State, private_folder, read_links
from anonymize.writers import place

KEY = bytes(range(32))
MATCH = "output still matches its source"  # sample people are strangers, who sometimes look alike


def digests(release: Path) -> dict[str, str]:
    """SHA-256 of every file of a release, by path."""
    return {
        path.relative_to(release).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(release.rglob("*"))
        if path.is_file()
    }


def manifest(release: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (release / "manifest.jsonl").read_text().splitlines()]


def links(release: Path) -> dict[str, str]:
    return dict(read_links(release))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, people: Path) -> tuple[Path, Path, Summary]:
    """Four sample people, one stray file, and the release made of them."""
    base = tmp_path_factory.mktemp("released")
    source = base / "people"
    for person in sorted(people.iterdir())[:4]:
        for picture in sorted(person.glob("*.jpg"))[:3]:
            target = source / person.name / picture.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(picture.read_bytes())
    (source / "notes.txt").write_text("not a picture")
    save(source / "nobody" / "wall.png", np.full((80, 80, 3), 77, np.uint8))
    exif = Image.Exif()
    exif[271], exif[306] = "a camera that tells", "2003:04:05 06:07:08"
    first = sorted(source.glob("*/*.jpg"))[0]
    Image.open(first).save(first, quality=97, exif=exif, comment=b"taken by somebody")
    summary = run(source, base / "release", key=KEY)
    return source, base / "release", summary


def test_every_input_is_written_or_withheld(released: tuple[Path, Path, Summary]) -> None:
    _, release, summary = released
    assert summary.read == summary.written + summary.withheld == 13
    by_chance = summary.reasons.get(MATCH, 0)
    assert summary.reasons == {"no face found": 1} | ({MATCH: by_chance} if by_chance else {})
    assert by_chance <= 3
    assert summary.ignored["not a picture"] == 1
    rows = manifest(release)
    assert len(rows) == 13
    assert all((row["output"] is None) != (row["withheld"] is None) for row in rows)
    files = set(digests(release)) - {"manifest.jsonl", "run.json"}
    assert files == {row["output"] for row in rows if row["output"]}
    assert not list(problems(release))


def test_nothing_of_the_source_survives_in_the_release(
    released: tuple[Path, Path, Summary],
) -> None:
    source, release, _ = released
    words = {path.stem for path in source.rglob("*") if len(path.stem) > 1}
    assert {"person-00", "nobody", "wall"} <= words
    published = [p.read_bytes() for p in release.rglob("*.json*")]
    names = " ".join(digests(release))
    for word in words:
        assert word not in names
        assert not any(word.encode() in text for text in published)
    assert str(source).encode() not in b"".join(published)
    everything = b"".join(p.read_bytes() for p in release.rglob("*") if p.is_file())
    for telltale in (b"a camera that tells", b"2003:04:05", b"taken by somebody", b"Exif"):
        assert telltale not in everything
    times = {path.stat().st_mtime for path in release.rglob("*") if path.is_file()}
    assert times == {315_532_800}


def test_pictures_hold_no_metadata(released: tuple[Path, Path, Summary]) -> None:
    _, release, _ = released
    for path in release.rglob("*.jpg"):
        with Image.open(path) as picture:
            assert not picture.getexif()
            assert not {"exif", "icc_profile", "xmp", "comment", "photoshop"} & set(picture.info)


def test_one_person_becomes_one_other_person(released: tuple[Path, Path, Summary]) -> None:
    """Labels map one to one, new faces agree within a person and differ from their sources."""
    source, release, _ = released
    table = links(release)
    pairs = {(Path(s).parent.name, Path(o).parent.name) for s, o in table.items()}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) >= 3
    detector, embedder = MTCNN(), DlibEmbedder()

    def embedding(path: Path) -> np.ndarray:
        image = read(path)
        return embedder([chip(image, detector([image])[0][0].landmarks)])[0]

    limit = embedder.FMR[1e-3]
    new = {s: embedding(release / o) for s, o in table.items()}
    for s, made in new.items():
        assert np.linalg.norm(made - embedding(source / s)) > limit
    same = [
        np.linalg.norm(new[a] - new[b]) < embedder.FMR[1e-2]
        for a in new
        for b in new
        if a < b and Path(a).parent == Path(b).parent
    ]
    assert np.mean(same) > 0.8


def test_the_run_describes_itself(released: tuple[Path, Path, Summary]) -> None:
    _, release, summary = released
    described = json.loads((release / "run.json").read_text())
    assert described["schema"] == 1
    assert described["counts"]["written"] == summary.written
    assert described["recipe"]["generator"] == "inpaint"
    assert described["label"] == "anonymisation"
    assert described["identities"]["people"] == 4
    assert described["identities"]["too_close"] == 0
    assert any(name.endswith(".safetensors") for name in described["weights"])


def test_private_state_is_private(released: tuple[Path, Path, Summary]) -> None:
    _, release, _ = released
    private = private_folder(release)
    assert private.stat().st_mode & 0o777 == 0o700
    assert (private / "key").stat().st_mode & 0o077 == 0
    assert private.parent == release.parent


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (16, 1), (3, 2)])
def test_bytes_do_not_depend_on_batch_or_workers(
    released: tuple[Path, Path, Summary], tmp_path: Path, batch: int, workers: int
) -> None:
    source, release, _ = released
    run(source, tmp_path / "again", key=KEY, batch_size=batch, workers=workers)
    assert digests(tmp_path / "again") == digests(release)


def test_another_key_changes_every_name_and_face(
    released: tuple[Path, Path, Summary], tmp_path: Path
) -> None:
    source, release, _ = released
    run(source, tmp_path / "other")
    mine, other = digests(release), digests(tmp_path / "other")
    assert set(mine) & set(other) == {"manifest.jsonl", "run.json"}
    assert not set(mine.values()) & set(other.values())


def test_a_killed_run_resumes_to_the_same_bytes(
    released: tuple[Path, Path, Summary], tmp_path: Path
) -> None:
    """SIGKILL in the survey, while writing, and after: the release is that of a calm run."""
    source, release, _ = released
    write_key(tmp_path / "key", KEY)
    command = [
        sys.executable,
        "-m",
        "anonymize",
        "run",
        str(source),
        str(tmp_path / "release"),
        "--key-file",
        str(tmp_path / "key"),
        "--max-withheld",
        "1",
        "--batch-size",
        "1",
        "--workers",
        "1",
    ]
    kills, resume = 0, []
    for phase in ("survey:", "replace:", "replace:"):
        process = subprocess.Popen([*command, *resume], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(phase):
                process.send_signal(signal.SIGKILL)
                break
        kills += process.wait() == -signal.SIGKILL
        resume = ["--resume"]
    assert kills >= 2
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    assert digests(tmp_path / "release") == digests(release)


def heed_interrupts() -> None:
    """For a child: what a shell starts in the background ignores Ctrl-C, and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_interrupt_exits_130_and_says_how_to_go_on(dataset: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "anonymize", "run", str(dataset), str(tmp_path / "release")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stderr is not None
    assert any(line.startswith("survey:") for line in process.stderr)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130
    assert "--resume" in rest


def test_a_finished_run_resumes_to_its_summary(released: tuple[Path, Path, Summary]) -> None:
    source, release, summary = released
    assert run(source, release, resume=True) == summary


def test_resuming_with_another_recipe_or_key_is_refused(
    released: tuple[Path, Path, Summary],
) -> None:
    source, release, _ = released
    with pytest.raises(ConfigError, match="another recipe"):
        run(source, release, Recipe(quality=90), resume=True)
    with pytest.raises(ConfigError, match="another key"):
        run(source, release, key=bytes(32), resume=True)


def bystanders(portrait: Pixels, people: Path) -> Pixels:
    """Two people in one picture."""
    other = read(sorted(people.glob("*/*.jpg"))[-1])
    canvas = np.full((240, 500, 3), 120, np.uint8)
    canvas[:, :300] = portrait
    canvas[60 : 60 + other.shape[0], 330 : 330 + other.shape[1]] = other
    return canvas


def test_bystanders_are_replaced_too(portrait: Pixels, people: Path, tmp_path: Path) -> None:
    image = bystanders(portrait, people)
    save(tmp_path / "people" / "someone" / "group.png", image)
    summary = run(tmp_path / "people", tmp_path / "release", Recipe(format="png"), key=KEY)
    assert (summary.written, summary.faces_replaced) == (1, 2)
    (path,) = (tmp_path / "release").rglob("*.png")
    output, detector, embedder = read(path), MTCNN(), DlibEmbedder()
    for face in detector([image])[0]:
        made = min(detector([output])[0], key=lambda f: np.abs(f.landmarks - face.landmarks).mean())
        pair = embedder([chip(image, face.landmarks), chip(output, made.landmarks)])
        assert np.linalg.norm(pair[0] - pair[1]) > embedder.FMR[1e-3]


class Blind(MTCNN):
    """A detector that overlooks the right half of every picture."""

    def __call__(self, images):  # type: ignore[no-untyped-def]
        kept = [
            tuple(f for f in faces if f.box[0] < image.shape[1] / 2)
            for image, faces in zip(images, super().__call__(images), strict=True)
        ]
        return kept


def test_the_auditor_finds_what_the_detector_missed(
    portrait: Pixels, people: Path, tmp_path: Path
) -> None:
    image = bystanders(portrait, people)
    save(tmp_path / "people" / "someone" / "group.png", image)
    recipe = Recipe(detector="test_run:Blind", format="png")
    summary = run(tmp_path / "people", tmp_path / "release", recipe, key=KEY)
    assert (summary.written, summary.faces_replaced) == (1, 2)
    (path,) = (tmp_path / "release").rglob("*.png")
    assert (read(path)[:, 330:] != image[:, 330:]).any()


class Copy:
    """A generator that cheats: it gives back the face it was asked to replace."""

    name, size, baseline = "copy", 128, False
    prior, hashes = None, {}
    original: Pixels

    def __call__(self, jobs):  # type: ignore[no-untyped-def]
        return [Copy.original for _ in jobs]


def test_outputs_that_match_their_source_are_withheld(
    portrait: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification does not trust the generator."""
    from anonymize import aligners, identities, stages

    face = MTCNN()([portrait])[0][0]
    crop = aligners.align(portrait, face).crop
    assert crop is not None
    monkeypatch.setattr(Copy, "original", crop, raising=False)
    code = np.ones(128, np.float32)
    nobody = identities.Person(code, 0, 1, True)
    monkeypatch.setattr(identities, "invent", lambda *a, **_: dict.fromkeys(a[2], nobody))
    monkeypatch.setattr(stages, "invent", lambda *a, **_: dict.fromkeys(a[2], nobody))
    save(tmp_path / "people" / "someone" / "a.png", portrait)
    recipe = Recipe(generator="test_run:Copy", context_codes=False)
    summary = run(tmp_path / "people", tmp_path / "release", recipe, key=KEY)
    assert summary.written == 0
    assert summary.reasons == {MATCH: 1}
    assert not list((tmp_path / "release").rglob("*.jpg"))


class Second(Copy):
    """A generator whose first casting is the person replaced, and whose second is another."""

    prior = "invented below"
    crops: tuple[Pixels, Pixels]

    def __call__(self, jobs):  # type: ignore[no-untyped-def]
        return [Second.crops[int(job.code[0] > 1)] for job in jobs]


def test_new_people_who_look_like_the_old_are_cast_again(
    portrait: Pixels, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anonymize import aligners, identities

    images = [portrait, *(read(sorted(p.glob("*.jpg"))[0]) for p in sorted(people.iterdir()))]
    embeddings = DlibEmbedder()([chip(i, MTCNN()([i])[0][0].landmarks) for i in images])
    stranger = images[int(np.linalg.norm(embeddings - embeddings[0], axis=1).argmax())]
    found = [(image, MTCNN()([image])[0][0]) for image in (portrait, stranger)]
    crops = [aligners.align(*pair).crop for pair in found]
    monkeypatch.setattr(Second, "crops", crops, raising=False)
    castings = []

    def invent(*arguments: Any, casting: int = 0, **_: object) -> dict[str, identities.Person]:
        castings.append(casting)
        person = identities.Person(np.full(128, 1 + casting, np.float32), 0, 1, True)
        return dict.fromkeys(arguments[2], person)

    monkeypatch.setattr(identities, "invent", invent)
    save(tmp_path / "people" / "someone" / "a.png", portrait)
    recipe = Recipe(generator="test_run:Second", context_codes=False, format="png")
    summary = run(tmp_path / "people", tmp_path / "release", recipe, key=KEY)
    assert castings == [0, 1]
    assert summary.written == 1
    output = read(next((tmp_path / "release").rglob("*.png")))
    chips = [chip(i, MTCNN()([i])[0][0].landmarks) for i in (portrait, stranger, output)]
    old, other, new = DlibEmbedder()(chips)
    assert np.linalg.norm(new - other) < DlibEmbedder.FMR[1e-3] < np.linalg.norm(new - old)


class Grey(Copy):
    """A generator that draws nothing."""

    def __call__(self, jobs):  # type: ignore[no-untyped-def]
        return [np.full_like(job.crop, 128) for job in jobs]


class Broken(Copy):
    """A generator that fails."""

    def __call__(self, jobs):  # type: ignore[no-untyped-def]
        raise ArithmeticError("broken")


@pytest.mark.parametrize(
    ("generator", "reason"),
    [("Grey", "no usable face in the output"), ("Broken", "internal error (ArithmeticError)")],
)
def test_a_failing_generator_leaks_nothing(
    portrait: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generator: str, reason: str
) -> None:

    nobody = identities.Person(np.ones(128, np.float32), 0, 1, True)
    monkeypatch.setattr(identities, "invent", lambda *a, **_: dict.fromkeys(a[2], nobody))
    save(tmp_path / "people" / "someone" / "a.png", portrait)
    recipe = Recipe(generator=f"test_run:{generator}", context_codes=False)
    summary = run(tmp_path / "people", tmp_path / "release", recipe, key=KEY)
    assert summary.reasons == {reason: 1}
    assert set(digests(tmp_path / "release")) == {"manifest.jsonl", "run.json"}


class Moody(Mask):
    """A generator that fails now and then, by no fault of the picture."""

    error: Exception | None = None

    def __call__(self, jobs):  # type: ignore[no-untyped-def]
        if Moody.error is not None and any(job.seed % 2 for job in jobs):
            raise Moody.error
        return super().__call__(jobs)


def test_what_failed_by_no_fault_of_the_picture_can_be_tried_again(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(dataset / "nobody" / "wall.png", np.full((80, 80, 3), 77, np.uint8))
    recipe, release = Recipe(generator="test_run:Moody"), tmp_path / "release"
    run(dataset, tmp_path / "calm", recipe, key=KEY)
    monkeypatch.setattr(Moody, "error", MemoryError())
    first = run(dataset, release, recipe, key=KEY)
    assert set(first.reasons) == {"no face found", "out of memory"}
    written = outputs(release)
    monkeypatch.setattr(Moody, "error", ArithmeticError())
    second = run(dataset, release, recipe, retry=True)
    failed = first.reasons["out of memory"]
    assert second.reasons == {"no face found": 1, "internal error (ArithmeticError)": failed}
    assert outputs(release) == written
    monkeypatch.setattr(Moody, "error", None)
    assert run(dataset, release, recipe, resume=True) == second
    result = invoke("run", dataset, release, "--generator", "test_run:Moody", "--retry")
    assert result.exit_code == 0
    assert digests(release) == digests(tmp_path / "calm")


def test_only_finished_releases_that_can_grow_are_tried_again(
    dataset: Path, tmp_path: Path
) -> None:
    recipe = Recipe(generator="mask", writer="webdataset")
    run(dataset, tmp_path / "shards", recipe)
    with pytest.raises(ReleaseError, match="can grow"):
        run(dataset, tmp_path / "shards", recipe, retry=True)
    assert invoke("run", dataset, tmp_path / "none", "--retry").exit_code == 1
    assert invoke("run", dataset, tmp_path / "none", "--retry", "--resume").exit_code == 2


@pytest.mark.parametrize("generator", ["blur", "pixelate", "mask"])
def test_baselines_run_and_are_labelled(dataset: Path, tmp_path: Path, generator: str) -> None:
    result = invoke("run", dataset, tmp_path / "release", "--generator", generator)
    assert result.exit_code == 0, result.output
    assert "not anonymisation" in result.stderr
    described = json.loads((tmp_path / "release" / "run.json").read_text())
    assert described["label"].startswith("not anonymisation")
    assert described["counts"]["written"] == 9


def test_unlabelled_pictures_lie_at_the_top_each_as_its_own_person(
    people: Path, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    for index, path in enumerate(sorted(people.glob("*/0.jpg"))[:3]):
        (tmp_path / "flat" / f"{index}.jpg").write_bytes(path.read_bytes())
    summary = run(tmp_path / "flat", tmp_path / "release", key=KEY)
    assert summary.read == 3
    assert summary.people == summary.written == len(list((tmp_path / "release").glob("*.jpg")))
    assert summary.written >= 2


def test_limit_takes_a_keyed_sample(dataset: Path, tmp_path: Path) -> None:
    summary = run(dataset, tmp_path / "release", key=KEY, limit=4)
    assert summary.read == 4


def test_codes_can_be_drawn_blindly(dataset: Path, tmp_path: Path) -> None:
    summary = run(dataset, tmp_path / "release", Recipe(context_codes=False), key=KEY)
    assert summary.read == 9
    assert summary.written >= 6


# --- bad input -------------------------------------------------------------------------------


def test_bad_files_are_rows_with_reasons_and_never_written(dataset: Path, tmp_path: Path) -> None:
    from test_images import animated, huge_bmp

    good = sorted(dataset.glob("*/*.jpg"))[0].read_bytes()
    folder = dataset / "odd"
    folder.mkdir()
    bad = {
        "zero.jpg": b"",
        "cut.jpg": good[: len(good) // 3],
        "text.jpg": b"a shopping list",
        "huge.bmp": huge_bmp(),
        "moving.gif": animated(),
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    os.symlink(folder / "loop-b.jpg", folder / "loop-a.jpg")
    os.symlink(folder / "loop-a.jpg", folder / "loop-b.jpg")
    os.symlink(dataset, folder / "around")
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(good)
    mask = ("--generator", "mask")
    result = invoke("run", dataset, tmp_path / "release", "--json", *mask)
    assert result.exit_code == 3  # 7 of 17 withheld is more than --max-withheld
    summary = json.loads(result.stdout)
    assert summary["schema"] == 1
    assert (summary["read"], summary["written"], summary["withheld"]) == (17, 10, 7)
    assert summary["reasons"]["not a readable file"] == 2
    assert summary["ignored"]["folder link"] == 1
    assert invoke("run", dataset, tmp_path / "b", "--max-withheld", "0.5", *mask).exit_code == 0


@pytest.mark.parametrize(
    ("source", "release", "message"),
    [
        ("absent", "release", "expected a folder of pictures"),
        ("people", "people/inside", "inside each other"),
        ("people", ".", "inside each other"),
        ("people", "people", "inside each other"),
        ("empty", "release", "found no picture"),
    ],
)
def test_places_that_do_not_fit_exit_with_2(
    dataset: Path, source: str, release: str, message: str
) -> None:
    base = dataset.parent
    (base / "empty").mkdir()
    before = sorted(base.rglob("*"))
    result = invoke("run", base / source, base / release)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert sorted(base.rglob("*")) == before


def test_an_unknown_generator_leaves_nothing_behind(dataset: Path, tmp_path: Path) -> None:
    result = invoke("run", dataset, tmp_path / "release", "--generator", "nope")
    assert result.exit_code == 2
    assert "expected one of blur, hub, inpaint, k-same-eigen" in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"people"}


def test_weights_that_do_not_fit_leave_nothing_behind(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    recipe = Recipe(generator_options={"weights": str(tmp_path / "weights")})
    with pytest.raises(WeightsError, match="no SHA256SUMS"):
        run(dataset, tmp_path / "release", recipe)
    assert not private_folder(tmp_path / "release").exists()


def test_a_late_error_keeps_key_and_journal(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def fails(*_: object, **__: object) -> None:
        raise ConfigError("late")

    monkeypatch.setattr(identities, "invent", fails)
    with pytest.raises(ConfigError, match="late"):
        run(dataset, tmp_path / "release", key=KEY)
    monkeypatch.undo()
    state = State(private_folder(tmp_path / "release"))
    assert state.count("faces IS NOT NULL") == 9
    state.close()
    with pytest.raises(ReleaseError, match="not finished"):
        run(dataset, tmp_path / "release", retry=True)
    assert run(dataset, tmp_path / "release", resume=True).read == 9


def test_who_reads_links_leaves_a_run_alone(dataset: Path, tmp_path: Path) -> None:
    release = tmp_path / "release"
    run(dataset, release, Recipe(generator="mask"), key=KEY)
    half = private_folder(release) / "scratch" / "half"
    half.write_bytes(b"not yet moved to its place")
    assert read_links(release)
    assert half.exists()
    run(dataset, release, Recipe(generator="mask"), key=KEY, resume=True)
    assert not half.exists()


def test_a_full_destination_is_refused_and_untouched(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "thesis.txt").write_text("mine")
    for option in ([], ["--overwrite"]):
        result = invoke("run", dataset, tmp_path / "release", *option)
        assert result.exit_code == 1
        assert "not an empty folder" in result.stderr
    assert (tmp_path / "release" / "thesis.txt").read_text() == "mine"


def test_resume_and_overwrite(dataset: Path, tmp_path: Path) -> None:
    release = tmp_path / "release"
    assert invoke("run", dataset, release, "--resume").exit_code == 1
    assert invoke("run", dataset, release, "--resume", "--overwrite").exit_code == 2
    assert invoke("run", dataset, release, "--generator", "mask").exit_code == 0
    first = digests(release)
    assert "--resume" in invoke("run", dataset, release, "--generator", "mask").stderr
    assert invoke("run", dataset, release, "--generator", "mask", "--overwrite").exit_code == 0
    assert not set(digests(release)) & set(first) - {"manifest.jsonl", "run.json"}


def test_readers_survive_loops_and_count_what_they_pass_over(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.jpg").touch()
    (tmp_path / "y.JPEG").touch()
    (tmp_path / "readme").touch()
    os.symlink(tmp_path, tmp_path / "a" / "up")
    folder = Folder(tmp_path)
    assert [(s.path, s.label) for s in folder] == [("a/b/x.jpg", "a/b"), ("y.JPEG", None)]
    assert folder.ignored["folder link"] == 1
    assert folder.ignored["not a picture"] == 1


# --- links, seal, sheet ----------------------------------------------------------------------


@pytest.fixture
def masked(dataset: Path, tmp_path: Path) -> Path:
    """A quick release."""
    assert invoke("run", dataset, tmp_path / "release", "--generator", "mask").exit_code == 0
    return tmp_path / "release"


def test_links_are_csv(masked: Path, dataset: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke("links", masked).stdout)))
    assert len(rows) == 9
    assert all((dataset / r["source"]).is_file() for r in rows)
    assert all((masked / r["output"]).is_file() for r in rows)


def test_sealing_destroys_the_link(masked: Path) -> None:
    before = digests(masked)
    assert "9 pictures" in invoke("seal", masked).stdout
    assert not private_folder(masked).exists()
    after = digests(masked)
    assert after.pop("release.json")
    assert after == before
    for command in (["links", masked], ["seal", masked]):
        result = invoke(*command)
        assert result.exit_code == 1
        assert "sealed already" in result.stderr


def with_comment(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xfe\x00\x06me!!" + data[2:])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: next(r.rglob("*.jpg")).unlink(), "absent"),
        (lambda r: (r / "extra.jpg").write_bytes(b"x"), "not in manifest.jsonl"),
        (lambda r: with_comment(next(r.rglob("*.jpg"))), "differs"),
        (lambda r: os.symlink("/", r / "root"), "a link"),
        (lambda r: (r / "manifest.jsonl").unlink(), "no finished release"),
    ],
)
def test_a_release_with_problems_is_not_sealed(masked: Path, damage: object, message: str) -> None:
    damage(masked)  # type: ignore[operator]
    with pytest.raises(ReleaseError, match=message):
        seal(masked)
    assert (private_folder(masked) / "key").exists()


def test_sheet_shows_pairs(masked: Path, dataset: Path, tmp_path: Path) -> None:
    assert invoke("sheet", dataset, masked, tmp_path / "s.png", "--pairs", "5").exit_code == 0
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.size == (4 * 2 * 160, 2 * 160)


def test_an_interrupted_release_is_not_sealed(dataset: Path, tmp_path: Path) -> None:
    State(tmp_path / "release.private", KEY).close()
    with pytest.raises(ReleaseError, match="not finished"):
        seal(tmp_path / "release")


def test_key_files_are_made_once_and_used_again(dataset: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    for name in ("a", "b"):
        result = invoke("run", dataset, tmp_path / name, "--generator", "mask", "--key-file", key)
        assert result.exit_code == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


# --- the rest of the command line ------------------------------------------------------------


def test_doctor_and_list() -> None:
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    assert all(check["good"] for check in json.loads(result.stdout)["checks"])
    assert "inpaint" in invoke("list", "generator").stdout
    assert invoke("list", "nonsense").exit_code == 2


def test_progress_lines_go_to_stderr_and_results_to_stdout(dataset: Path, tmp_path: Path) -> None:
    result = invoke("run", dataset, tmp_path / "release", "--generator", "mask")
    assert "replace: 9 of 9, 0 withheld" in result.stderr
    assert "written        9" in result.stdout
    assert "replace:" not in result.stdout


def test_a_run_outlives_whoever_reads_its_progress(dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "anonymize", "run", dataset, tmp_path / "release"]
    process = subprocess.Popen([*command, "--generator", "mask"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait(300) == 0
    assert len((tmp_path / "release" / "manifest.jsonl").read_text().splitlines()) == 9


def test_thousands_of_files_are_enrolled(tmp_path: Path) -> None:
    """Listing and journalling, not decoding."""
    for person in range(20):
        folder = tmp_path / "src" / str(person)
        folder.mkdir(parents=True)
        for picture in range(250):
            (folder / f"{picture}.png").touch()
    summary = run(tmp_path / "src", tmp_path / "release", Recipe(generator="mask"))
    assert (summary.read, summary.withheld) == (5000, 5000)
    assert summary.reasons == {"file is empty": 5000}


def test_photographs(lfw: Path, tmp_path: Path) -> None:
    """Real photographs: nearly all are written, none matches its source."""
    people = [p for p in sorted(lfw.iterdir()) if len(list(p.iterdir())) > 2][:60:5]
    for person in people:
        (tmp_path / "src" / person.name).mkdir(parents=True)
        for picture in sorted(person.iterdir())[:3]:
            os.symlink(picture, tmp_path / "src" / person.name / picture.name)
    summary = run(tmp_path / "src", tmp_path / "release", key=KEY, workers=2)
    assert summary.read == 36
    assert summary.written >= 35


def invoke_run(source: Path, release: Path, *options: object) -> Result:
    return invoke("run", source, release, "--max-withheld", "1", *options)


def outputs(release: Path) -> dict[str, str]:
    return {name: d for name, d in digests(release).items() if name.endswith(".jpg")}


def test_people_of_a_kept_key_stay_whoever_comes_or_goes(people: Path, tmp_path: Path) -> None:
    """Opt-outs, additions and re-issues change no other byte."""
    source, key = tmp_path / "people", tmp_path / "key"
    for person in sorted(people.iterdir())[:4]:
        for picture in sorted(person.glob("*.jpg"))[:3]:
            save(source / person.name / picture.name, read(picture), "jpg")
    names = sorted(path.name for path in (source / "person-00").iterdir())
    late = sorted(source.iterdir())[3]
    late.rename(tmp_path / "late")
    (source / "person-00" / names[2]).rename(tmp_path / "late.jpg")
    assert invoke_run(source, tmp_path / "first", "--key-file", key).exit_code == 0
    before = outputs(tmp_path / "first")

    (tmp_path / "leave").write_text("# asked on Monday\nperson-01\nnobody\n")
    without = invoke_run(
        source, tmp_path / "second", "--key-file", key, "--exclude", tmp_path / "leave"
    )
    assert "1: excluded label that is not in SRC" in without.stdout
    gone = {out for src, out in links(tmp_path / "first").items() if src.startswith("person-01")}
    assert gone
    assert outputs(tmp_path / "second") == {k: v for k, v in before.items() if k not in gone}
    assert {row["withheld"] for row in manifest(tmp_path / "second")} >= {"excluded"}

    (tmp_path / "late").rename(late)
    (tmp_path / "late.jpg").rename(source / "person-00" / names[2])
    grown = invoke("add", source, tmp_path / "first", "--key-file", key)
    assert grown.exit_code == 0, grown.stderr
    after = outputs(tmp_path / "first")
    assert before.items() <= after.items()
    assert not list(problems(tmp_path / "first"))
    linked = links(tmp_path / "first")
    assert {Path(o).parent for s, o in linked.items() if s.startswith("person-00")} == {
        Path(linked[f"person-00/{names[0]}"]).parent
    }
    assert len(manifest(tmp_path / "first")) == 12
    invoke_run(source, tmp_path / "third", "--key-file", key)
    assert outputs(tmp_path / "third") == after


def test_what_cannot_grow_says_so(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path / "tar", Recipe(generator="mask", writer="webdataset"), key=KEY)
    with pytest.raises(ReleaseError, match="the same --key-file"):
        run(dataset, tmp_path / "tar", add=True)
    run(dataset, tmp_path / "folder", Recipe(generator="mask"), key=KEY)
    before = digests(tmp_path / "folder")
    assert run(dataset, tmp_path / "folder", add=True).read == 9
    assert digests(tmp_path / "folder") == before


def test_kept_people_belong_to_their_weights(tmp_path: Path) -> None:
    person = identities.Person(np.ones(128, np.float32), 0, 1, True)
    kept.keep(tmp_path / "people", "one", {"p": person})
    kept.keep(tmp_path / "people", "one", {"p": identities.Person(-person.code, 1, 2, False)})
    assert (kept.load(tmp_path / "people", "one")["p"].code == 1).all()
    assert (tmp_path / "people").stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="other weights"):
        kept.load(tmp_path / "people", "two")
    (tmp_path / "damaged").write_text("nothing")
    with pytest.raises(ConfigError, match="does not hold"):
        kept.load(tmp_path / "damaged", "one")
    assert kept.load(tmp_path / "absent", "one") == {}


def test_an_exclude_list_without_labels_is_refused(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "leave").write_text("# nobody yet\n")
    result = invoke_run(dataset, tmp_path / "release", "--exclude", tmp_path / "leave")
    assert result.exit_code == 2
    assert "got no label" in result.stderr
    assert not private_folder(tmp_path / "release").exists()


def test_heads_can_be_published_without_their_pictures(portrait: Pixels, tmp_path: Path) -> None:
    """Pictures of all sizes become squares of one, in which the new face is found."""
    for number, pad in enumerate((0, 17, 40)):
        wide = np.pad(portrait, ((0, pad), (0, 2 * pad), (0, 0)), mode="edge")
        save(tmp_path / "people" / "someone" / f"{number}.png", wide)
    recipe = Recipe(crop=160)
    summary = run(tmp_path / "people", tmp_path / "release", recipe, key=KEY)
    assert summary.written
    for path in (tmp_path / "release").rglob("*.jpg"):
        head = read(path)
        assert head.shape == (160, 160, 3)
        assert MTCNN()([head])[0]
    with pytest.raises(ConfigError, match="crop: got 7"):
        Recipe(crop=7)


def test_a_dry_run_estimates_and_leaves_nothing(people: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(people.glob("*/*.jpg"))[:6]):
        save(tmp_path / "people" / f"p{number % 2}" / f"{number}.png", read(path))
    save(tmp_path / "people" / "p0" / "wall.png", np.full((80, 80, 3), 77, np.uint8))
    arguments = ["run", tmp_path / "people", tmp_path / "release", "--generator", "mask"]
    result = invoke(*arguments, "--dry-run", "--json")
    found = json.loads(result.stdout)
    assert (found["pictures"], found["sample"]) == (7, 7)
    assert found["reasons"] == {"no face found": 1}
    assert found["withheld_low"] < found["withheld"] == 1 / 7 < found["withheld_high"]
    assert {path.name for path in tmp_path.iterdir()} == {"people"}
    assert invoke(*arguments, "--max-withheld", "1").exit_code == 0
    size = sum(p.stat().st_size for p in (tmp_path / "release").rglob("*") if p.is_file())
    assert abs(found["bytes"] - size) < 0.1 * size
    text = invoke(*arguments[:3], "--generator", "mask", "--dry-run").stdout
    assert "7, of which 7 were tried" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_being_told_to_stop_ends_resumably(number: int, dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "anonymize", "run", dataset, tmp_path / "release"]
    process = subprocess.Popen(
        [*map(str, command), "--batch-size", "1", "--workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("survey: 9"):
            process.send_signal(number)
        if "--resume goes on" in line:
            break
    process.stderr.close()
    assert process.wait() == 130
    assert run(dataset, tmp_path / "release", resume=True).read == 9
    assert not list(problems(tmp_path / "release"))


def test_a_full_disk_loses_nothing(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(generator="mask")
    run(dataset, tmp_path / "whole", recipe, key=KEY)
    left = [4]

    def full(*arguments: Any) -> str:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[1]))
        return place(*arguments)

    monkeypatch.setattr("anonymize.writers.place", full)
    result = invoke("run", dataset, tmp_path / "release", "--generator", "mask", "--workers", "1")
    assert result.exit_code == 1
    assert "No space left on device" in result.stderr
    monkeypatch.undo()
    run(dataset, tmp_path / "release", recipe, resume=True)
    assert not list(problems(tmp_path / "release"))
    assert len(outputs(tmp_path / "release")) == 9


@pytest.mark.parametrize(
    ("generator", "detector", "looks"),
    [("inpaint", "mtcnn", 2), ("blur", "mtcnn", 1), ("blur", "aligned", 1)],
)
def test_the_first_detector_looks_twice_where_there_is_something_new(
    generator: str,
    detector: str,
    looks: int,
    portrait: Pixels,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save(tmp_path / "people" / "someone" / "a.png", portrait)
    seen, search = [], MTCNN.__call__
    monkeypatch.setattr(MTCNN, "__call__", lambda *a: seen.extend(a[1]) or search(*a))
    recipe = Recipe(generator=generator, detector=detector)
    assert run(tmp_path / "people", tmp_path / "release", recipe, key=KEY).read == 1
    assert len(seen) == looks
