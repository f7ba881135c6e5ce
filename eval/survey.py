"""Goes through a dataset that is to be audited: who is in it, and what each picture file holds."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from anonymize.eval.duplicates import digest, perceptual
from anonymize.eval.identifiers import Tally
from anonymize.eval.recognition import each
from anonymize.eval.stats import Array
from anonymize.eval.trial import Progress
from anonymize.eval.withdrawn import Layout

from anonymize.errors import ConfigError, Withhold
from anonymize.images import decode, metadata
from anonymize.readers import Reader, open_source, sniff
from anonymize.record import Pixels

TOLERANT = frozenset({"msceleb-tsv", "recordio", "webdataset"})
"""Readers that can count damage and go on."""


class Item(NamedTuple):
    """One picture: its number, path and label, and how to get its bytes."""

    number: int
    path: str
    label: str | None
    load: Callable[[], bytes]


@dataclass(slots=True)
class Pictures:
    """The pictures of SRC, again and again in the same order.

    Attributes:
        source: SRC.
        reader: name of its format.
        refused: after iteration, files that their reader refused, and why.
        ignored: after iteration, what readers passed over, by kind.
    """

    source: Path
    reader: str
    refused: dict[str, str] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    def __iter__(self) -> Iterator[Item]:
        self.refused, self.ignored, number = {}, Counter(), 0
        for reader, prefix in self._readers():
            try:
                for source in reader:
                    load = partial(reader.load, source.path)
                    yield Item(number, f"{prefix}{source.path}", source.label, load)
                    number += 1
            except ConfigError as error:
                self.refused[prefix or self.source.name] = str(error)
            self.ignored.update(reader.ignored)

    def _readers(self) -> Iterator[tuple[Reader, str]]:
        """The reader of SRC; one for each table of MS-Celeb-1M, as lists of names are refused."""
        options = {"skip_bad": True} if self.reader in TOLERANT else {}
        tables = [self.source]
        if self.reader == "msceleb-tsv" and self.source.is_dir():
            tables = sorted(self.source.rglob("*.tsv")) or tables
        for path in tables:
            prefix = "" if path == self.source else path.relative_to(self.source).as_posix()
            yield open_source(path, self.reader, **options), prefix


def open_pictures(source: Path, reader: str = "") -> Pictures:
    """The pictures of SRC by the reader that is named, or that fits.

    Raises:
        ConfigError: SRC is not there, or of no known format.
    """
    return Pictures(source, reader or sniff(source))


@dataclass(slots=True)
class Listing:
    """What the names of a dataset's pictures say; 4 bytes and no path are kept of each.

    Attributes:
        people: number of each picture's person, -1 for none.
        labels: the persons, in order of their first picture.
        tally: identifiers in paths and labels.
        layout: names, to be compared with those of known datasets.
    """

    people: array[int] = field(default_factory=lambda: array("i"))
    labels: dict[str, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    layout: Layout = field(default_factory=Layout)


def listed(pictures: Pictures) -> Listing:
    """Reads the names of all pictures.

    Raises:
        ConfigError: there is none.
    """
    found = Listing()
    files = pictures.reader in ("folder", "manifest")
    for item in pictures:
        person = -1
        if item.label is not None:
            person = found.labels.setdefault(item.label, len(found.labels))
        found.people.append(person)
        found.layout.picture(item.path)
        if files:
            *folders, name = item.path.split("/")
            for folder in folders:
                found.tally.add("folder", folder, item.path, "label")
            found.tally.add("file name", name.rpartition(".")[0], item.path, "label")
        if item.label is not None and pictures.reader != "folder":
            found.tally.add("label", item.label, item.path, "label")
    if not found.people:
        why = "; ".join(pictures.refused.values()) or "found no picture"
        raise ConfigError(f"SRC {pictures.source}: {why}")
    return found


class Look(NamedTuple):
    """What one picture file holds: why it cannot be read, metadata, hashes of its pixels."""

    error: str
    texts: dict[str, str]
    digest: bytes
    hash: int | None


def look(item: Item) -> Look:
    """Looks at one picture; nothing that is wrong with it is an error."""
    texts: dict[str, str] = {}
    try:
        data = item.load()
        texts = _texts(data)
        image = decode(data)
        return Look("", texts, digest(image), perceptual(image))
    except Withhold as reason:
        return Look(reason.reason, texts, bytes(16), None)
    except OSError:
        return Look("not a readable file", texts, bytes(16), None)


def _texts(data: bytes) -> dict[str, str]:
    try:
        return metadata(data)
    except Withhold:  # decoding gives the reason
        return {}


@dataclass(slots=True)
class Files:
    """What picture files hold: 26 bytes are kept of each.

    Attributes:
        errors: pictures that cannot be read, by reason, and up to `SHOWN` numbers of each.
        tags: pictures that have each tag of metadata, and up to `SHOWN` numbers of each.
        tally: identifiers in metadata.
    """

    SHOWN = 20

    errors: dict[str, list[int]] = field(default_factory=dict)
    unreadable: Counter[str] = field(default_factory=Counter)
    tags: Counter[str] = field(default_factory=Counter)
    categories: Counter[str] = field(default_factory=Counter)
    shown: dict[str, list[int]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    _digests: bytearray = field(default_factory=bytearray)
    _hashes: array[int] = field(default_factory=lambda: array("Q"))
    _hashed: bytearray = field(default_factory=bytearray)
    _readable: bytearray = field(default_factory=bytearray)

    def add(self, item: Item, seen: Look) -> None:
        """Takes one picture."""
        self._digests += seen.digest
        self._hashes.append(seen.hash or 0)
        self._hashed.append(seen.hash is not None)
        self._readable.append(not seen.error)
        if seen.error:
            self.unreadable[seen.error] += 1
            _some(self.errors, seen.error, item.number, self.SHOWN)
        self.tags.update(seen.texts)
        for kind in {category(name) for name in seen.texts} - {""}:
            self.categories[kind] += 1
            _some(self.shown, kind, item.number, self.SHOWN)
        for name, text in seen.texts.items():
            if category(name) in ("owner", "comment"):
                self.tally.add(f"metadata {name}", text, item.path)

    @property
    def digests(self) -> Array:
        """(N, 16) uint8; zeros where a picture cannot be read."""
        return np.frombuffer(self._digests, np.uint8).reshape(-1, 16)

    @property
    def hashes(self) -> Array:
        """(N,) uint64."""
        return np.frombuffer(self._hashes, np.uint64)

    @property
    def hashed(self) -> Array:
        """(N,) bool, whether a picture has structure that a hash can tell."""
        return np.frombuffer(self._hashed, np.bool_)

    @property
    def readable(self) -> Array:
        """(N,) bool."""
        return np.frombuffer(self._readable, np.bool_)


def _some(lists: dict[str, list[int]], name: str, number: int, most: int) -> None:
    mine = lists.setdefault(name, [])
    if len(mine) < most:
        mine.append(number)


CATEGORIES = {
    "thumbnail": r"Thumbnail|AttachedPictures",
    "serial number": r".*SerialNumber|ImageUniqueID",
    "owner": r"CameraOwnerName|Artist|Copyright|XPAuthor|HostComputer|Author|author|copyright"
    r"|IPTC 2:(80|85|110|115|116|118|122)",
    "maker note": r"MakerNote",
    "date": r"DateTime.*|.*OffsetTime.*|IPTC 2:(55|60|62|63)|Creation Time|date:.*",
    "device": r"Make|Model|Software|Lens(Make|Model)|software",
    "comment": r"UserComment|ImageDescription|XP(Comment|Title|Subject|Keywords)|comment|Comment"
    r"|Title|Description|parameters|IPTC 2:(5|25|90|92|95|100|101|103|105|120)",
    "XMP": r"xmp|XMLPacket|photoshop",
    "ICC profile": r"icc_profile|InterColorProfile",
    "damaged": r"damaged",
    "position": r"GPS(?!Info$|VersionID$).*",
}
"""What metadata tells, by the names of its tags."""


@lru_cache(1 << 12)
def category(tag: str) -> str:
    """What a tag of metadata tells; empty for what says nothing of anybody."""
    return next((name for name, form in CATEGORIES.items() if re.fullmatch(form, tag)), "")


def surveyed(pictures: Iterable[Item], total: int, progress: Progress) -> Files:
    """Looks at every picture, in threads."""
    files = Files()

    def both(item: Item) -> tuple[Item, Look]:
        return item, look(item)

    for done, (item, seen) in enumerate(each(both, pictures), 1):
        files.add(item, seen)
        progress("look at pictures", done, total)
    return files


def image(item: Item) -> Pixels | None:
    """A picture's (H, W, 3) uint8 RGB pixels; None if it cannot be read any more."""
    try:
        return decode(item.load())
    except (Withhold, OSError):
        return None


def again(pictures: Iterable[Item], wanted: Iterable[int]) -> Iterator[Item]:
    """The pictures of these numbers, in order."""
    numbers = set(wanted)
    return (item for item in pictures if item.number in numbers)
