"""MS-Celeb-1M's tables: one row per picture, the picture itself in base64.

Three layouts circulate: two of cropped faces with 7 columns, and the thumbnails with 6. They are
split as bytes, because a row can be megabytes long and is never quoted.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anonymize.errors import ConfigError, Withhold
from anonymize.images import read_part
from anonymize.readers import DamagedError, Source, containers
from anonymize.record import Record
from anonymize.writers import Growing, Marks, Writer, Written

LONGEST = 64 << 20
"""Bytes of a row; a longer one means that this is no such table."""

MID = re.compile(rb"/?m[./][0-9a-z_]+")
"""A Freebase identifier, as these tables name people."""

NAMES = re.compile(rb'[^\t]+\t"[^"\t]*"@[a-zA-Z-]+\r?\n?')
"""A row of Top1M_MidList.Name.tsv."""


@dataclass(slots=True)
class MsCelebTsv:
    """Pictures of a `.tsv` file, or of all below a folder; labels are the MIDs.

    Attributes:
        root: SRC.
        skip_bad: count rows that do not fit instead of stopping.
        ignored: after iteration, what was passed over.
    """

    root: Path
    skip_bad: bool = False
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {"damaged row": 0}
        for path, name in containers(self.root, ".tsv"):
            yield from self._rows(path, name)

    def _rows(self, path: Path, name: str) -> Iterator[Source]:
        position = 0
        with path.open("rb") as file:
            refuse_names(path, file.readline(4096))
            file.seek(0)
            while line := file.readline(LONGEST):
                try:
                    if len(line) == LONGEST:
                        raise DamagedError(position, f"a row of more than {LONGEST} bytes")
                    columns = _columns(line, position)
                    mid = columns[0].decode("utf-8")
                    place = f"{name}@{position}+{len(line)}"
                    yield Source(place, mid, _listed(mid, columns))
                except (DamagedError, UnicodeDecodeError) as error:
                    if not self.skip_bad:
                        raise ConfigError(
                            f"{path}: {error}; --skip-bad counts damaged rows and goes on"
                        ) from error
                    self.ignored["damaged row"] += 1
                position += len(line)

    def load(self, locator: str) -> bytes:
        """The picture file in a row."""
        name, _, place = locator.rpartition("@")
        start, length = (int(number) for number in place.split("+"))
        line = read_part(self.root / name if name else self.root, start, length)
        try:
            return base64.b64decode(_columns(line, start)[-1], validate=True)
        except (DamagedError, binascii.Error) as error:
            raise Withhold("row is damaged") from error


class MsCelebTsvWriter(Writer):
    """`faces.tsv` in the layout of the cropped faces: 7 columns, a row per picture.

    Pseudonyms take the place of MIDs; rank, addresses and rectangle, which tell of the source, are
    empty or the same in every row.
    """

    __slots__ = ("_table",)
    NAME = "faces.tsv"
    WHOLE = base64.b64encode(struct.pack("<4f", 0, 0, 1, 1))

    def begin(self, marks: Marks) -> None:
        self._table = Growing(self.root / self.NAME, marks.get(self.NAME, 0))

    def put(self, record: Record, person: str, data: bytes) -> str:
        mid, picture = f"m.{person}".encode(), base64.b64encode(data)
        row = b"\t".join((mid, b"0", b"", b"", b"FaceId-0", self.WHOLE, picture)) + b"\n"
        return f"{self.NAME}@{self._table.append(row)}+{len(row)}"

    def flush(self) -> Marks:
        return {self.NAME: self._table.sync()}

    def finish(self, pictures: Iterable[Written]) -> Mapping[str, str | None]:
        self._table.close()
        return {}

    def files(self) -> list[str]:
        return [self.NAME]


def _listed(mid: str, columns: list[bytes]) -> str:
    """What clean lists call a row: `MID/rank-FaceId-n`."""
    rank = columns[1] if len(columns) == 7 else columns[2]
    face = columns[4] if len(columns) == 7 else b"FaceId-0"
    return f"{mid}/{rank.decode('utf-8', 'replace')}-{face.decode('utf-8', 'replace')}"


def _columns(line: bytes, position: int) -> list[bytes]:
    columns = line.rstrip(b"\r\n").split(b"\t")
    if len(columns) not in (6, 7):
        got = f"{len(columns)} columns"
        raise DamagedError(position, f"got {got}, expected 7 (cropped faces) or 6 (thumbnails)")
    if not MID.fullmatch(columns[0]):
        raise DamagedError(position, f"the first column is no Freebase MID: {columns[0][:40]!r}")
    if len(columns) == 7 and not columns[4].startswith(b"FaceId-"):
        raise DamagedError(position, f"got {columns[4][:40]!r}, expected FaceId-n in column 5")
    return columns


def refuse_names(path: Path, row: bytes) -> None:
    """Refuses tables of people's names, such as Top1M_MidList.Name.tsv.

    Raises:
        ConfigError: this is one.
    """
    if NAMES.match(row):
        raise ConfigError(
            f"{path} is a table of people's names, not of pictures: nothing in it can be "
            "anonymised, and it must not accompany a release; leave it out"
        )
