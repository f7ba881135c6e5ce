"""The audit: every kind of finding is planted and found, and a clean folder has none of them."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from anonymize.eval.audit import audit, table
from anonymize.eval.duplicates import near, perceptual, same
from anonymize.eval.identifiers import Tally, kinds, nature, redacted
from anonymize.eval.recognition import Faces, identified, mislabelled, sample
from anonymize.eval.withdrawn import KNOWN, Layout
from click.testing import CliRunner
from conftest import save
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_formats import rec, shards, tsv
from test_images import RED, saved

from anonymize.cli import main
from anonymize.errors import ConfigError, Withhold
from anonymize.images import encode, metadata, read

Audit = dict[str, Any]


def names(result: Audit) -> set[str]:
    return {row["name"] for row in result["findings"]}


def identifiers(result: Audit) -> set[tuple[str, str]]:
    return {(row["place"], row["kind"]) for row in result["identifiers"]}


def texture(seed: int) -> np.ndarray:
    """A picture like no other, with structure at every scale and no face."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.random((s, s, 3)), (96, 96)) for s in (3, 6, 12, 48)]
    return np.clip(sum(layers) * 64, 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three opaque labels with three different pictures each, in which there is nothing to find."""
    for number in range(9):
        save(tmp_path / "set" / f"{number // 3:04}" / f"{number:06}.png", texture(number))
    return tmp_path / "set"


@pytest.fixture(scope="module")
def clean(people: Path) -> Audit:
    return audit(people, None)


def with_exif(fill: Callable[[Image.Exif], None]) -> bytes:
    exif = Image.Exif()
    fill(exif)
    return saved(Image.fromarray(texture(99)), "JPEG", exif=exif.tobytes())


def thumbnailed() -> bytes:
    """A JPEG whose EXIF has a second directory with a JPEG in it, built by hand."""
    small = saved(Image.fromarray(RED), "JPEG")
    first = struct.pack("<HHHIII", 1, 274, 3, 1, 1, 26)  # orientation, then the next directory
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, 56, 514, 4, 1, len(small), 0)
    body = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + small
    return saved(Image.fromarray(texture(99)), "JPEG", exif=body)


PHOTOSHOP = b"Photoshop 3.0\x008BIM\x04\x04"


def with_segment(marker: int, body: bytes) -> bytes:
    """A JPEG with one more application segment."""
    data = encode(texture(99))
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


def stacked() -> bytes:
    """A picture with another one behind it, as phones write them."""
    small = Image.fromarray(RED)
    return saved(Image.fromarray(texture(99)), "MPO", save_all=True, append_images=[small])


def test_a_clean_folder_has_no_finding_but_its_faces(clean: Audit) -> None:
    assert names(clean) == {"identifiable-faces", "opaque"}
    assert clean["counts"] | {"passed_over": {}} == {
        "pictures": 72,
        "people": 12,
        "unlabelled": 0,
        "unreadable": 0,
        "passed_over": {},
        "refused": {},
    }
    assert clean["metadata"] == clean["known_datasets"] == clean["duplicates"]["groups"] == []
    assert {kind for _, kind in identifiers(clean)} == {"opaque"}
    assert clean["recognition"]["mislabelled"]["count"] == 0


def test_pictures_of_each_person_are_counted(folder: Path) -> None:
    save(folder / "0002" / "x.png", texture(50))
    save(folder / "0003" / "x.png", texture(51))
    save(folder / "nobody.png", texture(52))
    found = audit(folder, None)
    assert found["counts"]["people"] == 4
    assert found["counts"]["unlabelled"] == 1
    people = found["people"]
    assert (people["least"], people["median"], people["most"]) == (1, 3, 4)
    assert people["with_one"] == 1
    assert sum(row["people"] for row in people["histogram"]) == 4


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("position", with_exif(lambda e: e.get_ifd(34853).update({1: "N", 2: (47.0, 8.0, 0.0)}))),
        ("serial-number", with_exif(lambda e: e.get_ifd(34665).update({42033: "00123456"}))),
        ("owner", with_exif(lambda e: e.update({315: "Ada Lovelace"}))),
        ("owner", with_exif(lambda e: e.update({33432: "(c) ada@example.org"}))),
        ("owner", with_exif(lambda e: e.update({40093: "Ada".encode("utf-16-le")}))),
        ("maker-note", with_exif(lambda e: e.get_ifd(34665).update({37500: b"made by"}))),
        ("date", with_exif(lambda e: e.get_ifd(34665).update({36867: "2011:02:03 04:05:06"}))),
        ("device", with_exif(lambda e: e.update({272: "Camera 5"}))),
        ("comment", with_exif(lambda e: e.update({270: "at the lake"}))),
        ("thumbnail", thumbnailed()),
        ("thumbnail", stacked()),
        ("damaged", with_segment(0xED, PHOTOSHOP + b"\0\0\0\0\0\x08\x1c\x02\x50\xff\3Ada")),
        ("owner", with_segment(0xED, PHOTOSHOP + b"\0\0\0\0\0\x08\x1c\x02\x50\0\3Ada")),
        ("comment", saved(Image.fromarray(RED), "JPEG", comment=b"at the lake")),
        ("xmp", saved(Image.fromarray(RED), "JPEG", xmp=b"<x:xmpmeta/>")),
        ("icc-profile", saved(Image.fromarray(RED), "JPEG", icc_profile=b"profile")),
    ],
)
def test_metadata_is_found(kind: str, data: bytes, folder: Path) -> None:
    assert not any(name.startswith("metadata") for name in names(audit(folder, None)))
    (folder / "0001" / "000009.jpg").write_bytes(data)
    found = audit(folder, None)
    assert {n for n in names(found) if n.startswith("metadata")} == {f"metadata-{kind}"}
    (row,) = found["metadata"]
    assert row["count"] == 1
    assert row["pictures"] == ["0001/000009.jpg"]


def test_texts_of_a_png_are_found_behind_its_pixels(folder: Path) -> None:
    text = PngInfo()
    text.add_text("Author", "ada@example.org")
    data = saved(Image.fromarray(RED), "PNG", pnginfo=text)
    at, end = data.index(b"tEXt") - 4, data.index(b"IDAT") - 4
    chunk, rest = data[at:end], data[:at] + data[end:]
    last = rest.index(b"IEND") - 4
    (folder / "late.png").write_bytes(rest[:last] + chunk + rest[last:])
    found = audit(folder, None)
    assert "metadata-owner" in names(found)
    assert ("metadata Author", "email") in identifiers(found)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60), st.integers(0, 300))
def test_damaged_metadata_never_crashes(noise: bytes, where: int) -> None:
    data = bytearray(thumbnailed())
    data[where : where + len(noise)] = noise
    with contextlib.suppress(Withhold):
        assert all(isinstance(text, str) for text in metadata(bytes(data)).values())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("m.0107_f", "freebase-mid"),
        ("see /m/02mjmr for more", "freebase-mid"),
        ("write to ada@mail.example.org", "email"),
        ("https://example.org/a.jpg", "url"),
        ("nm0000123_rm42", "imdb-id"),
        ("Q1234567", "wikidata-id"),
        ("12345678@N04", "flickr-id"),
        ("IMG_20190403_120000", "date"),
        ("1999-12-31", "date"),
        ("call +41 44 123 45 67", "phone"),
    ],
)
def test_identifiers_are_told_by_their_form(text: str, kind: str) -> None:
    assert set(kinds(text)) == {kind}


@pytest.mark.parametrize(
    "text",
    ["000123", "n000001", "0001_c2", "person-00", "a@b", "20191345", "Q5", "m.x"],
)
def test_opaque_numbers_are_no_identifiers(text: str) -> None:
    assert not kinds(text)
    assert not kinds(f"form.{text}")
    assert nature(text) == "opaque"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ada_Lovelace", "name"),
        ("ada lovelace", "name"),
        ("AdaLovelace", "name"),
        ("Ada_Lovelace_0001", "name"),
        ("Émilie du Châtelet", "name"),
        ("祖冲之", "name"),
        ("ada", "word"),
        ("test_ada", "word"),
        ("Test_Images", "opaque"),
        ("subject 12", "opaque"),
        ("deadbeefcafe", "opaque"),
        ("0a1b2c3d", "opaque"),
    ],
)
def test_names_are_told_from_numbers(text: str, expected: str) -> None:
    assert nature(text) == expected


def test_prose_is_not_taken_for_names() -> None:
    tally = Tally()
    tally.add("readme", "These Pictures Were Taken Outdoors", "a.txt")
    tally.add("cell", "taken outdoors", "a.csv", "cell")
    assert not tally.rows()
    tally.add("cell", "Ada Lovelace", "a.csv", "cell")
    (row,) = tally.rows()
    assert (row["kind"], row["count"], row["where"]) == ("name", 1, ["a.csv"])
    assert row["examples"] == ["Xxx Xxxxxxxx"] == [redacted("Ada Lovelace")]


def test_names_and_ids_in_paths_are_found(folder: Path) -> None:
    for number, name in enumerate(["Ada_Lovelace", "m.0107_f", "ada", "ada@example.org"]):
        save(folder / name / f"nm0000123_{number}.png", texture(20 + number))
    found = audit(folder, None)
    places = {("folder", kind) for kind in ("name", "freebase-mid", "word", "email", "opaque")}
    assert identifiers(found) == places | {("file name", "imdb-id"), ("file name", "opaque")}
    assert {"name", "freebase-mid", "email", "imdb-id"} <= names(found)


def test_columns_of_a_table_are_found(folder: Path) -> None:
    rows = [
        {"path": f"{n // 3:04}/{n:06}.png", "identity": n // 3, "full name": "Ada Lovelace",
         "source": "https://example.org", "age": 36}
        for n in range(9)
    ]  # fmt: skip
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = identifiers(audit(folder / "list.csv", None))
    assert {("column full name", "name"), ("column source", "url")} <= found
    assert not any(place == "column age" and kind != "opaque" for place, kind in found)


def test_files_beside_the_pictures_are_found(folder: Path) -> None:
    (folder / "names.txt").write_text("Ada Lovelace\t3\nAlan Turing\t2\n")
    (folder / "readme.md").write_text("Ask Somebody Else: ada@example.org\n")
    (folder / "about.json").write_text('{"who": {"name": "ada lovelace"}}')
    (folder / "broken.json").write_text("{")
    (folder / "deep.json").write_text("[" * 100_000)
    found = identifiers(audit(folder, None))
    place = "beside the pictures"
    assert (f"file .txt {place}", "name") in found
    assert (f"file .md {place}", "email") in found
    assert (f"file .md {place}", "name") not in found
    assert (f"file .json {place}, name", "name") in found


@pytest.fixture(scope="module")
def crowd(people: Path) -> list[tuple[str, bytes]]:
    chosen = sorted(people.iterdir())[:3]
    return [(p.name, f.read_bytes()) for p in chosen for f in sorted(p.glob("*.jpg"))[:3]]


@pytest.mark.parametrize("columns", [7, 6])
def test_msceleb_tables_are_found_out(
    columns: int, crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    tsv(tmp_path, crowd, columns)
    (tmp_path / "Top1M_MidList.Name.tsv").write_text('m.00x\t"Ada Lovelace"@en\n')
    found = audit(tmp_path, None)
    assert found["counts"]["pictures"] == 9
    assert list(found["counts"]["refused"]) == ["Top1M_MidList.Name.tsv"]
    assert [row["name"] for row in found["known_datasets"]] == ["MS-Celeb-1M"]
    places = {("label", "freebase-mid"), ("column mid", "freebase-mid"), ("column name", "name")}
    assert places | {("column image url", "url")} <= identifiers(found)
    assert {"known-dataset", "refused-files"} <= names(found)


def test_members_of_shards_are_found(crowd: list[tuple[str, bytes]], tmp_path: Path) -> None:
    target = shards(tmp_path, crowd)
    with tarfile.open(target / "00009.tar", "w") as tar:
        about = json.dumps({"identity": "9", "url": "https://example.org/a.jpg"}).encode()
        sides = (("0.json", b"{"), ("a.json", about), ("a.txt", b"by a@b.org"))
        for name, data in (*sides, ("a.jpg", crowd[0][1])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = audit(target, None)
    assert {("json url", "url"), ("member .txt", "email")} <= identifiers(found)
    assert found["source"]["format"] == "webdataset"
    assert found["counts"]["people"] == 4


def test_cleaned_msceleb_is_told_by_its_property_file(
    crowd: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    rec(tmp_path, crowd)
    assert not audit(tmp_path, None)["known_datasets"]
    (tmp_path / "property").write_text("93431,112,112")
    (row,) = audit(tmp_path / "train.rec", None)["known_datasets"]
    assert row["status"] == "derived"
    assert "93431" in row["evidence"][0]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("MS-Celeb-1M", "ms/m.0107_f/{}-FaceId-0.jpg"),
        ("MegaFace", "a/901/1234567@N08/803265277{}_0.jpg"),
        ("MegaFace", "1234567@N08_identity_3/803265277{}_0.jpg"),
        ("VGGFace2", "train/n000002/000{}_01.jpg"),
        ("DukeMTMC", "bounding_box_train/000{}_c2_f0046182.jpg"),
        ("Brainwash", "brainwash_10_27_2014_images/0000{}000_640x480.png"),
        ("Labeled Faces in the Wild", "Ada_Lovelace/Ada_Lovelace_000{}.jpg"),
    ],
)
def test_known_datasets_are_told_by_their_layout(name: str, path: str) -> None:
    layout = Layout()
    for number in range(5):
        layout.picture(path.format(number))
    (row,) = layout.recognised()
    assert row["name"] == name
    assert row["evidence"]
    assert row["sources"]


def test_other_layouts_are_nobodys(people: Path) -> None:
    layout = Layout()
    for path in sorted(people.rglob("*.jpg")):
        layout.picture(path.relative_to(people).as_posix())
    for number in range(2):  # too few to mean anything
        layout.picture(f"n000002/000{number}_01.jpg")
    assert layout.recognised() == []


def test_what_is_known_of_datasets_is_sourced() -> None:
    for known in KNOWN:
        assert known.sources
        assert known.status in ("withdrawn", "derived", "disputed")
        assert bool(known.when) == (known.status == "withdrawn")
        assert known.picture or known.marker


def test_exact_duplicates_across_people_are_found(folder: Path) -> None:
    shutil.copy(folder / "0000" / "000000.png", folder / "0002" / "again.png")
    pixels = Image.open(folder / "0000" / "000001.png")
    pixels.save(folder / "0000" / "other.bmp")  # another file, the same pixels
    found = audit(folder, None)
    assert found["duplicates"]["exact"] == {"groups": 2, "pictures": 4, "across_people": 1}
    assert found["duplicates"]["near"]["groups"] == 0
    assert found["duplicates"]["groups"][0] == {
        "id": "group-1",
        "exact": True,
        "across_people": True,
        "pictures": ["0000/000000.png", "0002/again.png"],
    }
    assert {"exact-duplicates", "exact-duplicates-across"} <= names(found)


def test_near_duplicates_are_found_after_encoding_and_resizing(folder: Path) -> None:
    source = read(folder / "0000" / "000000.png")
    half = cv2.resize(source, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    (folder / "0001" / "encoded.jpg").write_bytes(encode(source, "jpg", 40))
    (folder / "0002" / "resized.jpg").write_bytes(encode(half, "jpg", 80))
    found = audit(folder, None)
    assert found["duplicates"]["near"] == {"groups": 1, "pictures": 3, "across_people": 1}
    assert found["duplicates"]["groups"][0]["pictures"] == [
        "0000/000000.png",
        "0001/encoded.jpg",
        "0002/resized.jpg",
    ]
    assert "near-duplicates-across" in names(found)


def test_pictures_without_structure_are_not_near_each_other(folder: Path) -> None:
    for grey in (10, 90, 200):
        save(folder / f"{grey}.png", np.full((40, 40, 3), grey, np.uint8))
    assert perceptual(np.full((40, 40, 3), 90, np.uint8)) is None
    assert audit(folder, None)["duplicates"]["near"]["groups"] == 0


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.lists(st.integers(0, 63), max_size=4))
def test_near_hashes_are_those_of_few_different_bits(values: list[int], bits: list[int]) -> None:
    """The index finds what comparing everything with everything finds."""
    flipped = [value ^ sum({1 << bit for bit in bits}) for value in values]
    hashes = np.array(values + flipped, np.uint64)
    links = {frozenset(link) for link in near(hashes).tolist()}
    for a in range(len(hashes)):
        for b in range(a):
            gap = int(hashes[a] ^ hashes[b]).bit_count()
            if frozenset((a, b)) in links:
                assert gap <= 3
            elif gap <= 3:  # equal hashes are joined by the first of them
                first = [int(np.flatnonzero(hashes == hashes[i])[0]) for i in (a, b)]
                assert first[0] == first[1] or frozenset(first) in links


def test_equal_digests_are_linked_to_the_first() -> None:
    digests = np.array([[1] * 16, [2] * 16, [1] * 16, [1] * 16], np.uint8)
    assert same(digests).tolist() == [[0, 2], [0, 3]]
    assert same(digests[:0]).shape == (0, 2)


def test_a_mislabelled_picture_is_found(people: Path, tmp_path: Path) -> None:
    shutil.copytree(people, tmp_path / "set")
    wrong = tmp_path / "set" / "person-03" / "9.jpg"
    (tmp_path / "set" / "person-05" / "2.jpg").rename(wrong)
    found = audit(tmp_path / "set", None)
    (row,) = found["recognition"]["mislabelled"]["pictures"]
    assert row["picture"] == "person-03/9.jpg"
    assert (row["label"], row["other_label"]) == ("person-03", "person-05")
    assert row["matches_other"]
    assert row["other_distance"] < row["distance"]
    assert "mislabelled" in names(found)


def vectors(people: int, each: int, noise: float, seed: int = 0) -> Faces:
    """Embeddings of people about centres of their own, at distances like a recogniser's."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (people, 128)) / np.sqrt(128)
    points = np.repeat(centres, each, 0) + noise * rng.normal(0, 1, (people * each, 128))
    owners = np.repeat(np.arange(people), each)
    return Faces(np.arange(len(points)), owners, points.astype(np.float32))


def test_of_three_pictures_the_two_that_agree_are_acquitted() -> None:
    faces = vectors(10, 3, 0.01)
    faces.vectors[0] = faces.vectors[27]
    (suspect,) = mislabelled(faces, 0.6)
    assert (suspect.row, suspect.other) == (0, 9)
    assert not mislabelled(vectors(10, 3, 0.01), 0.6)
    pair = vectors(10, 2, 0.01)
    pair.vectors[0] = pair.vectors[19]
    assert not mislabelled(pair, 0.6)  # either of two may be the wrong one


def test_identification_knows_friends_and_strangers() -> None:
    found = identified(vectors(30, 4, 0.01), 0.6, 0)
    assert found is not None
    assert (found.rank1.value, found.matched.value, found.people) == (1, 1, 30)
    lost = identified(vectors(200, 4, 10.0), 0.6, 0)
    assert lost is not None
    assert lost.rank1.low <= 1 / 200 <= lost.rank1.high
    assert lost.matched.value == 0
    assert identified(vectors(7, 4, 0.01), 0.6, 0) is None


def test_a_picture_without_a_face_is_a_search_that_finds_nobody() -> None:
    faces = vectors(30, 4, 0.01)
    faces.vectors[1::4] = np.nan
    found = identified(faces, 0.6, 0)
    assert found is not None
    assert found.probes == 60
    assert found.rank1.value == found.matched.value == 0.5


def test_the_sample_takes_whole_people_by_the_seed() -> None:
    people = np.array([0] * 30 + [1] * 3 + [2] + [-1] * 5 + [3] * 4)
    usable = np.ones(len(people), bool)
    usable[31] = False
    everything = sample(people, usable, None, 0)
    assert np.bincount(people[everything]).tolist() == [30, 2, 0, 4]
    counts = np.bincount(people[sample(people, usable, 1000, 0)]).tolist()
    assert counts == [20, 2, 0, 4]
    small = [sample(people, usable, 5, seed).tolist() for seed in range(8)]
    assert all(2 <= len(chosen) <= 5 for chosen in small)
    assert len({tuple(chosen) for chosen in small}) > 1
    assert small[3] == sample(people, usable, 5, 3).tolist()


def test_bad_files_are_counted_and_stop_nothing(folder: Path) -> None:
    (folder / "0000" / "cut.jpg").write_bytes(encode(RED)[:100])
    (folder / "0000" / "empty.png").touch()
    (folder / "0000" / "text.jpg").write_text("no picture")
    (folder / "0000" / "gone.jpg").symlink_to(folder / "absent.jpg")
    (folder / "0000" / "odd\udcff \U0001f600.txt").write_bytes(b"\xff\xfe")
    (folder / "Ada L\udcff").mkdir()
    save(folder / "Ada L\udcff" / "1.png", texture(77))
    found = audit(folder, folder.parent / "out")
    assert found["counts"]["pictures"] == 14
    assert found["counts"]["unreadable"] == 4
    listed = {path for row in found["unreadable"] for path in row["pictures"]}
    assert listed == {f"0000/{n}" for n in ("cut.jpg", "empty.png", "text.jpg", "gone.jpg")}
    assert "unreadable" in names(found)
    assert json.loads((folder.parent / "out" / "audit.json").read_text())["schema"] == 1


def test_the_same_seed_gives_the_same_files(people: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    for name in ("one", "two"):
        audit(people, tmp_path / name, limit=20, progress=lambda *step: steps.append(step))
    for name in ("audit.json", "audit.html"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert steps[:72] == [("look at pictures", done, 72) for done in range(1, 73)]
    assert ("recognise faces", 20, 20) in steps


def test_the_page_names_nobody_and_shows_no_face(people: Path, tmp_path: Path) -> None:
    secrets = ["Ada_Lovelace", "<b>Bold_Type</b>".replace("/", "")]
    for person, secret in zip(sorted(people.iterdir()), secrets, strict=False):
        shutil.copytree(person, tmp_path / "set" / secret)
    shutil.copy(tmp_path / "set" / secrets[0] / "0.jpg", tmp_path / "set" / secrets[1] / "x.jpg")
    found = audit(tmp_path / "set", tmp_path / "out")
    page = (tmp_path / "out" / "audit.html").read_text("utf-8")
    for text in (page, table(found)):
        assert not any(word in text for word in ("Ada", "Lovelace", "Bold", "<b>B", ".jpg"))
    assert "<img" not in page
    assert "private" in page
    assert "group-1" in page
    assert "Ada_Lovelace/0.jpg" in (tmp_path / "out" / "audit.json").read_text("utf-8")
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0


def test_the_table_says_what_was_found(clean: Audit) -> None:
    text = table(clean)
    assert text.startswith(clean["verdict"]["text"])
    assert "12 people" in text
    assert all(row["name"] in text for row in clean["findings"])


def test_sources_that_cannot_be_audited_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lies in SRC"):
        audit(folder, folder / "audit")
    with pytest.raises(ConfigError, match="found none"):
        audit(tmp_path / "absent", None)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="found no picture"):
        audit(tmp_path / "bare", None)
    with pytest.raises(ConfigError, match="limit: got 1"):
        audit(folder, None, limit=1)
    (tmp_path / "Top1M_MidList.Name.tsv").write_text('m.00x\t"Ada Lovelace"@en\n')
    with pytest.raises(ConfigError, match="table of people's names"):
        audit(tmp_path / "Top1M_MidList.Name.tsv", None)


@pytest.mark.photos
def test_real_photographs_are_found_out(lfw: Path, tmp_path: Path) -> None:
    """Press photographs in folders of full names: names, layout and faces are all found."""
    for person in sorted(lfw.iterdir())[:150]:
        shutil.copytree(person, tmp_path / "set" / person.name)
    found = audit(tmp_path / "set", None, limit=150)
    assert {"name", "identifiable-faces", "known-dataset"} <= names(found)
    assert [row["name"] for row in found["known_datasets"]] == ["Labeled Faces in the Wild"]
    assert found["recognition"]["identified"]["rank1"]["value"] > 0.8
    assert found["recognition"]["mislabelled"]["count"] < 5
    assert found["duplicates"]["near"]["groups"] < 10


def test_the_command(people: Path, tmp_path: Path) -> None:
    arguments = ["audit", str(people), "-o", str(tmp_path / "audit"), "--limit", "12"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert "72" in result.stdout
    assert {p.name for p in (tmp_path / "audit").iterdir()} == {"audit.html", "audit.json"}
    as_json = CliRunner().invoke(main, ["audit", str(people), "--limit", "12", "--json"])
    assert json.loads(as_json.stdout)["schema"] == 1
    absent = CliRunner().invoke(main, ["audit", str(tmp_path / "absent")])
    assert absent.exit_code == 2
