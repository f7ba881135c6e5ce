"""New people on disk: in a release's journal, and in the file that stays with a kept key."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from anonymize.errors import ConfigError
from anonymize.identities import Person

PEOPLE = """
CREATE TABLE IF NOT EXISTS people (
    person TEXT PRIMARY KEY, cell INTEGER NOT NULL, code BLOB NOT NULL,
    draws INTEGER NOT NULL, apart INTEGER NOT NULL
);
"""
META = "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);"


def keep(path: Path, weights: str, people: Mapping[str, Person]) -> None:
    """Adds new people to the file that stays with a kept key.

    It holds pseudonyms and codes: nothing of a source, and without the key nothing to find one by.

    Args:
        path: an SQLite file, made if absent, that only its owner can read.
        weights: what the codes were drawn for.
        people: by pseudonym; those who are there already stay as they are.
    """
    path.touch(mode=0o600, exist_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(META + PEOPLE)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('weights', ?)", (weights,))
        store(db, people)


def load(path: Path, weights: str) -> dict[str, Person]:
    """The new people that stay with a kept key; none if the file is not there.

    Raises:
        ConfigError: they were drawn for other weights, or the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        with closing(sqlite3.connect(path)) as db:
            (known,) = db.execute("SELECT value FROM meta WHERE name = 'weights'").fetchone()
            people = stored(db)
    except (sqlite3.Error, TypeError) as error:
        raise ConfigError(f"{path} does not hold the people of a key: {error}") from error
    if known != weights:
        raise ConfigError(
            f"{path} holds people of a generator with other weights: use that generator again, or "
            "another key"
        )
    return people


def store(db: sqlite3.Connection, people: Mapping[str, Person]) -> None:
    """Adds people to a database; those who are there already stay as they are."""
    db.executemany(
        "INSERT OR IGNORE INTO people VALUES (?, ?, ?, ?, ?)",
        (
            (name, p.cell, p.code.astype("<f4").tobytes(), p.draws, int(p.apart))
            for name, p in people.items()
        ),
    )
    db.commit()


def stored(db: sqlite3.Connection) -> dict[str, Person]:
    """Everybody in a database."""
    rows = db.execute("SELECT person, code, cell, draws, apart FROM people")
    return {
        name: Person(np.frombuffer(code, "<f4").copy(), cell, draws, bool(apart))
        for name, code, cell, draws, apart in rows
    }
