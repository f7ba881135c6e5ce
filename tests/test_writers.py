"""Writers of what data sets are kept in: round trips, crashes, and bytes as others read them."""

from __future__ import annotations

import csv
import hashlib
import json
import pickle
import struct
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from test_formats import MAKERS, pairs

from anonymize import registry
from anonymize.images import decode, encode, padded
from anonymize.readers import open_source
from anonymize.recipe import Recipe
from anonymize.record import Record
from anonymize.release import opened, problems, rows, seal
from anonymize.run import Summary, run
from anonymize.state import State, private_folder, read_links
from anonymize.writers import FolderWriter, Growing, Writer

KEY = bytes(range(32))
FORMATS = sorted(registry.names("writer"))
READ_AS = {"manifest": "images.csv", "manifest-parquet": "images.parquet"}


def needs(name: str) -> None:
    if name in ("img2dataset", "manifest-parquet"):
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")


def released(source: Path, release: Path, name: str, **options: object) -> Summary:
    recipe = Recipe(generator="mask", writer=name)
    return run(source, release, recipe, key=KEY, **options)  # type: ignore[arg-type]


def groups(release: Path, name: str) -> set[frozenset[str]]:
    """The pictures of each person, by content, as a reader of the format finds them."""
    reader = open_source(release / READ_AS.get(name, ""))
    found = defaultdict(set)
    for item in reader:
        found[item.label].add(hashlib.sha256(reader.load(item.path)).hexdigest())
    return {frozenset(group) for group in found.values()}


def contents(release: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(release.rglob("*")) if path.is_file())
    return {path.relative_to(release).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def crowd(people: Path) -> list[tuple[str, bytes]]:
    """(person, picture) of three sample people with unequal numbers of pictures."""
    chosen = zip(sorted(people.iterdir())[:3], (4, 3, 2), strict=True)
    return [(p.name, f.read_bytes()) for p, n in chosen for f in sorted(p.glob("*.jpg"))[:n]]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", MAKERS)
def test_any_format_becomes_any_other(
    kind: str, name: str, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    needs(name)
    (tmp_path / "source").mkdir()
    source = MAKERS[kind](tmp_path / "source", crowd)
    summary = released(source, tmp_path / "release", name)
    expected = 8 if name == "verification-bin" else 9  # the ninth finds no partner
    assert (summary.read, summary.written) == (9, expected)
    assert not list(problems(tmp_path / "release"))
    listed = {row["sha256"] for row in rows(tmp_path / "release") if row["output"]}
    assert len(listed) == expected
    found = groups(tmp_path / "release", name)
    assert frozenset().union(*found) == listed
    if name != "verification-bin":
        assert sorted(map(len, found)) == [2, 3, 4]
    linked = read_links(tmp_path / "release")
    assert len({output for _, output in linked}) == expected
    everything = b"".join(contents(tmp_path / "release").values())
    for word in (b"person-0", b"m.00x", b"m.01x", b"example.org"):
        assert word not in everything


@pytest.mark.parametrize("name", FORMATS)
def test_a_release_cut_short_goes_on_to_the_same_bytes(
    name: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer dies after bytes were appended that the journal does not know of, then again
    while it completes the release."""
    needs(name)
    released(dataset, tmp_path / "whole", name)
    made: type[Writer] = registry.find("writer", name)[0]
    put, finish, left = made.put, made.finish, [5]

    def dies(self: Writer, *arguments: object) -> str:
        left[0] -= 1
        locator = put(self, *arguments)  # type: ignore[arg-type]
        if not left[0]:
            raise KeyboardInterrupt
        return locator

    def dies_last(self: Writer, *arguments: object) -> None:
        finish(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr("anonymize.run.COMMIT", 2)
    monkeypatch.setattr(made, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        released(dataset, tmp_path / "cut", name)
    state = State(private_folder(tmp_path / "cut"))
    assert state.count("output IS NOT NULL") == 4
    state.close()
    monkeypatch.setattr(made, "put", put)
    monkeypatch.setattr(made, "finish", dies_last)
    with pytest.raises(KeyboardInterrupt):
        released(dataset, tmp_path / "cut", name, resume=True)
    monkeypatch.undo()
    released(dataset, tmp_path / "cut", name, resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", FORMATS)
def test_altered_and_foreign_files_are_found_before_sealing(
    name: str, dataset: Path, tmp_path: Path
) -> None:
    needs(name)
    released(dataset, tmp_path / "release", name)
    names = ("manifest.jsonl", "run.json")
    largest = max(
        (p for p in (tmp_path / "release").rglob("*") if p.is_file() and p.name not in names),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    (tmp_path / "release" / "names.txt").write_text("somebody")
    found = "\n".join(problems(tmp_path / "release"))
    assert "names.txt: not in manifest.jsonl" in found
    assert f"{largest.relative_to(tmp_path / 'release').as_posix()}: differs" in found
    largest.unlink()
    assert "absent" in "\n".join(problems(tmp_path / "release"))


def test_records_are_as_insightface_packs_them(dataset: Path, tmp_path: Path) -> None:
    """Read by the description alone: index, header, ranges of identities, labels."""
    released(dataset, tmp_path / "release", "recordio")
    data = (tmp_path / "release" / "train.rec").read_bytes()
    index = dict(
        tuple(map(int, line.split("\t")))
        for line in (tmp_path / "release" / "train.idx").read_text().splitlines()
    )

    def record(key: int) -> tuple[int, tuple[float, float], float, int, bytes]:
        magic, length = struct.unpack_from("<II", data, index[key])
        assert magic == 0xCED7230A
        assert length >> 29 == 0
        body = data[index[key] + 8 : index[key] + 8 + length]
        flag, label, name, _ = struct.unpack_from("<IfQQ", body)
        extra = struct.unpack_from("<2f", body, 24) if flag == 2 else (0.0, 0.0)
        return flag, extra, label, name, body[24:]

    flag, (first, last), *_ = record(0)
    assert (flag, first, last) == (2, 10, 13)
    seen = []
    for identity in range(int(first), int(last)):
        flag, (start, end), *_, body = record(identity)
        assert flag == 2
        assert len(body) == 8
        labels = {record(key)[2] for key in range(int(start), int(end))}
        assert len(labels) == 1
        seen.append((start, end, labels.pop()))
    assert seen == [(1, 4, 0), (4, 7, 1), (7, 10, 2)]
    for key in range(1, 10):
        assert record(key)[3] == key
        assert decode(record(key)[4]).shape[2] == 3
    assert (tmp_path / "release" / "property").read_text() == "3,128,128\n"
    lines = (tmp_path / "release" / "train.lst").read_text().splitlines()
    assert [line.split("\t")[:2] for line in lines[:4]] == [
        ["1", "0"],
        ["2", "0"],
        ["3", "0"],
        ["4", "1"],
    ]


def test_shards_are_as_tarfile_reads_them(dataset: Path, tmp_path: Path) -> None:
    made = registry.find("writer", "webdataset")[0]
    before, made.SAMPLES = made.SAMPLES, 4
    try:
        released(dataset, tmp_path / "release", "webdataset")
    finally:
        made.SAMPLES = before
    names = sorted(p.name for p in (tmp_path / "release").glob("*.tar"))
    assert names == ["00000.tar", "00001.tar", "00002.tar"]
    keys = []
    for name in names:
        with tarfile.open(tmp_path / "release" / name) as tar:
            members = tar.getmembers()
            assert {(m.mtime, m.uid, m.uname) for m in members} == {(315_532_800, 0, "")}
            for member in members[::3]:
                keys.append(member.name.partition(".")[0])
                (text,) = [m for m in members if m.name == f"{keys[-1]}.cls"]
                assert tar.extractfile(text).read() in (b"0", b"1", b"2")  # type: ignore[union-attr]
    assert keys == sorted(keys)
    assert len(keys) == 9


def test_pairs_are_as_pickle_reads_them(people: Path, tmp_path: Path) -> None:
    """Mated pairs of a verification set stay mated, and as many stay non-mated."""
    chosen = sorted(people.iterdir())
    pictures = [sorted(p.glob("*.jpg")) for p in chosen[:6]]
    order = [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (5, 0)]
    crowd = [("", pictures[person][shot].read_bytes()) for person, shot in order]
    source = pairs(tmp_path, crowd)
    summary = released(source, tmp_path / "release", "verification-bin")
    assert summary.written == 8
    found, same = pickle.loads((tmp_path / "release" / "pairs.bin").read_bytes())
    assert [decode(data).shape for data in found] == [(128, 128, 3)] * 8
    assert sorted(same) == [False, False, True, True]


def test_tables_tell_nothing_of_the_source(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    source = MAKERS["tsv"](tmp_path, crowd)
    released(source, tmp_path / "release", "msceleb-tsv")
    lines = (tmp_path / "release" / "faces.tsv").read_bytes().splitlines()
    columns = [line.split(b"\t")[:6] for line in lines]
    assert {tuple(row[1:5]) for row in columns} == {(b"0", b"", b"", b"FaceId-0")}
    assert len({row[5] for row in columns}) == 1
    assert len({row[0] for row in columns}) == 3
    handles = [row["id"] for row in rows(tmp_path / "release")]
    assert handles == sorted(handles)


def test_flat_tables_name_every_picture(dataset: Path, tmp_path: Path) -> None:
    released(dataset, tmp_path / "release", "manifest")
    with (tmp_path / "release" / "images.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 9
    assert all((tmp_path / "release" / row["path"]).is_file() for row in table)
    assert len({row["identity"] for row in table}) == 3


def test_parquet_beside_shards(dataset: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    released(dataset, tmp_path / "release", "img2dataset")
    table = parquet.read_table(tmp_path / "release" / "00000.parquet").to_pydict()
    digests = {row["sha256"] for row in rows(tmp_path / "release")}
    assert set(table["sha256"]) == digests
    stats = json.loads((tmp_path / "release" / "00000_stats.json").read_text())
    assert stats["successes"] == 9


def test_unlabelled_pictures_stay_unlabelled(people: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number, path in enumerate(sorted(people.glob("*/*.jpg"))[::20]):
        (tmp_path / "flat" / f"{number}.jpg").write_bytes(path.read_bytes())
    for name in ("webdataset", "manifest"):
        released(tmp_path / "flat", tmp_path / name, name)
        reader = open_source(tmp_path / name / READ_AS.get(name, ""))
        assert {item.label for item in reader} == {None}


def test_sealing_a_container_checks_it(dataset: Path, tmp_path: Path) -> None:
    released(dataset, tmp_path / "release", "recordio")
    assert seal(tmp_path / "release") == 9
    assert not private_folder(tmp_path / "release").exists()
    reader = opened(tmp_path / "release")
    assert len(list(reader)) == 9


def test_growing_files_are_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"known and more")
    file = Growing(path, 5)
    assert file.append(b"!") == 5
    file.close()
    assert path.read_bytes() == b"known!"
    assert path.stat().st_mtime == 315_532_800


def test_photographs_go_round(lfw: Path, tmp_path: Path) -> None:
    """Every format is read and written once, each from the release before it."""
    pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    folders = [f for f in sorted(lfw.iterdir()) if f.is_dir() and len(list(f.iterdir())) > 1]
    for folder in folders[:8]:
        for path in sorted(folder.iterdir())[:3]:
            target = tmp_path / "folder" / folder.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    source = tmp_path / "folder"
    sizes = sorted(len(list(folder.iterdir())) for folder in source.iterdir())
    chain = [name for name in FORMATS if name not in ("folder", "verification-bin")]
    for name in [*chain, "folder", "verification-bin"]:
        # a touch of blur, because a masked face would not be found in the next format
        slight = {"generator": "blur", "generator_options": {"strength": 0.002}}
        summary = run(source, tmp_path / f"as-{name}", Recipe(**slight, writer=name), key=KEY)
        assert summary.read == sum(sizes)
        assert not list(problems(tmp_path / f"as-{name}"))
        found = groups(tmp_path / f"as-{name}", name)
        if name != "verification-bin":
            assert sorted(map(len, found)) == sizes
        source = tmp_path / f"as-{name}" / READ_AS.get(name, "")
    assert summary.written >= summary.read - 1


def test_the_file_that_was_verified_is_the_one_that_is_written(tmp_path: Path) -> None:
    """It is not encoded again, so nothing is published that was not looked at."""
    grey = np.full((9, 9, 3), 128, np.uint8)
    verified = encode(grey, "jpg", 50)
    record = Record("a", None, grey, output=grey, encoded=verified)
    locator, _ = FolderWriter(tmp_path / "release", tmp_path).write(record, "p")
    assert (tmp_path / "release" / locator).read_bytes() == padded(verified, "jpg")
