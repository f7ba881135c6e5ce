"""Flat folders with a table: CSV or Parquet with the columns path and identity."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anonymize.errors import ConfigError, Withhold
from anonymize.images import FORMATS, read_file
from anonymize.readers import Source
from anonymize.record import Record
from anonymize.writers import Writer, Written, place

PATH, IDENTITY = "path", "identity"


@dataclass(slots=True)
class Manifest:
    """Pictures that a `.csv` or `.parquet` file lists, paths relative to the file.

    Attributes:
        root: SRC, the table.
        ignored: kept for the protocol.
    """

    root: Path
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {"row without a path": 0}
        read = _parquet if self.root.suffix == ".parquet" else _csv
        for path, identity in read(self.root):
            if path:
                yield Source(posixpath.normpath(path), identity or None)
            else:
                self.ignored["row without a path"] += 1

    def load(self, locator: str) -> bytes:
        """The listed file, which must lie beside or below the table."""
        home = self.root.parent.resolve()
        try:
            path = (home / locator).resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise Withhold("not a readable file") from error
        if not path.is_relative_to(home):
            raise Withhold("path leaves the folder of its table")
        return read_file(path)


class ManifestWriter(Writer):
    """A flat folder `images` and the table `images.csv` with the columns path and identity."""

    __slots__ = ()
    TABLE = "images.csv"

    def put(self, record: Record, person: str, data: bytes) -> str:
        path = f"images/{record.key}{FORMATS[self.kind]}"
        place([data], self.root / path, self.scratch)
        return path

    def finish(self, pictures: Iterable[Written]) -> Mapping[str, str | None]:
        rows = [(one.output, one.person if one.labelled else "") for one in pictures]
        place([self.table(rows)], self.root / self.TABLE, self.scratch)
        return {}

    def table(self, rows: list[tuple[str, str]]) -> bytes:
        """The encoded table of (path, identity) rows."""
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([(PATH, IDENTITY), *rows])
        return text.getvalue().encode()

    def files(self) -> list[str]:
        return [self.TABLE]


class ParquetWriter(ManifestWriter):
    """The same with the table `images.parquet`."""

    __slots__ = ()
    TABLE = "images.parquet"

    def table(self, rows: list[tuple[str, str]]) -> bytes:
        paths, people = ([row[column] for row in rows] for column in (0, 1))
        return parquet({PATH: paths, IDENTITY: [person or None for person in people]})


def parquet(columns: Mapping[str, list[Any]]) -> bytes:
    """The bytes of a Parquet file.

    Raises:
        ConfigError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow.parquet import write_table
    except ImportError as error:
        raise ConfigError("writing Parquet needs pyarrow (pip install pyarrow)") from error
    sink = io.BytesIO()
    write_table(pyarrow.table(dict(columns)), sink)
    return sink.getvalue()


def _csv(table: Path) -> Iterator[tuple[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.DictReader(file)
            _check(table, list(rows.fieldnames or ()))
            yield from ((row[PATH] or "", row[IDENTITY] or "") for row in rows)
    except csv.Error as error:
        raise ConfigError(f"{table} is not a CSV file: {error}") from error


def _parquet(table: Path) -> Iterator[tuple[str, str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError(f"{table}: Parquet needs pyarrow (pip install pyarrow)") from error
    try:
        file: Any = ParquetFile(table)
        _check(table, file.schema_arrow.names)
        for batch in file.iter_batches(4096, columns=[PATH, IDENTITY]):
            for row in batch.to_pylist():
                values = (row[PATH], row[IDENTITY])
                missing = values[1] is None or values[1] != values[1]  # null or not a number
                yield str(values[0] or ""), "" if missing else str(values[1])
    except (ArrowException, OSError, ValueError) as error:  # texts are decoded one by one
        raise ConfigError(f"{table} is not a Parquet file: {error}") from error


def _check(table: Path, names: list[str]) -> None:
    if not {PATH, IDENTITY} <= set(names):
        raise ConfigError(
            f"{table}: got the columns {', '.join(names) or 'none'}; expected {PATH} and {IDENTITY}"
        )
