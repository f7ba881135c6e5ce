"""Texts that accompany pictures: columns of tables, members of shards, files that lie beside."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from anonymize.images import SUFFIXES
from anonymize.shards import members

ROWS = 10_000
"""Rows or members of each file that are looked at: columns do not change their nature later."""

MOST = 1 << 20
"""Bytes of a text file or member that are looked at."""

LONGEST = 64 << 20
"""Bytes of a table's row."""

SEVEN = ("mid", "search rank", "image url", "page url", "face id", "rectangle")
SIX = ("mid", "name", "search rank", "image url", "page url")
"""Columns of MS-Celeb-1M's tables, but for the picture."""

TEXTS = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".lst", ".md", ".idl"})


class Note(NamedTuple):
    """A text: its place, such as `column url`, itself, its file, its role for `Tally.add`."""

    place: str
    text: str
    where: str
    role: str = "prose"


def notes(source: Path, reader: str) -> Iterator[Note]:
    """Every text beside the pictures of a dataset, from the beginning of each file.

    Args:
        source: SRC.
        reader: its format.
    """
    for path in files(source):
        where = path.name if path == source else path.relative_to(source).as_posix()
        try:
            yield from _of(path, where, reader)
        except (OSError, ValueError, csv.Error):
            continue  # the reader counts or refuses what is damaged


def files(source: Path) -> Iterator[Path]:
    """Files of SRC that are no pictures, or SRC itself; links are not followed."""
    if source.is_file():
        yield source
        return
    for folder, below, names in os.walk(source):
        below.sort()
        yield from (
            path
            for name in sorted(names)
            if (path := Path(folder, name)).suffix.lower() not in SUFFIXES and path.is_file()
        )


def _of(path: Path, where: str, reader: str) -> Iterator[Note]:
    suffix = path.suffix.lower()
    if suffix == ".tsv" and reader == "msceleb-tsv":
        yield from _rows(path, where)
    elif suffix == ".tar":
        yield from _members(path, where)
    elif suffix == ".csv":
        yield from _columns(path, where)
    elif suffix == ".parquet":
        yield from _parquet(path, where)
    elif suffix in TEXTS:
        yield from _loose(path, where)


def _rows(path: Path, where: str) -> Iterator[Note]:
    """MS-Celeb-1M's tables of pictures, or of names: a MID, a name, `@` and a language."""
    with path.open("rb") as file:
        for _ in range(ROWS):
            line = file.readline(LONGEST)
            if not line:
                return
            cells = [cell.decode("utf-8", "replace") for cell in line.rstrip(b"\r\n").split(b"\t")]
            titles = {7: SEVEN, 6: SIX, 2: ("mid", "name")}.get(len(cells), ())
            for title, cell in zip(titles, cells, strict=False):
                if title in ("name", "mid") or "url" in title:
                    text = cell.rpartition("@")[0].strip('"') if len(cells) == 2 else cell
                    yield Note(f"column {title}", text or cell, where, _role(title))


def _members(path: Path, where: str) -> Iterator[Note]:
    with path.open("rb") as file:
        for count, member in enumerate(members(file, {"not a regular member": 0})):
            suffix = member.name.rpartition(".")[2].lower()
            if count < ROWS and suffix in ("json", "txt") and member.size <= MOST:
                file.seek(member.start)
                text = file.read(member.size).decode("utf-8", "replace")
                if suffix == "txt":
                    yield Note("member .txt", text.strip(), where)
                else:
                    yield from (
                        Note(f"json {k}", leaf, where, _role(k)) for k, leaf in _leaves(text)
                    )


def _leaves(text: str) -> Iterator[tuple[str, str]]:
    """Keys and texts of a JSON value, if it is one; list items share their list's key."""
    left: list[tuple[str, Any]] = []
    with suppress(ValueError, RecursionError):
        left.append(("", json.loads(text)))
    while left:
        key, value = left.pop()
        if isinstance(value, dict):
            left += [(str(name), item) for name, item in value.items()]
        elif isinstance(value, list):
            left += [(key, item) for item in value]
        elif isinstance(value, str):
            yield key, value


def _columns(path: Path, where: str) -> Iterator[Note]:
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        lines = iter(lambda: file.readline(MOST), "")  # a line may have no end
        for count, row in enumerate(csv.DictReader(lines)):
            if count == ROWS:
                return
            for title, cell in row.items():
                if isinstance(cell, str) and cell:
                    yield Note(f"column {title}", cell, where, _role(title))


def _parquet(path: Path, where: str) -> Iterator[Note]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:  # without it, the reader refuses the table and says what to install
        return
    table: Any = ParquetFile(path)
    for batch in table.iter_batches(ROWS):
        for row in batch.to_pylist():
            for title, cell in row.items():
                if isinstance(cell, str) and cell:
                    yield Note(f"column {title}", cell, where, _role(title))
        return


def _role(title: str) -> str:
    """What the cells of a column are to be taken for, by its title."""
    words = set(re.split(r"[\W_]+", title.casefold()))
    says = bool(words & {"name", "person", "identity", "subject", "label", "celebrity", "author"})
    return "label" if says and "file" not in words else "cell"


def _loose(path: Path, where: str) -> Iterator[Note]:
    """Lines of a text file; where they have columns, the parts of each."""
    place = f"file {path.suffix.lower()} beside the pictures"
    with path.open("rb") as file:
        text = file.read(MOST).decode("utf-8", "replace")
    if path.suffix.lower() == ".json":
        for key, leaf in _leaves(text):
            yield Note(f"{place}, {key}", leaf, where, _role(key))
        return
    for line in text.splitlines()[:ROWS]:
        if line.strip():
            parts, role = line.split("\t"), "cell" if "\t" in line else "prose"
            yield from (Note(place, part.strip(), where, role) for part in parts if part.strip())
