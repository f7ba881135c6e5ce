"""WebDataset shards and what img2dataset makes: tar files whose members share base names.

Headers are read here rather than by `tarfile`, which takes a damaged header for the end of the
file, and which hostile sizes send into endless loops or out of memory.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from anonymize.errors import ConfigError
from anonymize.images import FORMATS, SUFFIXES, read_part
from anonymize.manifest import parquet
from anonymize.readers import DamagedError, Source, containers
from anonymize.record import Record
from anonymize.writers import EPOCH, Growing, Marks, Writer, Written, place

BLOCK = 512
MOST_TEXT = 1 << 20
"""Bytes of a label or of an extended header; longer ones are none."""

KEYS = ("identity", "label", "person", "cls")
"""Where a sample's JSON may name its person."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in a tar file: its name, and where its data are."""

    name: str
    start: int
    size: int


def members(file: BinaryIO, ignored: dict[str, int]) -> Iterator[Member]:
    """The regular files of an uncompressed tar file (POSIX ustar and pax, GNU long names).

    Args:
        file: opened in binary mode.
        ignored: "not a regular member" is counted there.

    Raises:
        DamagedError: at the header that does not fit, or where data follow the end.
    """
    length, position, extra = os.fstat(file.fileno()).st_size, 0, dict[str, str]()
    while position < length:
        file.seek(position)
        head = file.read(BLOCK)
        if not head.strip(b"\0"):
            return _end(file, position)
        name, size, kind = _header(head, position)
        if kind == b"x" and "size" in extra:
            raise DamagedError(position, "two extended headers in a row")
        start, size = position + BLOCK, int(extra.get("size", size))
        if size > length - start:
            raise DamagedError(position, f"a member of {size} bytes, {length - start} are left")
        if kind in b"LKxg":
            if size > MOST_TEXT:
                raise DamagedError(position, f"an extended header of {size} bytes")
            extra |= _extended(kind, file.read(size), position)
        else:
            if kind in (b"0", b"\0", b"7") and not any(
                key.startswith("GNU.sparse") for key in extra
            ):
                yield Member(extra.get("path", name), start, size)
            else:
                ignored["not a regular member"] += 1
            extra = {}
        position = start + size + -size % BLOCK


def _end(file: BinaryIO, position: int) -> None:
    """Checks that nothing but zeros follows the first empty header."""
    file.seek(position)
    while data := file.read(1 << 20):
        if data.strip(b"\0"):
            at = position + len(data) - len(data.lstrip(b"\0"))
            raise DamagedError(at, "data after the end of the tar file")
        position += len(data)


def _header(head: bytes, position: int) -> tuple[str, int, bytes]:
    if len(head) < BLOCK:
        raise DamagedError(position, "the file ends in the middle of a header")
    total = sum(head[:148]) + 8 * 32 + sum(head[156:])
    if _octal(head[148:156]) != total:
        raise DamagedError(position, "a header whose checksum is wrong: no tar file, or damaged")
    digits = head[124:136]
    if digits[0] & 0x80:  # GNU's binary sizes
        size = int.from_bytes(digits, "big", signed=True) + (1 << 95)
    else:
        size = _octal(digits)
    if size < 0:
        raise DamagedError(position, f"a member of {size} bytes")
    name = head[:100].split(b"\0", 1)[0]
    if head[257:263] == b"ustar\0" and head[345]:
        name = head[345:500].split(b"\0", 1)[0] + b"/" + name
    return os.fsdecode(name), size, head[156:157]


def _octal(field: bytes) -> int:
    """A number of a header, -1 where there is none."""
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else -1


def _extended(kind: bytes, data: bytes, position: int) -> dict[str, str]:
    """What an extended header says of the next member's name and size."""
    if kind == b"L":
        return {"path": os.fsdecode(data.rstrip(b"\0"))}
    found: dict[str, str] = {}
    while kind == b"x" and data:
        digits, _, rest = data.partition(b" ")
        if not digits.isdigit() or not len(digits) + 3 < int(digits) <= len(data):
            raise DamagedError(position, "an extended header that is none")
        key, equals, value = rest[: int(digits) - len(digits) - 2].partition(b"=")
        if (key == b"size" and not (value.isdigit() and len(value) < 20)) or not equals:
            raise DamagedError(position, "an extended header that is none")
        found[os.fsdecode(key)] = os.fsdecode(value)
        data = data[int(digits) :]
    return found


@dataclass(slots=True)
class WebDataset:
    """Pictures of a `.tar` file, or of all below a folder.

    A sample is what shares a name up to the first dot of its last part. Its label is the text of
    its `.cls`, else one of `KEYS` in its `.json`, else the text of its `.txt`, unless img2dataset
    wrote the shard, whose texts are captions. Without any of these it has none.

    Attributes:
        root: SRC.
        skip_bad: count damaged shards, whose rest is lost, instead of stopping.
        ignored: after iteration, what was passed over.
    """

    root: Path
    skip_bad: bool = False
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {
            "sample without a picture": 0,
            "not a regular member": 0,
            "damaged shard": 0,
        }
        for path, name in containers(self.root, ".tar"):
            captions = path.with_suffix(".parquet").exists()
            try:
                with path.open("rb") as file:
                    yield from self._samples(file, name, captions)
            except DamagedError as error:
                if not self.skip_bad:
                    raise ConfigError(
                        f"{path}: {error}; --skip-bad counts damaged shards and goes on"
                    ) from error
                self.ignored["damaged shard"] += 1

    def _samples(self, file: BinaryIO, name: str, captions: bool) -> Iterator[Source]:
        sample, place, labels = "", "", dict[str, str]()
        sides = ("cls", "json") if captions else ("cls", "json", "txt")
        for member in members(file, self.ignored):
            folder, _, last = member.name.rpartition("/")
            base, _, suffix = last.partition(".")
            if f"{folder}/{base}" != sample:
                yield from self._done(place, labels, sample)
                sample, place, labels = f"{folder}/{base}", "", {}
            if f".{suffix.lower()}" in SUFFIXES:
                place = f"{name}@{member.start}+{member.size}"
            elif suffix in sides and member.size <= MOST_TEXT:
                file.seek(member.start)
                labels[suffix] = _label(suffix, file.read(member.size))
        yield from self._done(place, labels, sample)

    def _done(self, place: str, labels: dict[str, str], sample: str) -> Iterator[Source]:
        if place:
            known = (labels.get(suffix) for suffix in ("cls", "json", "txt"))
            yield Source(place, next((label for label in known if label), None))
        elif sample:
            self.ignored["sample without a picture"] += 1

    def load(self, locator: str) -> bytes:
        """The picture file of a sample."""
        name, _, place = locator.rpartition("@")
        start, length = (int(number) for number in place.split("+"))
        return read_part(self.root / name if name else self.root, start, length)


class WebDatasetWriter(Writer):
    """Shards `00000.tar`, ... of samples `<opaque name>.jpg`, `.cls` and `.json`.

    `.cls` holds the person's number, `.json` the pseudonym. Unlabelled pictures have neither.
    """

    __slots__ = ("_count", "_shard")
    SAMPLES = 10_000
    """In one shard."""

    def begin(self, marks: Marks) -> None:
        self._count = marks.get("samples", 0)
        self._open(marks.get("bytes", 0))

    def _open(self, length: int) -> None:
        name = _name(max(0, self._count - 1) // self.SAMPLES)
        self._shard = Growing(self.root / name, length)

    def put(self, record: Record, person: str, data: bytes) -> str:
        if self._count and self._count % self.SAMPLES == 0:
            self._close()
            self._shard = Growing(self.root / _name(self._count // self.SAMPLES), 0)
        self._count += 1
        members = [(FORMATS[self.kind], data)]
        if record.identity is not None:
            members.append((".cls", str(self.number(person)).encode()))
            members.append((".json", json.dumps({"identity": person}).encode()))
        start, *_ = [self._member(record.key + suffix, body) for suffix, body in members]
        return f"{self._shard.path.name}@{start}+{len(data)}"

    def _member(self, name: str, data: bytes) -> int:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = len(data), EPOCH
        head = info.tobuf(tarfile.USTAR_FORMAT)
        return self._shard.append(head + data + b"\0" * (-len(data) % BLOCK)) + len(head)

    def flush(self) -> Marks:
        return {"samples": self._count, "bytes": self._shard.sync()}

    def finish(self, pictures: Iterable[Written]) -> Mapping[str, str | None]:
        self._close()
        return {}

    def _close(self) -> None:
        self._shard.append(b"\0" * 2 * BLOCK)
        self._shard.close()

    def files(self) -> list[str]:
        return [_name(index) for index in range(max(1, -(-self._count // self.SAMPLES)))]


class Img2datasetWriter(WebDatasetWriter):
    """WebDataset's shards, each with the table `00000.parquet` and `00000_stats.json`."""

    __slots__ = ()

    def finish(self, pictures: Iterable[Written]) -> Mapping[str, str | None]:
        WebDatasetWriter.finish(self, pictures)
        for shard, group in groupby(pictures, key=lambda one: one.output.partition("@")[0]):
            self._describe(Path(shard).stem, list(group))
        return {}

    def _describe(self, stem: str, group: list[Written]) -> None:
        columns: dict[str, list[Any]] = {
            "key": [one.handle for one in group],
            "identity": [one.person if one.labelled else None for one in group],
            "status": ["success"] * len(group),
            "sha256": [one.digest for one in group],
        }
        place([parquet(columns)], self.root / f"{stem}.parquet", self.scratch)
        counts = {"count": len(group), "successes": len(group), "failed_to_download": 0}
        stats = json.dumps(counts, sort_keys=True) + "\n"
        place([stats.encode()], self.root / f"{stem}_stats.json", self.scratch)

    def files(self) -> list[str]:
        stems = [Path(name).stem for name in WebDatasetWriter.files(self)] if self._count else []
        sides = [f"{stem}{suffix}" for stem in stems for suffix in (".parquet", "_stats.json")]
        return WebDatasetWriter.files(self) + sides


def _name(index: int) -> str:
    return f"{index:05}.tar"


def _label(suffix: str, data: bytes) -> str:
    text = data.decode("utf-8", "surrogateescape").strip()
    if suffix != "json":
        return text
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    found = [values.get(key) for key in KEYS] if isinstance(values, dict) else []
    names = [str(value) for value in found if isinstance(value, str | int) and value != ""]
    return names[0].encode("utf-8", "surrogatepass").decode("utf-8", "replace") if names else ""
