"""What `anonymize audit` does: says what a dataset gives away before anything of it is published.

Private: audit.json names the paths and labels that somebody has to look at. The page and the table
for the terminal show counts and shapes only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from anonymize.eval.duplicates import Group, alike, groups, near, same, thumbnail
from anonymize.eval.findings import findings, verdict
from anonymize.eval.identifiers import Tally
from anonymize.eval.page import BAD, GRID, fill, svg
from anonymize.eval.recognition import (
    Faces,
    Suspect,
    each,
    embedding,
    identified,
    mislabelled,
    sample,
)
from anonymize.eval.report import environment, plain
from anonymize.eval.sidecars import files, notes
from anonymize.eval.stats import Array, wilson
from anonymize.eval.survey import (
    Files,
    Item,
    Listing,
    Pictures,
    again,
    category,
    image,
    listed,
    open_pictures,
    surveyed,
)
from anonymize.eval.trial import Progress, silent

from anonymize.detectors import MTCNN
from anonymize.embedders import DlibEmbedder
from anonymize.errors import ConfigError
from anonymize.record import Floats

SCHEMA = 1

LIMIT = 2000
"""Pictures that the recogniser sees unless more are asked for: some minutes on a CPU."""

LISTED = 1000
"""Groups of duplicates whose paths audit.json lists; all are counted."""

SIDE = 16
"""Of the thumbnails by which near duplicates are confirmed."""

LABEL_FMR, MATCH_FMR = 1e-2, 1e-3
"""False match rates: a picture that even the lenient one does not accept is suspected of a wrong
label, and a person that the strict one accepts counts as recognised."""

STEPS = (1, 2, 3, 6, 11, 21, 51, 101, 501)
"""Where the bars of pictures per person begin."""


def audit(
    source: Path,
    out: Path | None,
    *,
    reader: str = "",
    limit: int | None = LIMIT,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Audits a dataset of photographs of real people.

    A damaged picture is counted and stops nothing. The same source and seed give the same result.

    Args:
        source: SRC, in any format that there is a reader for.
        out: folder that receives audit.json and audit.html (mode 0700), or None to write nothing.
        reader: name of the format; recognised if empty.
        limit: most pictures that the recogniser looks at, None for all; hashes and metadata are
            taken of all pictures anyway.
        seed: of the sample and of the split into gallery and probes.
        device: a torch device type.
        progress: told what is being done.

    Returns:
        The content of audit.json.

    Raises:
        ConfigError: SRC is absent, of no known format or without a picture, or `out` lies in it.
    """
    _check(source, out, limit)
    pictures = open_pictures(source, reader)
    listing = listed(pictures)
    ignored, refused = dict(pictures.ignored), dict(pictures.refused)
    seen = surveyed(pictures, len(listing.people), progress)
    twice = _duplicates(pictures, seen, np.array(listing.people), progress)
    faces, paths = _faces(pictures, listing, seen, twice, (limit, seed, device, progress))
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "source": {"name": source.resolve().name, "format": pictures.reader},
        "seed": seed,
        "environment": environment(),
        "counts": _counts(listing, seen)
        | {"passed_over": {k: n for k, n in ignored.items() if n}, "refused": refused},
        "people": _people(np.array(listing.people)),
        "unreadable": _lists(seen.unreadable, seen.errors, paths),
        **_said(source, pictures.reader, listing, seen),
        "metadata": _metadata(seen, paths),
        "duplicates": _groups(twice, paths),
        "recognition": _recognition(faces, list(listing.labels), paths, limit, seed),
    }
    result["findings"] = findings(result)
    result["verdict"] = verdict(result["findings"])
    done: dict[str, Any] = plain(result)
    if out is not None:
        write(done, out)
    return done


def _check(source: Path, out: Path | None, limit: int | None) -> None:
    if out is not None and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError(
            f"got {out} for the audit, which lies in SRC: expected a folder elsewhere, because the "
            "audit speaks of real people and must not be published with the pictures"
        )
    if limit is not None and limit < 2:
        raise ConfigError(f"limit: got {limit}, expected at least 2 pictures to compare, or none")


def _counts(listing: Listing, seen: Files) -> dict[str, Any]:
    return {
        "pictures": len(listing.people),
        "people": len(listing.labels),
        "unlabelled": listing.people.count(-1),
        "unreadable": sum(seen.unreadable.values()),
    }


def _duplicates(pictures: Pictures, seen: Files, people: Array, progress: Progress) -> list[Group]:
    """Groups of pictures that are one; near ones are confirmed by their thumbnails."""
    readable = np.flatnonzero(seen.readable)
    exact = readable[same(seen.digests[readable])]
    hashed = np.flatnonzero(seen.hashed)
    candidates = hashed[near(seen.hashes[hashed])]
    wanted = np.unique(candidates)

    def small(item: Item) -> tuple[int, Floats | None]:
        pixels = image(item)
        return item.number, None if pixels is None else thumbnail(pixels, SIDE)

    thumbnails: dict[int, Floats] = {}
    if len(wanted):
        for done, (number, picture) in enumerate(each(small, again(pictures, wanted.tolist())), 1):
            if picture is not None:
                thumbnails[number] = picture.round().astype(np.uint8)
            progress("compare near duplicates", done, len(wanted))
    return groups([exact, alike(candidates, thumbnails)], exact, people)


def _faces(
    pictures: Pictures,
    listing: Listing,
    seen: Files,
    twice: Sequence[Group],
    settings: tuple[int | None, int, str, Progress],
) -> tuple[Faces, dict[int, str]]:
    """Embeds a sample, and finds the paths of all pictures that the result speaks of."""
    limit, seed, device, progress = settings
    people = np.array(listing.people)
    usable = seen.readable.copy()
    for group in twice:  # a copy would find itself
        usable[list(group.pictures[1:])] = False
    chosen = sample(people, usable, limit, seed)
    detector, embedder = MTCNN(device=device), DlibEmbedder(device)
    asked = {*_shown(seen, twice), *chosen.tolist()}
    vectors: dict[int, Floats] = {}
    paths: dict[int, str] = {}
    sampled = set(chosen.tolist())

    def face(item: Item) -> Floats | None:
        pixels = image(item) if item.number in sampled else None
        return None if pixels is None else embedding(pixels, detector, embedder)

    def both(item: Item) -> tuple[Item, Floats | None]:
        return item, face(item)

    for item, vector in each(both, again(pictures, asked)):
        paths[item.number] = item.path
        if vector is not None:
            vectors[item.number] = vector
            progress("recognise faces", len(vectors), len(chosen))
    rows = np.array([number for number in chosen.tolist() if number in vectors], np.int64)
    table = [vectors[number] for number in rows.tolist()] or [np.zeros((0, 128), np.float32)]
    return Faces(rows, people[rows], np.stack(table).reshape(-1, 128)), paths


def _shown(seen: Files, twice: Sequence[Group]) -> set[int]:
    """Numbers of the pictures whose paths the result gives."""
    lists = [*seen.errors.values(), *seen.shown.values()]
    lists += [list(group.pictures) for group in _first(twice)]
    return {number for numbers in lists for number in numbers}


def _first(twice: Sequence[Group]) -> list[Group]:
    """The groups that are listed: those that people share come first."""
    return sorted(twice, key=lambda group: not group.across)[:LISTED]


def _said(source: Path, reader: str, listing: Listing, seen: Files) -> dict[str, Any]:
    """Identifiers in paths, metadata and side files, and known datasets that are laid out so."""
    beside, layout = Tally(), listing.layout
    for note in notes(source, reader):
        beside.add(note.place, note.text, note.where, note.role)
    home = source.parent if source.is_file() else source
    layout.names([source.resolve().name, home.resolve().name])
    for path in files(source):
        layout.names(path.relative_to(home).parts)
    classes = _classes(home) if reader == "recordio" else None
    tallies = (listing.tally, seen.tally, beside)
    return {
        "known_datasets": layout.recognised(reader, classes),
        "identifiers": [row for tally in tallies for row in tally.rows()],
    }


def _classes(folder: Path) -> int | None:
    """The number of people that InsightFace's `property` file tells of."""
    try:
        return int((folder / "property").read_text("ascii").split(",")[0])
    except (OSError, ValueError):
        return None


def _people(people: Array) -> dict[str, Any] | None:
    """Pictures per person; None where nobody has a label."""
    counts = np.bincount(people[people >= 0])
    if not len(counts):
        return None
    most = int(counts.max())
    edges = [*(step for step in STEPS if step <= most), most + 1]
    bars = np.histogram(counts, edges)[0].tolist()
    return {
        "least": int(counts.min()),
        "median": float(np.median(counts)),
        "mean": float(counts.mean()),
        "most": most,
        "with_one": int((counts == 1).sum()),
        "histogram": [
            {"from": low, "to": high - 1, "people": count}
            for low, high, count in zip(edges, edges[1:], bars, strict=False)
        ],
    }


def _lists(
    counts: dict[str, int], numbers: dict[str, list[int]], paths: dict[int, str]
) -> list[dict[str, Any]]:
    return [
        {"reason": name, "count": count, "pictures": _paths(numbers[name], paths)}
        for name, count in sorted(counts.items())
    ]


def _paths(numbers: Iterable[int], paths: dict[int, str]) -> list[str]:
    return [paths[number] for number in numbers if number in paths]


def _metadata(seen: Files, paths: dict[int, str]) -> list[dict[str, Any]]:
    """Kinds of metadata, the tags that they were found in, and some of the pictures."""
    return [
        {
            "kind": kind,
            "count": count,
            "tags": {tag: n for tag, n in sorted(seen.tags.items()) if category(tag) == kind},
            "pictures": _paths(seen.shown[kind], paths),
        }
        for kind, count in sorted(seen.categories.items())
    ]


def _groups(twice: Sequence[Group], paths: dict[int, str]) -> dict[str, Any]:
    rows = [
        {
            "id": f"group-{number}",
            "exact": group.exact,
            "across_people": group.across,
            "pictures": _paths(group.pictures, paths),
        }
        for number, group in enumerate(_first(twice), 1)
    ]

    def count(exact: bool) -> dict[str, int]:
        mine = [group for group in twice if group.exact == exact]
        return {
            "groups": len(mine),
            "pictures": sum(len(group.pictures) for group in mine),
            "across_people": sum(group.across for group in mine),
        }

    return {"exact": count(True), "near": count(False), "groups": rows, "listed": len(rows)}


def _recognition(
    faces: Faces, labels: list[str], paths: dict[int, str], limit: int | None, seed: int
) -> dict[str, Any]:
    """What the recogniser found on the sample."""
    allowed, match = DlibEmbedder.FMR[LABEL_FMR], DlibEmbedder.FMR[MATCH_FMR]
    suspects, search = mislabelled(faces, allowed), identified(faces, match, seed)
    checked = int(faces.found.sum())
    return {
        "recogniser": "dlib",
        "limit": limit,
        "pictures": len(faces.numbers),
        "people": len(np.unique(faces.people)),
        "without_face": len(faces.numbers) - checked,
        "mislabelled": {
            "threshold": allowed,
            "count": len(suspects),
            "share": asdict(wilson(len(suspects), checked)) if checked else None,
            "pictures": [_suspect(suspect, faces, labels, paths, allowed) for suspect in suspects],
        },
        "identified": search
        and {
            "threshold": match,
            "rank1": asdict(search.rank1),
            "matched": asdict(search.matched),
            "people": search.people,
            "probes": search.probes,
            "chance": 1 / search.people,
        },
    }


def _suspect(
    suspect: Suspect, faces: Faces, labels: list[str], paths: dict[int, str], allowed: float
) -> dict[str, Any]:
    return {
        "picture": paths[int(faces.numbers[suspect.row])],
        "label": labels[int(faces.people[suspect.row])],
        "distance": suspect.own,
        "other_label": labels[suspect.other],
        "other_distance": suspect.distance,
        "matches_other": suspect.distance <= allowed,
    }


def write(result: dict[str, Any], out: Path) -> None:
    """Writes audit.json and audit.html for their owner only."""
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, sort_keys=True) + "\n"
    for name, content in (("audit.json", text), ("audit.html", page(result))):
        (out / name).touch(mode=0o600)  # the folder may have been there, and open to others
        (out / name).write_text(content, "utf-8", "backslashreplace")


def page(result: dict[str, Any]) -> str:
    """The audit as one HTML page: counts and shapes, no name, path or face of anybody."""
    bars = svg(lambda axes: _bars(axes, result["people"]), 8.6, 2.4) if result["people"] else ""
    return fill("audit.html", audit=result, bars=bars)


def _bars(axes: Any, people: dict[str, Any]) -> None:
    rows = people["histogram"]
    names = [
        str(row["from"]) if row["from"] == row["to"] else f"{row['from']} to {row['to']}"
        for row in rows
    ]
    axes.bar(names, [row["people"] for row in rows], color=BAD, alpha=0.6)
    axes.set_ylabel("people")
    axes.set_xlabel("pictures of one person")
    axes.grid(axis="y", color=GRID, lw=0.6)
    axes.set_axisbelow(True)


def table(result: dict[str, Any]) -> str:
    """The findings for a terminal; it names nobody."""
    counts, people = result["counts"], result["people"]
    lines = [result["verdict"]["text"], ""]
    lines.append(f"{'pictures':<26}{counts['pictures']:>9}")
    if people:
        spread = f"{people['least']} to {people['most']}, median {people['median']:g}"
        lines.append(f"{'people':<26}{counts['people']:>9}  pictures of each: {spread}")
    lines += [f"{row['name']:<26}{row['count']:>9}  {row['text']}" for row in result["findings"]]
    lines += [f"passed over {n}: {kind}" for kind, n in counts["passed_over"].items()]
    return "\n".join(lines)
