"""MXNet RecordIO as InsightFace packs it: `.rec` files of labelled pictures.

Layout (mxnet is no longer maintained; this follows the format's description): each record is the
magic number, a word whose upper 3 bits say which part of a record this is and whose lower 29 bits
are its length, the data, and zeros up to a multiple of 4 bytes. A record that contains the magic
number at an aligned place is cut there into parts, and the magic number is left out; readers put it
back. All numbers are little-endian.
"""

from __future__ import annotations

import math
import os
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from anonymize.errors import ConfigError, Withhold
from anonymize.images import FORMATS, limited
from anonymize.readers import DamagedError, Source, containers
from anonymize.record import Record
from anonymize.writers import Growing, Marks, Writer, Written, place

MAGIC = 0xCED7230A
WORD = struct.Struct("<I")
HEADER = struct.Struct("<IfQQ")
"""Number of labels (0: the one that follows), label, id, second id."""

WHOLE, FIRST, MIDDLE, LAST = range(4)
MOST = 1 << 29

EXACT = 1 << 24
"""Greatest whole number up to which 32-bit floats, as labels are, tell all numbers apart."""


@dataclass(frozen=True, slots=True)
class Part:
    """A record's place in the file: where it begins, where it ends, and its first bytes."""

    start: int
    end: int
    head: bytes
    size: int


def parts(file: BinaryIO, start: int = 0) -> Iterator[Part]:
    """The records of a file from a position on, reading no more than their first bytes.

    Raises:
        DamagedError: at the position of a record that is not one.
    """
    length, position = os.fstat(file.fileno()).st_size, start
    while position < length:
        begin, head, size = position, b"", 0
        for index, (where, count, kind) in enumerate(_pieces(file, position, length)):
            if (kind in (FIRST, WHOLE) and index) or (kind in (MIDDLE, LAST) and not index):
                raise DamagedError(begin, "the parts of a record are out of order")
            file.seek(where)
            joint = WORD.pack(MAGIC) if index else b""
            size += len(joint) + count
            if len(head) < 64:
                head += joint + file.read(min(count, 64))
            position = where + count + -count % 4
            if kind in (WHOLE, LAST):
                break
        else:
            raise DamagedError(begin, "the last record lacks its end")
        yield Part(begin, position, head, size)


def _pieces(file: BinaryIO, position: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(where the data begins, how many bytes, kind) of the pieces from a position on."""
    while position < length:
        file.seek(position)
        words = file.read(8)
        if len(words) < 8:
            raise DamagedError(position, "the file ends in the middle of a record's header")
        magic, packed = struct.unpack("<II", words)
        kind, count = packed >> 29, packed & (MOST - 1)
        if magic != MAGIC:
            raise DamagedError(position, f"got {magic:#010x}, expected the magic {MAGIC:#010x}")
        if kind > LAST:
            raise DamagedError(position, f"got part kind {kind}, expected 0 to 3")
        if position + 8 + count > length:
            left = length - position - 8
            raise DamagedError(position, f"the record claims {count} bytes, {left} are left")
        yield position + 8, count, kind
        position += 8 + count + -count % 4


def payload(file: BinaryIO, part: Part) -> bytes:
    """A record's data, put together."""
    data = []
    for where, count, kind in _pieces(file, part.start, part.end):
        file.seek(where)
        data.append(file.read(count))
        if kind in (WHOLE, LAST):
            break
    return WORD.pack(MAGIC).join(data)


def label(head: bytes, size: int) -> tuple[float | None, int]:
    """A record's first label and where its picture begins; None for records without a picture.

    Raises:
        ValueError: too short for its header.
    """
    if size < HEADER.size:
        raise ValueError(f"{size} bytes are no record header")
    count, value, _, _ = HEADER.unpack_from(head)
    begin = HEADER.size + 4 * count
    if begin > size:
        raise ValueError(f"{count} labels do not fit into {size} bytes")
    if begin == size:
        return None, begin  # InsightFace's key 0 and its identity records
    value = struct.unpack_from("<f", head, HEADER.size)[0] if count else value
    if not (math.isfinite(value) and abs(value) <= EXACT):
        raise ValueError(f"the label {value} does not name a person exactly")
    return value, begin


def number(value: float) -> str:
    """A label as text: whole where it is whole, and never the same for two numbers."""
    return str(int(value)) if value.is_integer() else repr(value)


@dataclass(slots=True)
class RecordIO:
    """Pictures of one `.rec` file, or of all below a folder; labels are the records' numbers.

    The index beside it (`.idx`) is not needed: records are found in the file itself.

    Attributes:
        root: SRC.
        skip_bad: count damaged places and search for the next record instead of stopping.
        ignored: after iteration, what was passed over.
    """

    root: Path
    skip_bad: bool = False
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {"record without a picture": 0, "damaged record": 0}
        for path, name in containers(self.root, ".rec"):
            with path.open("rb") as file:
                yield from self._pictures(file, name)

    def _pictures(self, file: BinaryIO, name: str) -> Iterator[Source]:
        for part in self._parts(file, name):
            try:
                value, _ = label(part.head, part.size)
            except (ValueError, struct.error) as error:
                self._bad(name, DamagedError(part.start, str(error)))
                continue
            if value is None:
                self.ignored["record without a picture"] += 1
            else:
                folder = str(Path(name).parent)  # two data sets below one SRC both start at 0
                yield Source(f"{name}@{part.start}-{part.end}", f"{folder} {number(value)}")

    def _parts(self, file: BinaryIO, name: str) -> Iterator[Part]:
        position, length = 0, os.fstat(file.fileno()).st_size
        while position < length:
            try:
                for part in parts(file, position):
                    yield part
                    position = part.end
                return
            except DamagedError as error:
                self._bad(name, error)
                position = _next(file, max(position, error.offset) + 4, length)

    def _bad(self, name: str, error: DamagedError) -> None:
        if not self.skip_bad:
            raise ConfigError(
                f"{self.root / name}: {error}; --skip-bad counts damaged records and goes on"
            )
        self.ignored["damaged record"] += 1

    def load(self, locator: str) -> bytes:
        """The picture file in a record."""
        name, _, place = locator.rpartition("@")
        start, end = (int(digits) for digits in place.split("-"))
        limited(end - start)
        try:
            with (self.root / name if name else self.root).open("rb") as file:
                data = payload(file, Part(start, end, b"", 0))
                return data[label(data[:64], len(data))[1] :]
        except OSError as error:
            raise Withhold("not a readable file") from error
        except (DamagedError, ValueError, struct.error) as error:
            raise Withhold("record is damaged") from error


def _next(file: BinaryIO, position: int, length: int) -> int:
    """The next aligned place at or after `position` that holds the magic number."""
    magic, block = WORD.pack(MAGIC), 1 << 10
    position += -position % 4
    while position < length:
        file.seek(position)
        data = file.read(block + 3)
        at = data.find(magic)
        while at >= 0 and at % 4:
            at = data.find(magic, at + 1)
        if at >= 0:
            return position + at
        position, block = position + block, min(2 * block, 1 << 20)
    return length


class RecordIOWriter(Writer):
    """`train.rec` with `train.idx`, `train.lst` and `property`, as InsightFace reads them.

    Key 0 tells where the identity records begin; pictures follow, each person's together; then an
    identity record per person tells the range of their keys. Labels are the persons' numbers.
    """

    __slots__ = ("_index", "_key", "_list", "_record", "_shape")
    order = "person"
    NAMES = ("train.rec", "train.idx", "train.lst")

    def begin(self, marks: Marks) -> None:
        self._record, self._index, self._list = (
            Growing(self.root / name, marks.get(name, 0)) for name in self.NAMES
        )
        self._key = marks.get("key", 0)
        self._shape = marks.get("height", 0), marks.get("width", 0)
        if not marks:
            self._append(_header(0, 0))

    def put(self, record: Record, person: str, data: bytes) -> str:
        assert record.output is not None
        shape = record.output.shape[:2]
        self._shape = shape if self._key == 1 or self._shape == shape else (0, 0)
        label, name = self.number(person), f"{record.key}{FORMATS[self.kind]}"
        self._list.append(f"{self._key}\t{label}\t{name}\n".encode())
        start = self._append(HEADER.pack(0, label, self._key, 0) + data)
        return f"{self.NAMES[0]}@{start}-{self._record.length}"

    def _append(self, data: bytes) -> int:
        start = self._record.append(packed(data))
        self._index.append(b"%d\t%d\n" % (self._key, start))
        self._key += 1
        return start

    def flush(self) -> Marks:
        lengths = (self._record.sync(), self._index.sync(), self._list.sync())
        rest = {"key": self._key, "height": self._shape[0], "width": self._shape[1]}
        return dict(zip(self.NAMES, lengths, strict=True)) | rest

    def finish(self, pictures: Iterable[Written]) -> Mapping[str, str | None]:
        first, counts = self._key, Counter(picture.person for picture in pictures)
        if first + len(counts) > EXACT:
            raise ConfigError(
                f"{first} pictures: the keys of RecordIO are 32-bit floats and end at {EXACT}; "
                "write another format"
            )
        start = 1
        for person in sorted(counts):
            self._append(_header(start, start + counts[person]))
            start += counts[person]
        self._record.sync()
        self._record.file.seek(0)
        self._record.file.write(packed(_header(first, self._key)))
        for file in (self._record, self._index, self._list):
            file.close()
        classes = 1 + max(map(self.number, counts), default=-1)
        described = f"{classes},{self._shape[0]},{self._shape[1]}\n".encode()
        place([described], self.root / "property", self.scratch)
        return {}

    def files(self) -> list[str]:
        return [*self.NAMES, "property"]


def _header(start: int, end: int) -> bytes:
    """A record without a picture: a range of keys."""
    return HEADER.pack(2, 0, 0, 0) + struct.pack("<2f", start, end)


def packed(data: bytes) -> bytes:
    """A record, cut where it contains the magic number at an aligned place.

    Raises:
        ValueError: too long.
    """
    pieces, made = _cut(data), []
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        kind = WHOLE if len(pieces) == 1 else FIRST if not number else LAST if last else MIDDLE
        if len(piece) >= MOST:
            raise ValueError(f"a record of {len(data)} bytes is too long for RecordIO")
        made.append(struct.pack("<II", MAGIC, kind << 29 | len(piece)))
        made.append(piece + b"\0" * (-len(piece) % 4))
    return b"".join(made)


def _cut(data: bytes) -> list[bytes]:
    magic, pieces, begin = WORD.pack(MAGIC), [], 0
    at = data.find(magic)
    while at >= 0:
        if at % 4 == 0:
            pieces.append(data[begin:at])
            begin = at + 4
        at = data.find(magic, at + (4 if at % 4 == 0 else 1))
    return [*pieces, data[begin:]]
