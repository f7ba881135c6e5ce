"""What a finished release must be: checked before its private side is destroyed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from anonymize.errors import ReleaseError
from anonymize.run import MANIFEST, RUN
from anonymize.state import State, destroy, private_folder

HARMLESS = frozenset({"jfif", "jfif_version", "jfif_unit", "jfif_density"})
"""What Pillow reports for a JPEG that holds nothing but pixels."""


def rows(release: Path) -> list[dict[str, Any]]:
    """The manifest of a release, one dict per input.

    Raises:
        ReleaseError: there is none, or it is damaged.
    """
    try:
        lines = (release / MANIFEST).read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{release} is no finished release: {error}") from error


def problems(release: Path) -> Iterator[str]:
    """Everything that speaks against publishing: missing, altered, extra or talkative files."""
    listed = {row["output"]: row["sha256"] for row in rows(release) if row["output"]}
    for path in sorted(release.rglob("*")):
        name = path.relative_to(release).as_posix()
        if path.is_symlink():
            yield f"{name}: a link does not belong in a release"
        elif path.is_file() and name not in listed and name not in (MANIFEST, RUN):
            yield f"{name}: not in {MANIFEST}"
    for name, digest in listed.items():
        path = release / name
        if not path.is_file():
            yield f"{name}: listed in {MANIFEST} but absent"
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{name}: differs from what was written"
        elif extra := metadata(path):
            yield f"{name}: holds metadata ({', '.join(sorted(extra))})"


def metadata(path: Path) -> set[str]:
    """Names of what a picture file holds beside its pixels."""
    with Image.open(path) as picture:
        found = {str(name) for name in picture.info} - HARMLESS
        return found | ({"exif"} if picture.getexif() else set())


def seal(release: Path) -> int:
    """Checks a release and destroys key, link table and journal; returns the pictures in it.

    Raises:
        ReleaseError: unfinished, or it has problems; nothing is destroyed then.
    """
    private = private_folder(release)
    if not private.is_dir():
        raise ReleaseError(f"{release} is sealed already, or was not made by `anonymize run`")
    state = State(private)
    unfinished = state.get("summary") is None
    state.close()
    if unfinished:
        raise ReleaseError(f"{release} is not finished: `anonymize run --resume` first")
    found = list(problems(release))
    if found:
        shown = "\n  ".join(found[:20])
        raise ReleaseError(f"{release} is not fit to be sealed, {len(found)} problems:\n  {shown}")
    destroy(private)
    return sum(row["output"] is not None for row in rows(release))
