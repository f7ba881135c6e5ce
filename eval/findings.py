"""What an audit found, in sentences: what it means, and what a publisher should do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from anonymize.eval.report import spread

REVEALS, WRONG, NOTE = "reveals", "wrong", "note"
"""Says who somebody is; makes labels untrue; worth knowing."""

ORDER = (REVEALS, WRONG, NOTE)

KINDS = {
    "name": ("what looks like a personal name", REVEALS),
    "email": ("e-mail addresses", REVEALS),
    "phone": ("what looks like a telephone number", REVEALS),
    "freebase-mid": ("Freebase identifiers, which public tables resolve to names", REVEALS),
    "imdb-id": ("identifiers of the Internet Movie Database", REVEALS),
    "wikidata-id": ("what looks like identifiers of Wikidata", REVEALS),
    "flickr-id": ("identifiers of Flickr accounts", REVEALS),
    "url": ("web addresses", REVEALS),
    "date": ("dates", NOTE),
    "word": ("words that may be first names or pen names", NOTE),
    "opaque": ("numbers and codes that by themselves name nobody", NOTE),
}

METADATA = {
    "position": ("say where they were taken", REVEALS),
    "thumbnail": ("carry a second, smaller picture, which may show what was edited away", REVEALS),
    "serial number": ("name the camera by its number, which joins pictures of one owner", REVEALS),
    "owner": ("name an owner, author or holder of rights", REVEALS),
    "maker note": ("carry the camera maker's own data, often with serial numbers", REVEALS),
    "comment": ("carry comments, titles or captions", REVEALS),
    "XMP": ("carry XMP or editing data, in which names and histories are kept", REVEALS),
    "date": ("say when they were taken", NOTE),
    "device": ("say by what device or program they were made", NOTE),
    "damaged": ("have metadata that cannot be read, so nobody knows what they say", NOTE),
    "ICC profile": ("carry a colour profile", NOTE),
}

LEAVES = (
    "`anonymize run` carries nothing of it over; do not publish the originals or lists of them."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: a stable name, how bad it is, how often, what it says and what to do."""

    name: str
    level: str
    count: int
    text: str
    advice: str


def findings(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The findings of an audit, worst kind first.

    Args:
        result: of `audit.audit`, all but this.
    """
    found = [
        *_datasets(result),
        *_search(result),
        *_identifiers(result),
        *_metadata(result),
        *_duplicates(result),
        *_labels(result),
        *_files(result),
    ]
    return [asdict(row) for row in sorted(found, key=lambda row: ORDER.index(row.level))]


def verdict(rows: list[dict[str, Any]]) -> dict[str, str]:
    """The first thing that a reader sees. It never says safe."""
    levels = [row["level"] for row in rows]
    if REVEALS in levels:
        many = levels.count(REVEALS)
        ways = "in one way" if many == 1 else f"in {many} ways"
        return {"level": "broken", "text": f"As it is, this dataset says {ways} who is in it."}
    if WRONG in levels:
        text = "Nothing here names anybody, but some labels or pictures need to be put right."
        return {"level": "leaks", "text": text}
    text = "Nothing was found that names anybody. The faces themselves remain what they are."
    return {"level": "void", "text": text}


def _datasets(result: dict[str, Any]) -> Iterator[Finding]:
    pictures = result["counts"]["pictures"]
    for row in result["known_datasets"]:
        when = f" in {row['when']}" if row["when"][:1].isupper() else f" {row['when']}".rstrip()
        became = {
            "withdrawn": f"which was withdrawn{when}",
            "derived": "which was made of a withdrawn dataset",
            "disputed": "which was not withdrawn but made without asking anybody",
        }[row["status"]]
        text = f"is laid out like {row['name']}, {became}"
        advice = "Find out where the pictures come from; do not spread such a dataset further."
        level = NOTE if row["status"] == "disputed" else REVEALS
        yield Finding("known-dataset", level, pictures, text, advice)


def _search(result: dict[str, Any]) -> Iterator[Finding]:
    search = result["recognition"]["identified"]
    if search and search["rank1"]["low"] > search["chance"]:
        text = (
            f"a recogniser off the shelf finds the person of a picture among {search['people']} "
            f"people in {spread(search['rank1'])} of searches (chance {search['chance']:.1%})"
        )
        advice = "This is what anonymising has to bring down; compare with `anonymize eval`."
        yield Finding("identifiable-faces", REVEALS, search["probes"], text, advice)


def _identifiers(result: dict[str, Any]) -> Iterator[Finding]:
    for row in result["identifiers"]:
        text, level = KINDS[row["kind"]]
        yield Finding(row["kind"], level, row["count"], f"{text} ({row['place']})", LEAVES)


def _metadata(result: dict[str, Any]) -> Iterator[Finding]:
    for row in result["metadata"]:
        text, level = METADATA[row["kind"]]
        name = "metadata-" + row["kind"].casefold().replace(" ", "-")
        yield Finding(name, level, row["count"], f"pictures {text}", LEAVES)


def _duplicates(result: dict[str, Any]) -> Iterator[Finding]:
    for kind, what in (("exact", "the same pixels"), ("near", "one picture, encoded anew")):
        row = result["duplicates"][kind]
        across, within = row["across_people"], row["groups"] - row["across_people"]
        if across:
            text = f"groups of pictures with {what} stand under several people"
            advice = "Decide by audit.json whose they are and remove the others."
            yield Finding(f"{kind}-duplicates-across", WRONG, across, text, advice)
        if within:
            text = f"groups of pictures with {what} within one person or without a label"
            advice = "Keep one of each: copies in training and test data feign success."
            yield Finding(f"{kind}-duplicates", NOTE, within, text, advice)


def _labels(result: dict[str, Any]) -> Iterator[Finding]:
    row = result["recognition"]["mislabelled"]
    if row["count"]:
        text = (
            f"of {result['recognition']['pictures']} sampled pictures look less like their person "
            "than like another"
        )
        advice = "Look at them (audit.json): a wrong label makes two people one, or one two."
        yield Finding("mislabelled", WRONG, row["count"], text, advice)


def _files(result: dict[str, Any]) -> Iterator[Finding]:
    counts = result["counts"]
    if counts["unreadable"]:
        advice = "`anonymize run` withholds them; repair or remove them (audit.json)."
        text = "pictures cannot be read"
        yield Finding("unreadable", NOTE, counts["unreadable"], text, advice)
    if counts["refused"]:
        advice = "They are not pictures; lists of names must not accompany a release."
        text = "files were refused by their reader (audit.json)"
        yield Finding("refused-files", NOTE, len(counts["refused"]), text, advice)
    if counts["unlabelled"]:
        advice = "Without labels, nobody knows how many people there are."
        yield Finding("unlabelled", NOTE, counts["unlabelled"], "pictures have no label", advice)
