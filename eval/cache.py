"""What detectors and recognisers said about pictures, kept by content: nothing runs twice."""

from __future__ import annotations

import hashlib
import io
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from anonymize.eval.stats import Array

SCHEMA = "CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value BLOB NOT NULL)"


class Cache:
    """Arrays by name in one SQLite file; threads may share it.

    It holds embeddings of real people: its folder is made for the owner only (mode 0700).

    Args:
        path: the file, or None to keep everything in memory.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path or ":memory:", check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(SCHEMA)

    def get(self, name: str, make: Callable[[], Array]) -> Array:
        """The array kept under a name, made and kept if there is none."""
        with self._lock:
            row = self._db.execute("SELECT value FROM kept WHERE name = ?", (name,)).fetchone()
            if row is not None:  # numpy parses headers by `ast`, not thread-safe in Python 3.11
                return np.asarray(np.load(io.BytesIO(row[0])))
        value = make()
        data = io.BytesIO()
        np.save(data, value)
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (name, data.getvalue()))
        return value

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


def fingerprint(*parts: bytes) -> str:
    """SHA-256 of byte strings, as a name."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()
