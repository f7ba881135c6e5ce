"""Lists about a dataset: which pictures of it are clean, and who wants to be left out."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from anonymize.errors import ConfigError
from anonymize.readers import Reader, Source


def read_labels(path: Path) -> set[str]:
    """Labels or pictures, one a line; empty lines and those that begin with # say nothing.

    Raises:
        ConfigError: unreadable, or no label in it.
    """
    try:
        lines = path.read_text("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    labels = {line.strip() for line in lines} - {""}
    labels = {label for label in labels if not label.startswith("#")}
    if not labels:
        raise ConfigError(f"{path}: got no label, expected one a line, as SRC names its people")
    return labels


@dataclass(slots=True)
class Clean:
    """A reader that yields only what a clean list keeps, under the list's labels.

    Lists of cleaned versions of MS-Celeb-1M have a line per picture, `label path` (C-MS-Celeb) or
    `path label` (LightCNN); the path is what holds a slash. Twelve bytes are kept per line.

    Attributes:
        reader: what is filtered.
        path: the list.
    """

    reader: Reader
    path: Path
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        names, labels, known = self._listed()
        left_out = found = 0
        for item in self.reader:
            name = _hash(item.name or item.path)
            place = int(np.searchsorted(names, name))
            if place < len(names) and names[place] == name:
                found += 1
                yield Source(item.path, known[labels[place]], item.name)
            else:
                left_out += 1
        if not found:
            raise ConfigError(
                f"{self.path} keeps no picture of the source: got paths like "
                f"{_first(self.path)!r}, expected them as SRC names its pictures"
            )
        counts = {"not on the clean list": left_out, "listed, but not there": len(names) - found}
        self.ignored = {**self.reader.ignored, **counts}

    def load(self, locator: str) -> bytes:
        """The picture, from the filtered reader."""
        return self.reader.load(locator)

    def _listed(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Sorted hashes of paths, numbers of their labels, and the labels."""
        names, labels, numbers = array("Q"), array("L"), dict[str, int]()
        for path, label in _lines(self.path):
            names.append(_hash(path))
            labels.append(numbers.setdefault(label, len(numbers)))
        hashes = np.frombuffer(names, np.uint64)
        hashes, first = np.unique(hashes, return_index=True)
        if len(hashes) < len(names):
            raise ConfigError(f"{self.path}: a picture is listed more than once")
        return hashes, np.frombuffer(labels, f"u{labels.itemsize}")[first], list(numbers)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(path, label) of each line, in either order."""
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                words = line.split()
                if not words:
                    continue
                paths = [word for word in words if "/" in word]
                if len(words) != 2 or len(paths) != 1:
                    raise ConfigError(
                        f"{path}, line {number}: got {line.strip()[:80]!r}, expected a path (with "
                        "a slash) and a label"
                    )
                yield paths[0], words[1 - words.index(paths[0])]
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _first(path: Path) -> str:
    return next(_lines(path), ("", ""))[0]


def _hash(name: str) -> int:
    """64 bits of a picture's name, without what kind of file it is."""
    stem = name.rsplit(".", 1)[0] if "/" in name and "." in name.rsplit("/", 1)[1] else name
    digest = hashlib.blake2b(stem.encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")
