"""Finds the pictures of a dataset and who is in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from anonymize import registry
from anonymize.errors import ConfigError
from anonymize.images import SUFFIXES, read_file


@dataclass(frozen=True, slots=True)
class Source:
    """One picture: where it is in the dataset, and its person's label, if there is one.

    `name` is what lists about the dataset call it, where that is not its path.
    """

    path: str
    label: str | None
    name: str = ""


class Reader(Protocol):
    """Lists the pictures of a dataset, and opens any of them again.

    Attributes:
        ignored: after iteration, how many entries were passed over, by kind.
    """

    ignored: dict[str, int]

    def __iter__(self) -> Iterator[Source]:
        """Every picture; memory does not grow with the dataset."""
        ...

    def load(self, locator: str) -> bytes:
        """The encoded picture at a `Source.path`.

        Raises:
            Withhold: it cannot be read.
        """
        ...


class DamagedError(ValueError):
    """A file that is not what its format asks for, with the byte where that shows."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(f"byte {offset}: {problem}")
        self.offset = offset


BY_SUFFIX = {
    ".tsv": "msceleb-tsv",
    ".rec": "recordio",
    ".bin": "verification-bin",
    ".tar": "webdataset",
    ".csv": "manifest",
    ".parquet": "manifest",
}


def containers(root: Path, suffix: str) -> list[tuple[Path, str]]:
    """The files of a format that SRC is, or holds: (path, path below SRC or empty for SRC itself).

    Raises:
        ConfigError: there is none.
    """
    if root.is_file():
        return [(root, "")]
    found = sorted(p for p in root.rglob(f"*{suffix}") if p.is_file())
    if not found:
        raise ConfigError(f"SRC {root}: found no {suffix} file")
    return [(path, path.relative_to(root).as_posix()) for path in found]


def sniff(root: Path) -> str:
    """The format of SRC by its suffix, or by that of the files in a folder.

    Raises:
        ConfigError: SRC is not there, or of no known format.
    """
    if root.is_file():
        if root.suffix not in BY_SUFFIX:
            known = ", ".join(BY_SUFFIX)
            raise ConfigError(f"SRC {root}: got a {root.suffix} file, expected a folder or {known}")
        return BY_SUFFIX[root.suffix]
    if not root.is_dir():
        raise ConfigError(f"SRC {root}: expected a folder of pictures, found none")
    entries = list(os.scandir(root))
    suffixes = {Path(entry.name).suffix.lower() for entry in entries if entry.is_file()}
    kinds = sorted({BY_SUFFIX[suffix] for suffix in suffixes & set(BY_SUFFIX)} - {"manifest"})
    tables = suffixes & {".csv", ".parquet"}
    pictures = bool(suffixes & SUFFIXES) or any(entry.is_dir() for entry in entries)
    if len(kinds) > 1 or (kinds and suffixes & SUFFIXES):
        raise ConfigError(
            f"SRC {root} holds more than one kind of data ({', '.join(kinds)}"
            f"{', pictures' if pictures else ''}): say which with --from, or name one file"
        )
    if not kinds and tables and suffixes & SUFFIXES and not any(e.is_dir() for e in entries):
        raise ConfigError(
            f"SRC {root} is a flat folder with a table: name the table as SRC, or give "
            "--from folder to leave the pictures without labels"
        )
    return kinds[0] if kinds else "folder"


def fingerprint(root: Path) -> str:
    """Names, sizes and times of the container files that SRC is or holds; empty for folders.

    Locators point into these files, so a run must not go on after one has changed.
    """
    files = [root] if root.is_file() else []
    for suffix in () if files else (".rec", ".tar", ".tsv"):
        files += sorted(path for path in root.rglob(f"*{suffix}") if path.is_file())
    stats = [
        (p.relative_to(root).as_posix(), p.stat().st_size, p.stat().st_mtime_ns) for p in files
    ]
    return hashlib.sha256(repr(stats).encode()).hexdigest() if stats else ""


def open_source(root: Path, name: str = "", **options: Any) -> Reader:
    """The reader of a dataset: by name, or by what it looks like.

    Raises:
        ConfigError: unknown, absent, or options that the format does not take.
    """
    reader: Reader = registry.load("reader", name or sniff(root), root=root, **options)
    return reader


@dataclass(slots=True)
class Folder:
    """A folder per person: `<person>/<picture>`, nested as deep as you like.

    The label of a picture is its folder below SRC; pictures that lie directly in SRC have none.
    Folder links are not followed, so loops cannot trap the reader; both they and files that are no
    pictures are counted, not read.

    Attributes:
        root: SRC.
        ignored: after iteration, how many entries were passed over, by kind.
    """

    root: Path
    ignored: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise ConfigError(f"SRC {self.root}: expected a folder of pictures")

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {"not a picture": 0, "folder link": 0, "folder cannot be read": 0}
        yield from self._walk("")

    def load(self, locator: str) -> bytes:
        """The picture file below the folder."""
        return read_file(self.root / locator)

    def _walk(self, below: str) -> Iterator[Source]:
        try:
            entries = sorted(os.scandir(self.root / below), key=lambda entry: entry.name)
        except OSError:
            self.ignored["folder cannot be read"] += 1
            return
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(path)
            elif Path(entry.name).suffix.lower() in SUFFIXES:
                yield Source(path, below or None)
            else:
                kind = "folder link" if _is_folder_link(entry) else "not a picture"
                self.ignored[kind] += 1


def _is_folder_link(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:  # a link in a loop
        return True
