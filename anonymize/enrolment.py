"""Which pictures of a source take part in a run, and the names that they get there."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anonymize import seeds
from anonymize.errors import ConfigError
from anonymize.identities import pseudonym
from anonymize.lists import Clean
from anonymize.readers import Reader, fingerprint, open_source, sniff
from anonymize.recipe import Recipe
from anonymize.state import Input, State
from anonymize.writers import sha256


@dataclass(frozen=True, slots=True)
class Choice:
    """Which pictures of a source take part: at most `limit`, not of `excluded`, on the list."""

    limit: int | None
    excluded: set[str]
    clean_list: Path | None

    def mark(self) -> list[Any]:
        """What tells two choices apart."""
        listed = sha256(self.clean_list) if self.clean_list else None
        return [self.limit, sorted(self.excluded), listed]


def open_again(state: State, source: Path, recipe: Recipe, choice: Choice) -> Reader:
    """Opens SRC; a resumed run must find what was enrolled, and read it in the same way.

    Raises:
        ConfigError: it is not what the run was begun with.
    """
    known = state.get("source")
    name = recipe.reader or sniff(source)
    mark = json.dumps([name, fingerprint(source), *choice.mark()])
    if known is not None and known != mark:
        raise ConfigError(
            f"SRC {source} (or --from, --limit, --exclude, --clean-list) is not what this "
            "run was begun with: resume it with the same, or start another release"
        )
    state.set("source", mark)
    reader = open_source(source, name, **recipe.reader_options)
    if choice.clean_list:
        return Clean(reader, choice.clean_list)
    return reader


def enrol(state: State, reader: Reader, choice: Choice) -> dict[str, int]:
    """Puts every picture of the source into the journal once, in the keyed order."""
    stored = state.get("ignored")
    if stored is not None:
        return dict[str, int](json.loads(stored))
    absent = set(choice.excluded)
    inputs: Iterable[Input] = (
        _input(state.key, i.path, i.label, choice.excluded, absent) for i in reader
    )
    if choice.limit is not None:
        inputs = heapq.nsmallest(choice.limit, inputs, key=lambda item: item.handle)
    if not state.enrol(inputs):
        raise ConfigError("SRC: found no picture in it or below it")
    ignored = dict(reader.ignored)
    if choice.excluded:
        ignored["excluded label that is not in SRC"] = len(absent)
    state.set("ignored", json.dumps(ignored))
    return ignored


def _input(key: bytes, path: str, label: str | None, excluded: set[str], absent: set[str]) -> Input:
    person = pseudonym(key, f"picture {path}" if label is None else f"label {label}")
    out = label in excluded
    absent.discard(label or "")
    handle = seeds.handle(key, "picture", path)
    return Input(handle, path, person, label is not None, "excluded" if out else None)
