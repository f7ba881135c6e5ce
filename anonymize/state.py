"""A release's private side: the key, the link table and the journal that a killed run resumes from.

It lives in `DST.private/`, never in DST, and `anonymize seal` destroys it.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from anonymize import kept, seeds
from anonymize.errors import ConfigError, ReleaseError
from anonymize.identities import Person, pooled
from anonymize.pipeline import INTERNAL, NO_MEMORY
from anonymize.record import Face, Floats

SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS inputs (
    handle TEXT PRIMARY KEY,      -- opaque; sorting by it is the keyed shuffle
    source BLOB NOT NULL UNIQUE,  -- path below SRC, as the file system spells it
    person TEXT NOT NULL,         -- pseudonym
    labelled INTEGER NOT NULL,    -- 0 where the source names no person
    faces TEXT,                   -- survey's result, JSON
    logits BLOB,                  -- float32 cell logits of the subject
    output TEXT,                  -- path below DST
    digest TEXT,                  -- SHA-256 of the output file
    replaced INTEGER,             -- faces replaced
    withheld TEXT                 -- reason
);
CREATE INDEX IF NOT EXISTS inputs_person ON inputs (person);
"""


def private_folder(release: Path) -> Path:
    """`DST.private` for DST."""
    return release.with_name(release.name + ".private")


@dataclass(frozen=True, slots=True)
class Input:
    """One row: a picture of the source. `handle` is opaque, `source` is its path below SRC.

    `withheld` is a reason that is known from the start.
    """

    handle: str
    source: str
    person: str
    labelled: bool
    withheld: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What became of an input: exactly one of `output` (with `digest`) and `withheld` is set."""

    handle: str
    person: str
    labelled: bool
    output: str | None
    digest: str | None
    replaced: int | None
    withheld: str | None


class State:
    """The private folder of a release.

    Args:
        folder: `DST.private`.
        key: the secret of a new release; None opens an existing one.

    Raises:
        ReleaseError: there is no such private state, or it is damaged.
    """

    def __init__(self, folder: Path, key: bytes | None = None) -> None:
        self.folder = folder
        if key is not None:
            folder.mkdir(mode=0o700, parents=True)
            seeds.write_key(folder / "key", key)
        try:
            self.key = seeds.read_key(folder / "key")
            self.db = sqlite3.connect(folder / "state.sqlite", check_same_thread=False)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=FULL")
            self.db.executescript(SCHEMA + kept.PEOPLE)
        except ConfigError as error:
            raise ReleaseError(
                f"{folder} holds no private state: sealed already, or not made by `anonymize run`"
            ) from error
        except sqlite3.Error as error:
            raise ReleaseError(f"{folder / 'state.sqlite'} is damaged: {error}") from error
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)  # not emptied: a run may be using it

    def close(self) -> None:
        """Lets go of the database; closing twice is harmless."""
        self.db.close()

    def get(self, name: str) -> str | None:
        """A remembered value."""
        row = self.db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, name: str, value: str) -> None:
        """Remembers a value."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
        self.db.commit()

    def reopen(self) -> None:
        """Makes a finished release ready to take in what its source has gained.

        Raises:
            ReleaseError: it is not finished, or its format cannot grow.
        """
        reader = json.loads(self.get("source") or '[""]')[0]
        self._check_growing(reader == "folder")
        with self.db:
            self.db.execute(
                "DELETE FROM meta WHERE name IN ('summary', 'planned', 'ignored', 'source')"
            )

    def retry(self) -> None:
        """Makes a finished release ready to try again what failed by no fault of the pictures.

        Raises:
            ReleaseError: it is not finished, or its format cannot grow.
        """
        self._check_growing()
        with self.db:
            self.db.execute(
                "UPDATE inputs SET withheld = NULL WHERE withheld = ? OR withheld LIKE ?",
                (NO_MEMORY, f"{INTERNAL} %"),
            )
            self.db.execute("DELETE FROM meta WHERE name IN ('summary', 'planned')")

    def _check_growing(self, source: bool = True) -> None:
        if self.get("summary") is None:
            raise ReleaseError(f"{self.folder}: the run is not finished; resume it first")
        writer = json.loads(self.get("recipe") or "{}").get("writer")
        if not source or writer not in ("folder", "manifest", "manifest-parquet"):
            raise ReleaseError(
                "only folders and flat folders with a table can grow: make another release with "
                "the same --key-file, which keeps everybody's new face"
            )

    def enrol(self, inputs: Iterable[Input]) -> int:
        """Adds inputs that are not there yet; returns how many there are now.

        Raises:
            ReleaseError: two inputs share a handle (a collision of 64-bit names).
        """
        offered = 0

        def rows() -> Iterator[tuple[str, bytes, str, int, str | None]]:
            nonlocal offered
            for i in inputs:
                offered += 1
                yield i.handle, os.fsencode(i.source), i.person, int(i.labelled), i.withheld

        try:
            self.db.executemany(
                "INSERT INTO inputs (handle, source, person, labelled, withheld) "
                "VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (source) DO NOTHING",
                rows(),
            )
        except sqlite3.IntegrityError as error:
            raise ReleaseError(f"two inputs got one name, use another key: {error}") from error
        if offered > (kept := self.count()):
            self.db.rollback()
            raise ConfigError(f"{offered - kept} pictures of the source are listed more than once")
        self.db.commit()
        return kept

    def count(self, where: str = "1") -> int:
        """Inputs that meet an SQL condition of ours."""
        return int(self.db.execute(f"SELECT COUNT(*) FROM inputs WHERE {where}").fetchone()[0])

    def person(self, handle: str) -> str:
        """The pseudonym of an input."""
        row = self.db.execute("SELECT person FROM inputs WHERE handle = ?", (handle,)).fetchone()
        return str(row[0])

    def to_survey(self) -> Iterator[Input]:
        """Inputs whose faces are not known yet."""
        return self._inputs("faces IS NULL AND withheld IS NULL")

    def to_make(self, order: str = "handle") -> Iterator[tuple[Input, tuple[Face, ...]]]:
        """Surveyed inputs without an outcome, with their faces.

        Args:
            order: `handle` for the keyed shuffle, `person` for each pseudonym's together.
        """
        rows = self._inputs("faces IS NOT NULL AND output IS NULL AND withheld IS NULL", order)
        for row in rows:
            stored = self.db.execute("SELECT faces FROM inputs WHERE handle = ?", (row.handle,))
            yield row, _faces(stored.fetchone()[0])

    def _inputs(self, where: str, order: str = "handle") -> Iterator[Input]:
        first = "person" if order == "person" else "''"
        last = ("", "")
        query = (
            "SELECT handle, source, person, labelled FROM inputs "
            f"WHERE ({first}, handle) > (?, ?) AND {where} ORDER BY {first}, handle LIMIT 1000"
        )
        while page := self.db.execute(query, last).fetchall():
            yield from (Input(h, os.fsdecode(s), p, bool(labelled)) for h, s, p, labelled in page)
            last = (page[-1][2] if order == "person" else "", page[-1][0])

    def numbers(self) -> dict[str, int]:
        """Each pseudonym's place among all of them, in their keyed order."""
        rows = self.db.execute("SELECT DISTINCT person FROM inputs ORDER BY person")
        return {person: place for place, (person,) in enumerate(rows)}

    def surveyed(self, handle: str, faces: tuple[Face, ...], logits: Floats | None) -> None:
        """Journals an input's faces; `commit` makes it last."""
        values = [
            [f.box.tolist(), f.score, f.landmarks.tolist(), f.subject, _packed(f.embedding)]
            for f in faces
        ]
        blob = None if logits is None else logits.astype("<f4").tobytes()
        self.db.execute(
            "UPDATE inputs SET faces = ?, logits = ? WHERE handle = ?",
            (json.dumps(values), blob, handle),
        )

    def finished(
        self,
        handle: str,
        output: str | None = None,
        digest: str | None = None,
        replaced: int | None = None,
        withheld: str | None = None,
    ) -> None:
        """Journals an input's outcome; `commit` makes it last."""
        self.db.execute(
            "UPDATE inputs SET output = ?, digest = ?, replaced = ?, withheld = ? WHERE handle = ?",
            (output, digest, replaced, withheld, handle),
        )

    def mark(self, marks: Mapping[str, int]) -> None:
        """Journals how far the release's files are valid; `commit` makes it last."""
        self.db.execute("INSERT OR REPLACE INTO meta VALUES ('marks', ?)", (json.dumps(marks),))

    def moved(self, places: Mapping[str, str | None]) -> None:
        """Journals where pictures lie now; those with None are withheld."""
        for handle, place in places.items():
            row = (place, None if place else "no picture was left to pair it with", handle)
            self.db.execute("UPDATE inputs SET output = ?, withheld = ? WHERE handle = ?", row)
        self.db.commit()

    def commit(self) -> None:
        """Makes what was journalled survive a crash."""
        self.db.commit()

    def people(self) -> dict[str, Floats | None]:
        """Pseudonyms with what their surveyed pictures together suggest, see `pooled`."""
        pairs = self._by_person("logits")
        seen = ((p, [np.frombuffer(b, "<f4") for b in blobs if b]) for p, blobs in pairs)
        return {person: pooled(logits) if logits else None for person, logits in seen}

    def templates(self) -> dict[str, Floats]:
        """The mean embedding (128,) of the subject in each pseudonym's surveyed sources."""
        means = {
            person: _mean(face.embedding for text in texts for face in _faces(text)[:1])
            for person, texts in self._by_person("faces")
        }
        return {person: mean for person, mean in means.items() if mean is not None}

    def _by_person(self, column: str) -> Iterator[tuple[str, Iterator[Any]]]:
        """A column's values in the surveyed pictures of each labelled person."""
        rows = self.db.execute(
            f"SELECT person, {column} FROM inputs "
            "WHERE labelled AND faces IS NOT NULL ORDER BY person, handle"
        )
        for person, group in groupby(rows, key=itemgetter(0)):
            yield person, (value for _, value in group)

    def drafts(self, count: int) -> Iterator[tuple[Input, tuple[Face, ...]]]:
        """The first pictures of each labelled person, at most `count`, with their faces."""
        rows = self.db.execute(
            "SELECT person, handle, source, faces FROM inputs "
            "WHERE labelled AND faces IS NOT NULL AND withheld IS NULL ORDER BY person, handle"
        )
        for person, group in groupby(rows, key=itemgetter(0)):
            for _, handle, source, faces in islice(group, count):
                yield Input(handle, os.fsdecode(source), person, True), _faces(faces)

    def plan(self, people: Mapping[str, Person]) -> None:
        """Stores new people by pseudonym; those who are there already stay as they are."""
        kept.store(self.db, people)

    def planned(self) -> dict[str, Person]:
        """The new people by pseudonym."""
        return kept.stored(self.db)

    def plan_summary(self) -> dict[str, int]:
        """Counts of the identity plan: people, cells in use, redraws, people not kept apart."""
        people, cells, draws, close = self.db.execute(
            "SELECT COUNT(*), COUNT(DISTINCT cell), TOTAL(draws - 1), TOTAL(NOT apart) FROM people"
        ).fetchone()
        return {
            "people": people,
            "cells": cells,
            "redraws": int(draws),
            "too_close": int(close),
        }

    def rows(self) -> Iterator[Row]:
        """Every input's outcome in the order of the opaque handles."""
        query = (
            "SELECT handle, person, labelled, output, digest, replaced, withheld "
            "FROM inputs ORDER BY handle"
        )
        return (Row(h, p, bool(named), *rest) for h, p, named, *rest in self.db.execute(query))

    def outcome(self) -> dict[str, Any]:
        """The counts of a finished run, as `run.Summary` names them."""
        read, written, withheld, people, faces = self.db.execute(
            "SELECT COUNT(*), COUNT(output), COUNT(withheld), "
            "COUNT(DISTINCT CASE WHEN output IS NOT NULL THEN person END), "
            "TOTAL(CASE WHEN output IS NOT NULL THEN replaced END) FROM inputs"
        ).fetchone()
        reasons = self.db.execute(
            "SELECT withheld, COUNT(*) FROM inputs WHERE withheld IS NOT NULL "
            "GROUP BY withheld ORDER BY COUNT(*) DESC, withheld"
        )
        return {
            "read": read,
            "written": written,
            "withheld": withheld,
            "reasons": dict(reasons.fetchall()),
            "people": people,
            "faces_replaced": int(faces),
        }

    def links(self) -> Iterator[tuple[str, str]]:
        """(source path below SRC, output path below DST) of everything written."""
        query = "SELECT source, output FROM inputs WHERE output IS NOT NULL ORDER BY source"
        return ((os.fsdecode(source), output) for source, output in self.db.execute(query))


def open_state(release: Path, key: bytes | None, resume: bool, overwrite: bool) -> State:
    """Opens or creates the private state of a release, never touching foreign files."""
    private = private_folder(release)
    if overwrite and private.is_dir():
        State(private).close()  # refuses a folder that is not ours
        shutil.rmtree(private)
        shutil.rmtree(release, ignore_errors=True)
    if resume:
        if not private.is_dir():
            raise ReleaseError(f"nothing to resume: {private} does not exist; run without --resume")
        state = State(private)
        if key is not None and key != state.key:
            raise ConfigError(f"--key-file holds another key than {private}; resume with that one")
        shutil.rmtree(state.scratch)  # what a killed run left
        state.scratch.mkdir()
        return state
    if private.exists():
        raise ReleaseError(
            f"{private} exists: add --resume to go on with that run, or --overwrite to destroy it"
        )
    if release.exists() and (not release.is_dir() or any(release.iterdir())):
        raise ReleaseError(
            f"DST {release} is not an empty folder: choose another, or remove what is in it"
        )
    return State(private, key or seeds.new_key())


def read_links(release: Path) -> list[tuple[str, str]]:
    """The link table of an unsealed release: (path below SRC, path below DST) of all written.

    Raises:
        ReleaseError: sealed, or not a release.
    """
    state = State(private_folder(release))
    pairs = list(state.links())
    state.close()
    return pairs


def destroy(folder: Path) -> None:
    """Overwrites the files of a private folder once and removes it.

    Overwriting is a courtesy to plain disks: flash storage and snapshots may keep old blocks, which
    is why the documentation asks for an encrypted disk.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with path.open("r+b") as file:
                file.write(b"\0" * path.stat().st_size)
                file.flush()
                os.fsync(file.fileno())
    shutil.rmtree(folder)


def _faces(text: str) -> tuple[Face, ...]:
    return tuple(
        Face(
            np.array(box, np.float32),
            score,
            np.array(marks, np.float32),
            subject,
            embedding=_unpacked(embedding),
        )
        for box, score, marks, subject, embedding in json.loads(text)
    )


def _packed(embedding: Floats | None) -> str | None:
    """Half precision moves distances by less than 1e-3, in half the space."""
    return (
        None if embedding is None else base64.b64encode(embedding.astype("<f2").tobytes()).decode()
    )


def _unpacked(text: str | None) -> Floats | None:
    return None if text is None else np.frombuffer(base64.b64decode(text), "<f2").astype("<f4")


def _mean(vectors: Iterable[Floats | None]) -> Floats | None:
    kept = [vector for vector in vectors if vector is not None]
    return np.mean(kept, axis=0) if kept else None
