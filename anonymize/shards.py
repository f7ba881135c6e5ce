"""WebDataset shards and what img2dataset makes: tar files whose members share base names."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anonymize.errors import ConfigError
from anonymize.images import SUFFIXES
from anonymize.readers import Source

MOST_TEXT = 1 << 20
"""Bytes of a label file; a longer one is no label."""

KEYS = ("identity", "label", "person", "cls")
"""Where a sample's JSON may name its person."""


@dataclass(slots=True)
class WebDataset:
    """Pictures of a `.tar` file, or of all below a folder.

    A sample is what shares a name up to the first dot of its last part. Its label is the text of
    its `.cls` or `.txt`, or one of `KEYS` in its `.json`; without any it has none.

    Attributes:
        root: SRC.
        ignored: after iteration, what was passed over.
    """

    root: Path
    ignored: dict[str, int] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Source]:
        self.ignored = {"sample without a picture": 0, "not a regular member": 0}
        files = [self.root] if self.root.is_file() else sorted(self.root.rglob("*.tar"))
        if not files:
            raise ConfigError(f"SRC {self.root}: found no .tar file")
        for path in files:
            name = "" if path == self.root else path.relative_to(self.root).as_posix()
            try:
                yield from self._samples(path, name)
            except tarfile.TarError as error:
                raise ConfigError(f"{path} is not a whole tar file: {error}") from error

    def _samples(self, path: Path, name: str) -> Iterator[Source]:
        sample, place, label = "", "", None
        with tarfile.open(path, "r:") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would remember every member of every shard
                if not member.isfile():
                    self.ignored["not a regular member"] += 1
                    continue
                folder, _, last = member.name.rpartition("/")
                base, _, suffix = last.partition(".")
                if f"{folder}/{base}" != sample:
                    yield from self._done(place, label, sample)
                    sample, place, label = f"{folder}/{base}", "", None
                if f".{suffix.lower()}" in SUFFIXES:
                    place = f"{name}@{member.offset_data}+{member.size}"
                elif suffix in ("cls", "txt", "json") and member.size <= MOST_TEXT:
                    file = tar.extractfile(member)
                    label = _label(suffix, file.read() if file else b"") or label
            yield from self._done(place, label, sample)

    def _done(self, place: str, label: str | None, sample: str) -> Iterator[Source]:
        if place:
            yield Source(place, label)
        elif sample:
            self.ignored["sample without a picture"] += 1

    def load(self, locator: str) -> bytes:
        """The picture file of a sample."""
        name, _, place = locator.rpartition("@")
        start, length = (int(number) for number in place.split("+"))
        with (self.root / name if name else self.root).open("rb") as file:
            file.seek(start)
            return file.read(length)


def _label(suffix: str, data: bytes) -> str | None:
    text = data.decode("utf-8", "replace").strip()
    if suffix != "json":
        return text or None
    try:
        values: Any = json.loads(text)
    except ValueError:
        return None
    found = [values[key] for key in KEYS if key in values] if isinstance(values, dict) else []
    return str(found[0]) if found else None
