"""Writes finished pictures: the only code that puts pixels into a release."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from anonymize.images import FORMATS, encode
from anonymize.record import Record

EPOCH = 315_532_800
"""1980-01-01: the time stamp of every file, so that none tells when it was made."""


@dataclass(frozen=True, slots=True)
class FolderWriter:
    """`<pseudonym>/<opaque name>.jpg` below the release.

    Attributes:
        root: DST.
        scratch: a folder on the same disk where files are completed before they appear.
        kind: `jpg` or `png`.
        quality: of JPEG.
    """

    root: Path
    scratch: Path
    kind: str = "jpg"
    quality: int = 95

    def path(self, record: Record, person: str | None) -> str:
        """Where a record goes, below the release; unlabelled pictures lie at the top."""
        name = record.key + FORMATS[self.kind]
        return f"{person}/{name}" if person else name

    def encoded(self, record: Record) -> bytes:
        """The bytes of a record's file.

        Raises:
            AssertionError: the record has no output, or is withheld.
        """
        if record.output is None or record.withheld is not None:
            raise AssertionError("refusing to write a record that was not anonymised")
        return encode(record.output, self.kind, self.quality)

    def write(self, data: bytes, path: str) -> str:
        """Stores a file whole or not at all; returns its SHA-256."""
        return place(data, self.root / path, self.scratch)


def place(data: bytes, target: Path, scratch: Path) -> str:
    """Writes a file under a temporary name, makes it durable and moves it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = scratch / f"{target.name}.{os.getpid()}"
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.utime(partial, (EPOCH, EPOCH))
    partial.replace(target)
    return hashlib.sha256(data).hexdigest()
