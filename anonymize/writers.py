"""Writes finished pictures: the only code that puts pixels into a release.

Where a picture went is told by the locator that the format's own reader would yield, so whatever
reads a data set can also check, show or convert a release.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

from anonymize.images import FORMATS, encode, padded
from anonymize.record import Record

EPOCH = 315_532_800
"""1980-01-01: the time stamp of every file, so that none tells when it was made."""

Marks = Mapping[str, int]
"""How far each growing file of a release is valid, and what else a writer counts."""


@dataclass(frozen=True, slots=True)
class Written:
    """A picture of a finished release: opaque handle, pseudonym, locator, SHA-256 of its file."""

    handle: str
    person: str
    labelled: bool
    output: str
    digest: str


@dataclass(slots=True)
class Writer(ABC):
    """Puts pictures into a release in one format.

    A run calls `begin` once, then `write` and now and then `flush`, and `finish` when every picture
    has its outcome. After a crash, `begin` gets the marks of the last `flush` that was journalled,
    and whatever was written after it is cut off.

    Attributes:
        root: DST.
        scratch: a private folder on the same disk, emptied before each run.
        number: a pseudonym's place among all pseudonyms, for formats whose labels are numbers.
        kind: `jpg` or `png`.
        quality: of JPEG, 1..100.
        order: `handle` for the keyed shuffle, `person` where a person's pictures lie together, in
            the keyed order of people.
    """

    root: Path
    scratch: Path
    number: Callable[[str], int] = lambda _: 0
    kind: str = "jpg"
    quality: int = 95

    order: ClassVar[str] = "handle"

    def write(self, record: Record, person: str) -> tuple[str, str]:
        """Stores a record's output.

        Args:
            record: with an output.
            person: pseudonym, also of pictures whose source named nobody.

        Returns:
            Its locator, and the SHA-256 of its encoded bytes.

        Raises:
            AssertionError: the record has no output, or is withheld.
        """
        if record.output is None or record.withheld is not None:
            raise AssertionError("refusing to write a record that was not anonymised")
        file = record.encoded or encode(record.output, self.kind, self.quality)
        data = padded(file, self.kind)
        return self.put(record, person, data), hashlib.sha256(data).hexdigest()

    @abstractmethod
    def put(self, record: Record, person: str, data: bytes) -> str:
        """Stores the encoded picture; returns its locator."""

    def begin(self, marks: Marks) -> None:
        """Makes ready to go on from the journalled marks, which are empty for a new release."""
        del marks

    def flush(self) -> Marks:
        """Makes what was written durable; the marks from which a killed run goes on."""
        return {}

    def finish(self, pictures: Iterable[Written]) -> Mapping[str, str | None]:
        """Completes the release; may be called again after a crash.

        Args:
            pictures: all that were written, in the order of their handles.

        Returns:
            Handles of pictures that lie elsewhere now, with their locators; None where the format
            had no place for one after all.
        """
        del pictures
        return {}

    def files(self) -> list[str]:
        """Paths below the release of what holds several pictures, or none."""
        return []


class FolderWriter(Writer):
    """`<pseudonym>/<opaque name>.jpg`; unlabelled pictures lie at the top."""

    __slots__ = ()

    def put(self, record: Record, person: str, data: bytes) -> str:
        name = record.key + FORMATS[self.kind]
        path = f"{person}/{name}" if record.identity is not None else name
        place([data], self.root / path, self.scratch)
        return path


@dataclass(slots=True)
class Growing:
    """A file that only ever grows, and can be cut back to where it was known to be whole."""

    path: Path
    length: int
    file: BinaryIO = field(init=False)

    def __post_init__(self) -> None:
        self.path.touch()
        self.file = self.path.open("r+b")
        self.file.truncate(self.length)
        self.file.seek(self.length)

    def append(self, data: bytes) -> int:
        """Adds bytes; returns where they begin."""
        begin = self.length
        self.file.write(data)
        self.length += len(data)
        return begin

    def sync(self) -> int:
        """Makes the file durable; returns its length."""
        self.file.flush()
        os.fsync(self.file.fileno())
        return self.length

    def close(self) -> None:
        """Completes the file."""
        self.sync()
        self.file.close()
        os.utime(self.path, (EPOCH, EPOCH))


def place(data: Iterable[bytes], target: Path, scratch: Path) -> str:
    """Writes a file in pieces under a temporary name, makes it durable and moves it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, digest = scratch / f"{target.name}.{os.getpid()}", hashlib.sha256()
    with partial.open("wb") as file:
        for piece in data:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    os.utime(partial, (EPOCH, EPOCH))
    partial.replace(target)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
