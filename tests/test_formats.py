"""Readers of what leaked datasets are kept in: bytes built by hand, damaged ones, hostile ones."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import tarfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymize.cli import main
from anonymize.errors import ConfigError, Withhold
from anonymize.images import encode
from anonymize.lists import Clean
from anonymize.readers import DamagedError, Reader, open_source, sniff
from anonymize.recipe import Recipe
from anonymize.recordio import HEADER, MAGIC, label, packed, parts, payload
from anonymize.run import run

MID = "m.0107_f"


@pytest.fixture(scope="module")
def crowd(people: Path) -> list[tuple[str, bytes]]:
    """(person, picture) of three sample people."""
    chosen = sorted(people.iterdir())[:3]
    return [(p.name, f.read_bytes()) for p in chosen for f in sorted(p.glob("*.jpg"))[:3]]


def record(data: bytes) -> bytes:
    """One whole record, from the description and without the writer."""
    return struct.pack("<II", 0xCED7230A, len(data)) + data + b"\0" * (-len(data) % 4)


def rec(folder: Path, crowd: list[tuple[str, bytes]], header: bool = True) -> Path:
    """InsightFace's layout: key 0, pictures, identity records."""
    names = sorted({name for name, _ in crowd})
    first = len(crowd) + 1
    data = b""
    if header:
        data += record(struct.pack("<IfQQ", 2, 0, 0, 0) + struct.pack("<ff", first, first + 3))
    for number, (name, picture) in enumerate(crowd, 1):
        if number % 2:
            data += record(struct.pack("<IfQQ", 0, names.index(name), number, 0) + picture)
        else:  # several labels, the first of which is the person
            words = struct.pack("<IfQQ", 2, 0, number, 0)
            data += record(words + struct.pack("<ff", names.index(name), 7.5) + picture)
    if header:
        for number in range(3):
            words = struct.pack("<IfQQ", 2, 0, first + number, 0)
            data += record(words + struct.pack("<ff", 3 * number + 1, 3 * number + 4))
    path = folder / "train.rec"
    path.write_bytes(data)
    return path


def tsv(folder: Path, crowd: list[tuple[str, bytes]], columns: int = 7) -> Path:
    names = sorted({name for name, _ in crowd})
    rows = []
    for number, (name, picture) in enumerate(crowd):
        who, data = f"m.0{names.index(name)}x".encode(), base64.b64encode(picture)
        box = base64.b64encode(struct.pack("<4f", 0.1, 0.2, 0.8, 0.9))
        url = b"http://example.org/someone.jpg"
        seven = [who, b"%d" % number, url, url, b"FaceId-0", box, data]
        rows.append(b"\t".join(seven if columns == 7 else [*seven[:1], b"N", *seven[1:4], data]))
    path = folder / "FaceImageCroppedWithAlignment.tsv"
    path.write_bytes(b"\n".join(rows) + b"\n")
    return path


def shards(folder: Path, crowd: list[tuple[str, bytes]]) -> Path:
    target = folder / "shards"
    target.mkdir()
    for shard in range(2):
        with tarfile.open(target / f"{shard:05}.tar", "w") as tar:
            for number, (name, picture) in list(enumerate(crowd))[shard::2]:
                side = ("cls", name.encode()), ("json", json.dumps({"identity": name}).encode())
                for suffix, data in (("jpg", picture), side[number % 2]):
                    info = tarfile.TarInfo(f"{number:09}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return target


def table(folder: Path, crowd: list[tuple[str, bytes]]) -> Path:
    lines = ["path,identity"]
    for number, (name, picture) in enumerate(crowd):
        (folder / f"{number}.jpg").write_bytes(picture)
        lines.append(f"{number}.jpg,{name}")
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def pairs(folder: Path, crowd: list[tuple[str, bytes]], protocol: int = 4) -> Path:
    pictures = [picture for _, picture in crowd[:8]]
    path = folder / "lfw.bin"
    path.write_bytes(pickle.dumps((pictures, [True, False, True, False]), protocol))
    return path


MAKERS = {"rec": rec, "tsv": tsv, "tar": shards, "csv": table}


@pytest.mark.parametrize("kind", MAKERS)
def test_readers_find_every_picture_and_its_person(
    kind: str, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    reader = open_source(MAKERS[kind](tmp_path, crowd))
    found = list(reader)
    assert [reader.load(item.path) for item in found] == [picture for _, picture in crowd] or (
        kind == "tar" and {reader.load(i.path) for i in found} == {p for _, p in crowd}
    )
    groups = Counter(item.label for item in found)
    assert sorted(groups.values()) == [3, 3, 3]
    by_picture = {reader.load(item.path): item.label for item in found}
    together = {frozenset(by_picture[p] for n, p in crowd if n == name) for name, _ in crowd}
    assert all(len(labels) == 1 for labels in together)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_verification_sets_are_read_without_running_them(
    protocol: int, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    if protocol == 2:  # Python 2's own: byte strings
        data = [p for _, p in crowd[:4]]
        body = b"".join(b"T" + struct.pack("<I", len(p)) + p for p in data)
        path = tmp_path / "old.bin"
        path.write_bytes(b"\x80\x02](" + body + b"e](\x88\x89e\x86.")
        expected = data
    else:
        path, expected = pairs(tmp_path, crowd, protocol), [p for _, p in crowd[:8]]
    reader = open_source(path)
    found = list(reader)
    assert [reader.load(item.path) for item in found] == expected
    assert found[0].label == found[1].label
    assert found[2].label != found[3].label


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch /tmp/anonymize-was-here",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_refused(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "lfw.bin"
    path.write_bytes(pickle.dumps(([b"a", Hostile()], [True]), protocol))
    with pytest.raises(ConfigError, match="not a verification set"):
        list(open_source(path))
    assert not Path("/tmp/anonymize-was-here").exists()


def test_magic_numbers_inside_records_are_cut_out_and_put_back(tmp_path: Path) -> None:
    magic = struct.pack("<I", MAGIC)
    data = HEADER.pack(0, 3, 1, 0) + b"1234" + magic + b"56789" + magic + b"x" * 8 + magic + magic
    path = tmp_path / "a.rec"
    path.write_bytes(packed(data) + packed(b"plain" * 6))
    # the description, byte for byte: first part up to the magic, which is left out
    raw = path.read_bytes()
    assert struct.unpack("<II", raw[:8]) == (MAGIC, 1 << 29 | 28)
    with path.open("rb") as file:
        found = list(parts(file))
        assert [payload(file, part) for part in found] == [data, b"plain" * 6]
        assert [part.size for part in found] == [len(data), 30]


@given(st.binary(max_size=200), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_record_round_trip(data: bytes, at: int) -> None:
    """Any bytes, with the magic number anywhere."""
    data = data[:at] + struct.pack("<I", MAGIC) + data[at:]
    with Held(packed(data)).real() as stored:
        (part,) = parts(stored)
        assert payload(stored, part) == data
        assert part.head == data[: len(part.head)]


class Held(io.BytesIO):
    """Bytes that can be opened as a real file: readers ask the system for its length."""

    def real(self):  # type: ignore[no-untyped-def]
        import tempfile

        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        file.write(self.getvalue())
        file.seek(0)
        return file


def broken(data: bytes, how: str) -> bytes:
    second = data.index(struct.pack("<I", MAGIC), 8)
    if how == "truncated":
        return data[:-100]
    if how == "flipped":
        return data[:second] + bytes([data[second] ^ 1]) + data[second + 1 :]
    return data[: second + 4] + struct.pack("<I", (1 << 28) + 5) + data[second + 8 :]


@pytest.mark.parametrize("how", ["truncated", "flipped", "lying"])
def test_damaged_records_name_their_place_or_are_skipped(
    how: str, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    path = rec(tmp_path, crowd, header=False)
    path.write_bytes(broken(path.read_bytes(), how))
    with pytest.raises(ConfigError, match=r"byte \d+: .*--skip-bad"):
        list(open_source(path))
    reader = open_source(path, skip_bad=True)
    assert len(list(reader)) == len(crowd) - 1
    assert reader.ignored["damaged record"] == 1


def test_parts_out_of_order_are_damage(tmp_path: Path) -> None:
    for kinds in ([2], [1, 0], [1], [3], [5]):
        data = b"".join(struct.pack("<II", MAGIC, kind << 29 | 4) + b"abcd" for kind in kinds)
        (tmp_path / "a.rec").write_bytes(data)
        with (tmp_path / "a.rec").open("rb") as file, pytest.raises(DamagedError):
            list(parts(file))


@given(st.binary(max_size=64))
def test_labels_of_any_bytes_are_found_or_refused(head: bytes) -> None:
    with suppress(ValueError, struct.error):
        _, begin = label(head, len(head))
        assert HEADER.size <= begin <= len(head)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_readers_survive_any_damage(data: st.DataObject) -> None:
    """Flip, cut or insert anywhere: pictures, a reason or a clear error, never anything else."""
    import tempfile

    crowd = [(f"p{i % 2}", bytes([i]) * 40) for i in range(8)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind = data.draw(st.sampled_from(["rec", "tsv", "tar", "bin", "csv"]))
        made = {**MAKERS, "bin": pairs}[kind](folder, crowd)
        path = sorted(made.glob("*.tar"))[0] if kind == "tar" else made
        raw = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(raw) - 1))
            how = data.draw(st.sampled_from(["flip", "cut", "insert"]))
            if how == "flip":
                raw[at] ^= data.draw(st.integers(1, 255))
            elif how == "cut":
                del raw[at : at + data.draw(st.integers(1, 30))]
            else:
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=12))
            if not raw:
                break
        path.write_bytes(raw)
        skip = {"skip_bad": True} if kind in ("rec", "tsv") and data.draw(st.booleans()) else {}
        with suppress(ConfigError):
            reader: Reader = open_source(made, **skip)
            for item in reader:
                with suppress(Withhold):
                    assert len(reader.load(item.path)) <= len(raw) + 400


def test_tables_of_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "Top1M_MidList.Name.tsv"
    path.write_text('m.0107_f\t"Somebody"@en\nm.0107_f\t"Jemand"@de\n')
    with pytest.raises(ConfigError, match="names"):
        list(open_source(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"a\tb\n", "got 2 columns"),
        (b"\t".join([b"x" * 3] * 7) + b"\n", "no Freebase MID"),
        (b"m.01\t" + b"\t".join([b"x"] * 6) + b"\n", "FaceId"),
    ],
)
def test_other_tables_say_what_does_not_fit(row: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(row)
    with pytest.raises(ConfigError, match=message):
        list(open_source(tmp_path / "a.tsv"))


def test_thumbnails_have_six_columns(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    reader = open_source(tsv(tmp_path, crowd, 6))
    assert [reader.load(i.path) for i in reader] == [picture for _, picture in crowd]


def test_bad_base64_withholds_one_picture(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    path = tsv(tmp_path, crowd)
    lines = path.read_bytes().splitlines()
    lines[1] = lines[1][:-8] + b"!!!!!!!!"
    path.write_bytes(b"\n".join(lines))
    reader = open_source(path)
    found = list(reader)
    with pytest.raises(Withhold, match="damaged"):
        reader.load(found[1].path)
    assert reader.load(found[2].path) == crowd[2][1]


def test_formats_are_sniffed(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    assert sniff(shards(tmp_path, crowd)) == "webdataset"
    assert sniff(tmp_path) == "folder"
    assert sniff(rec(tmp_path, crowd)) == "recordio"
    assert sniff(tmp_path) == "recordio"
    with pytest.raises(ConfigError, match="expected a folder"):
        sniff(tmp_path / "nothing")
    (tmp_path / "a.zip").touch()
    with pytest.raises(ConfigError, match=r"got a \.zip file"):
        sniff(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", MAKERS)
def test_every_format_makes_the_same_people(
    kind: str, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    """Read, anonymised and written: nine pictures of three pseudonyms, nothing of the source."""
    made = MAKERS[kind](tmp_path, crowd)
    summary = run(made, tmp_path / "release", Recipe(generator="mask"))
    assert (summary.read, summary.written, summary.people) == (9, 9, 3)
    text = (tmp_path / "release" / "manifest.jsonl").read_text()
    assert "m.0" not in text
    assert not any(name in text for name, _ in crowd)


def test_a_damaged_file_stops_before_anything_is_written(
    crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    path = rec(tmp_path, crowd)
    path.write_bytes(broken(path.read_bytes(), "flipped"))
    command = ["run", str(path), str(tmp_path / "release"), "--generator", "mask"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    assert "--skip-bad" in refused.output
    assert not (tmp_path / "release").exists()
    done = CliRunner().invoke(main, [*command, "--skip-bad"])
    assert done.exit_code == 0, done.output
    assert "damaged record" in done.output


def test_parquet_tables(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow.parquet import write_table

    table(tmp_path, crowd)
    columns = {"path": [f"{i}.jpg" for i in range(9)], "identity": [n for n, _ in crowd]}
    write_table(arrow.table(columns), tmp_path / "list.parquet")
    reader = open_source(tmp_path / "list.parquet")
    assert [reader.load(i.path) for i in reader] == [picture for _, picture in crowd]
    (tmp_path / "bad.parquet").write_bytes(encode(np.zeros((4, 4, 3), np.uint8)))
    with pytest.raises(ConfigError, match="not a Parquet"):
        list(open_source(tmp_path / "bad.parquet"))


def test_numbers_name_people_exactly(tmp_path: Path) -> None:
    """Labels above a million, which short notations run together."""
    from anonymize.recordio import number

    numbers = [0.0, 1.0, 1_234_565.0, 1_234_574.0, 2_000_001.0, 0.5]
    assert len({number(value) for value in numbers}) == len(numbers)
    assert number(-0.0) == number(0.0)
    for bad in (float("nan"), float("inf"), 2.0**25):
        with pytest.raises(ValueError, match="exactly"):
            label(struct.pack("<IfQQ", 0, bad, 1, 0) + b"x", 25)


def tar_of(tmp_path: Path, files: list[tuple[str, bytes]]) -> Path:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_labels_of_samples_have_an_order(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path,
        [
            ("0.jpg", b"a"),
            ("0.cls", b"bob"),
            ("0.txt", b"a caption"),
            ("1.jpg", b"b"),
            ("1.json", b'{"identity": null, "label": 7}'),
            ("2.jpg", b"c"),
            ("2.cls", "José".encode("latin-1")),
            ("3.jpg", b"d"),
            ("3.cls", "Josè".encode("latin-1")),
            ("4.jpg", b"e"),
            ("4.json", b"[" * 100_000),
        ],
    )
    labels = [item.label for item in open_source(path)]
    assert labels[:2] == ["bob", "7"]
    assert labels[2] != labels[3]
    assert labels[4] is None


@pytest.mark.parametrize("long", [False, True])
def test_long_names_and_pax_headers(long: bool, tmp_path: Path) -> None:
    path, name = tmp_path / "a.tar", "d/" * 80 + "0.jpg"
    kind = tarfile.GNU_FORMAT if long else tarfile.PAX_FORMAT
    with tarfile.open(path, "w", format=kind) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    reader = open_source(path)
    (item,) = reader
    assert reader.load(item.path) == b"abc"


def test_damaged_tars_lose_nothing_silently(tmp_path: Path) -> None:
    path = tar_of(tmp_path, [(f"{i}.jpg", b"x" * 100) for i in range(10)])
    whole = path.read_bytes()
    negative = bytearray(whole)
    negative[124:136] = b"\xff" * 11 + b"\x00"
    negative[148:156] = b" " * 8
    negative[148:155] = b"%06o\0" % sum(negative[:512])
    cases = [
        whole[: 3 * 1024] + b"\1" + whole[3 * 1024 + 1 :],  # a header's bit
        whole[: 5 * 1024 + 512 + 50],  # cut within a member
        whole + whole,  # another file behind it
        bytes(negative),  # a negative size, which loops for ever elsewhere
    ]
    for data in cases:
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"byte \d+"):
            list(open_source(path))
        assert len(list(open_source(path, skip_bad=True))) < 20


def test_lengths_beyond_the_file_do_not_fill_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x80\x04(]\x8e" + struct.pack("<Q", 1 << 62) + b"aa")
    with pytest.raises(ConfigError, match="claimed"):
        list(open_source(path))


def test_tables_cannot_reach_outside_their_folder(people: Path, tmp_path: Path) -> None:
    picture = sorted(people.glob("*/*.jpg"))[0]
    (tmp_path / "inside").mkdir()
    table = tmp_path / "inside" / "list.csv"
    table.write_text(f"path,identity\n{picture},a\n../x.jpg,b\n{'y' * 5000},c\n")
    (tmp_path / "x.jpg").write_bytes(picture.read_bytes())
    reader = open_source(table)
    for item in reader:
        with pytest.raises(Withhold):
            reader.load(item.path)


def test_pictures_listed_twice_are_refused(people: Path, tmp_path: Path) -> None:
    picture = sorted(people.glob("*/*.jpg"))[0]
    (tmp_path / "a.jpg").write_bytes(picture.read_bytes())
    (tmp_path / "list.csv").write_text("path,identity\na.jpg,p\n./a.jpg,q\n")
    with pytest.raises(ConfigError, match="more than once"):
        run(tmp_path / "list.csv", tmp_path / "release", Recipe(generator="mask"))


def test_a_changed_source_is_not_resumed(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    path, release = tsv(tmp_path, crowd), tmp_path / "release"
    run(path, release, Recipe(generator="mask"))
    (release / "run.json").unlink()
    rows = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join(rows[::-1]) + b"\n")
    os.utime(path, (1, 1))
    with pytest.raises(ConfigError, match="begun with"):
        run(path, release, Recipe(generator="mask"), resume=True)


def test_overwriting_waits_until_the_source_is_known(
    crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    release = tmp_path / "release"
    run(tsv(tmp_path, crowd), release, Recipe(generator="mask"))
    (tmp_path / "photos.zip").touch()
    with pytest.raises(ConfigError, match=r"\.zip"):
        run(tmp_path / "photos.zip", release, Recipe(generator="mask"), overwrite=True)
    assert (release / "run.json").is_file()
    assert release.with_name("release.private").is_dir()


def test_mixed_folders_ask_for_a_choice(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    rec(tmp_path, crowd)
    table(tmp_path, crowd)
    with pytest.raises(ConfigError, match="--from"):
        sniff(tmp_path)
    (tmp_path / "train.rec").unlink()
    with pytest.raises(ConfigError, match="name the table"):
        sniff(tmp_path)


def test_run_json_tells_no_paths(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    recipe = Recipe(generator="mask", reader="recordio", reader_options={"skip_bad": True})
    run(rec(tmp_path, crowd), tmp_path / "release", recipe)
    text = (tmp_path / "release" / "run.json").read_text()
    assert "recordio" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("order", ["label path", "path label"])
def test_clean_lists_choose_and_relabel(
    order: str, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    source = tsv(tmp_path, crowd)
    rows = [
        ("m.00x/0-FaceId-0.jpg", "a"),
        ("m.01x/4-FaceId-0.jpg", "b"),
        ("m.9/1-FaceId-0.jpg", "b"),
    ]
    lines = [f"{p} {n}" if order == "path label" else f"{n} {p}" for p, n in rows]
    (tmp_path / "clean.txt").write_text("\n".join(lines) + "\n")
    reader = Clean(open_source(source), tmp_path / "clean.txt")
    found = list(reader)
    assert [item.label for item in found] == ["a", "b"]
    assert [reader.load(item.path) for item in found] == [crowd[0][1], crowd[4][1]]
    assert reader.ignored["not on the clean list"] == 7
    assert reader.ignored["listed, but not there"] == 1
    recipe = Recipe(generator="mask")
    summary = run(source, tmp_path / "release", recipe, clean_list=tmp_path / "clean.txt")
    assert (summary.read, summary.people) == (2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("m.00x/0-FaceId-0.jpg\n", "expected a path"),
        ("a b\n", "expected a path"),
        ("m.77/0-FaceId-0.jpg a\n", "keeps no picture"),
        ("m.00x/0-FaceId-0.jpg a\nm.00x/0-FaceId-0.jpg b\n", "more than once"),
    ],
)
def test_clean_lists_that_do_not_fit(
    text: str, message: str, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    (tmp_path / "clean.txt").write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(Clean(open_source(tsv(tmp_path, crowd)), tmp_path / "clean.txt"))
