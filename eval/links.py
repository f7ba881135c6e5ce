"""Which output was made of which original: from a table, or by name."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from anonymize.errors import ConfigError
from anonymize.images import SUFFIXES


@dataclass(frozen=True, slots=True)
class Link:
    """One original, whose person its folder names, and its output if it was published."""

    source: str
    person: str
    output: str | None


def read_table(path: Path) -> dict[str, str]:
    """A link table `source,output` (paths below the two folders) from any tool.

    Raises:
        ConfigError: unreadable, other columns, or a path twice.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise ConfigError(f"cannot read links {path}: {error}") from error
    if not rows or not {"source", "output"} <= set(rows[0]):
        got = ", ".join(rows[0]) if rows else "no rows"
        raise ConfigError(f"links {path}: got {got}; expected the columns source,output")
    table = {row["source"]: row["output"] for row in rows}
    if len(table) < len(rows) or len(set(table.values())) < len(rows):
        raise ConfigError(f"links {path}: a source or an output is listed twice")
    return table


def pictures(folder: Path) -> list[str]:
    """Paths of the pictures below a folder, relative to it, sorted."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder of pictures")
    found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(p.relative_to(folder).as_posix() for p in found)


def link(originals: Path, anonymised: Path, table: dict[str, str] | None) -> list[Link]:
    """Every original with its output; without a table, outputs of the same relative path.

    Raises:
        ConfigError: a linked picture is not there, or nothing links the two folders.
    """
    sources, outputs = pictures(originals), pictures(anonymised)
    if table is None:
        known = _by_name(sources, outputs)
    else:
        known, here, there = table, set(sources), set(outputs)
        missing = [path for path in table if path not in here]
        missing += [path for path in table.values() if path not in there]
        if missing:
            raise ConfigError(
                f"{len(missing)} linked pictures are not there, the first is {missing[0]!r}: "
                "paths in the table are relative to the two folders"
            )
    if not known:
        raise ConfigError(
            "nothing links the two folders: give --links FILE with the columns source,output"
        )
    # a picture outside every folder is of nobody that is known: a person of its own
    return [Link(s, str(Path(s).parent) if "/" in s else s, known.get(s)) for s in sources]


def _by_name(sources: list[str], outputs: list[str]) -> dict[str, str]:
    """Sources with the output of the same relative name, whatever its suffix."""
    stems: dict[str, list[str]] = {path.rsplit(".", 1)[0]: [] for path in (*sources, *outputs)}
    for path in outputs:
        stems[path.rsplit(".", 1)[0]].append(path)
    known = {s: found[0] for s in sources if (found := stems[s.rsplit(".", 1)[0]])}
    if any(len(found) > 1 for found in stems.values()) or len(set(known.values())) < len(known):
        raise ConfigError(
            "names differ by their suffix only, so they link nothing: give --links FILE with the "
            "columns source,output"
        )
    return known
