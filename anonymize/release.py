"""What a finished release must be: checked before its private side is destroyed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from anonymize.datasheet import RELEASE, package
from anonymize.errors import ReleaseError, Withhold
from anonymize.readers import Reader, open_source
from anonymize.run import MANIFEST, RUN
from anonymize.state import State, destroy, private_folder
from anonymize.writers import place, sha256

HARMLESS = frozenset({"jfif", "jfif_version", "jfif_unit", "jfif_density"})
"""What Pillow reports for a JPEG that holds nothing but pixels."""


READERS = {"manifest": "folder", "manifest-parquet": "folder", "img2dataset": "webdataset"}
"""Formats of a release whose pictures are found by the reader of another one."""


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
    files, load = described(release)["files"], opened(release).load
    pictures = [(row["output"], row["sha256"]) for row in rows(release) if row["output"]]
    known = {MANIFEST, RUN, RELEASE, *files, *(name for name, _ in pictures)}
    for path in sorted(release.rglob("*")):
        name = path.relative_to(release).as_posix()
        if path.is_symlink():
            yield f"{name}: a link does not belong in a release"
        elif path.is_file() and name not in known:
            yield f"{name}: not in {MANIFEST}"
    for name, digest in files.items():
        if not (release / name).is_file():
            yield f"{name}: listed in {RUN} but absent"
        elif sha256(release / name) != digest:
            yield f"{name}: differs from what was written"
    for name, digest in pictures:
        try:
            data = load(name)
        except (Withhold, OSError, ValueError):
            yield f"{name}: listed in {MANIFEST} but absent"
            continue
        if hashlib.sha256(data).hexdigest() != digest:
            yield f"{name}: differs from what was written"
        elif extra := metadata(data):
            yield f"{name}: holds metadata ({', '.join(sorted(extra))})"


def described(release: Path) -> dict[str, Any]:
    """What a release's run.json says.

    Raises:
        ReleaseError: there is none, or it is damaged.
    """
    try:
        return dict(json.loads((release / RUN).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{release} is no finished release: {error}") from error


def opened(release: Path) -> Reader:
    """A reader of a finished release's own format; outputs in the manifest are its locators."""
    name = described(release)["recipe"]["writer"]
    return open_source(release, READERS.get(name, name))


def metadata(data: bytes) -> set[str]:
    """Names of what an encoded picture holds beside its pixels."""
    with Image.open(io.BytesIO(data)) as picture:
        found = {str(name) for name in picture.info} - HARMLESS
        return found | ({"exif"} if picture.getexif() else set())


def seal(release: Path, report: Path | None = None) -> int:
    """Checks a release, describes it and destroys key, link table and journal.

    Args:
        release: DST.
        report: report.json of `anonymize eval`, or its folder, for the summary in release.json.

    Returns:
        How many pictures it holds.

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
    (release / RELEASE).unlink(missing_ok=True)  # of an attempt that was interrupted
    found = list(problems(release))
    if found:
        shown = "\n  ".join(found[:20])
        raise ReleaseError(f"{release} is not fit to be sealed, {len(found)} problems:\n  {shown}")
    text = json.dumps(package(release, report), indent=2, sort_keys=True) + "\n"
    place([text.encode()], release / RELEASE, private / "scratch")
    destroy(private)
    return sum(row["output"] is not None for row in rows(release))
