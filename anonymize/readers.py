"""Finds the pictures of a dataset and who is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from anonymize.errors import ConfigError
from anonymize.images import SUFFIXES


@dataclass(frozen=True, slots=True)
class Source:
    """One picture: its path below the dataset, and its person's label, if there is one."""

    path: str
    label: str | None


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
