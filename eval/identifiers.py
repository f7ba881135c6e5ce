"""What in a text names a person: names, e-mail addresses, web addresses, ids of public tables."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

PATTERNS = {
    "email": re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}"),
    "url": re.compile(r"\b(?:https?|ftp)://\S+|\bwww\.[\w-]+\.\w+"),
    "freebase-mid": re.compile(r"(?<![\w.])/?m[./]0[a-z0-9_]{2,}(?![A-Za-z0-9])"),
    "imdb-id": re.compile(r"(?<![A-Za-z0-9])nm\d{7,8}(?!\d)"),
    "wikidata-id": re.compile(r"(?<![A-Za-z0-9])Q[1-9]\d{3,9}(?![A-Za-z0-9])"),
    "flickr-id": re.compile(r"(?<!\d)\d{5,12}@N\d{2}(?!\d)"),
    "phone": re.compile(r"\+\d[\d ()-]{7,}\d"),
    "date": re.compile(
        r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)"
    ),
}
"""Kinds of identifiers that can be told by their form alone."""

VOCABULARY = """
a album aligned all annotation annotations anonymised anonymized anonymous bbox bbs box boxes cam
camera celeb class clean copy crop cropped crops data database dataset datasets demo dev digits
dsc dscn example examples extra face faceid faces female file files folder frame frames full
gallery group high id identities identity ids image images img imgs index jpeg jpg label labels
left list low male max meta metadata mid min misc name neutral new nobody noname number old
original originals other others output outputs page pair pairs people person persons photo photos
pic pics picture pictures png probe probes pseudonym public query random raw release result
results right sample samples scan set sets shot side single size small smiling src stranger
subject subjects synthetic temp test testing the thumb tmp train training truth unknown unlabelled
url user users val valid validation version video view
"""

COMMON = frozenset(VOCABULARY.split())
"""Words of file systems and datasets, which are nobody's names."""

SCRIPTS = re.compile(r"[\u4e00-\u9fff]{2,4}|[\uac00-\ud7a3]{2,4}|[\u3040-\u30ff\u4e00-\u9fff]{3,8}")
"""A whole name in scripts that put no space in it."""

SHORTEST, LONGEST, MOST_WORDS = 2, 60, 5


@lru_cache(1 << 14)
def kinds(text: str) -> Counter[str]:
    """How often each kind of identifier occurs in a text, by form alone."""
    found = {kind: sum(1 for _ in form.finditer(text)) for kind, form in PATTERNS.items()}
    return Counter({kind: count for kind, count in found.items() if count})


@lru_cache(1 << 14)
def nature(text: str, strict: bool = False) -> str:
    """Whether a whole label, folder or cell looks like a person's `name`, a `word` or is `opaque`.

    Two to five words of letters that are not a dataset's own vocabulary look like a name, one like
    what may be a first name or a pen name; numbers, hashes and the like are opaque.

    Args:
        text: without its suffix, if it is a file's name.
        strict: count only words that begin with a capital, as prose does not.
    """
    parted = re.sub(r"(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-ÖØ-Þ])", " ", text.strip())
    tokens = [token for token in re.split(r"[\W_]+", parted) if token]
    words = [token for token in tokens if _is_word(token)]
    if SCRIPTS.fullmatch(text.strip()):
        return "name"
    if len(text) > LONGEST or len(words) > MOST_WORDS:
        return "opaque"
    if strict and (len(words) < len(tokens) or not all(word[0].isupper() for word in words)):
        return "opaque"
    return "name" if len(words) > 1 else "word" if words else "opaque"


def _is_word(token: str) -> bool:
    if len(token) < SHORTEST or not token.isalpha() or token.casefold() in COMMON:
        return False
    return not (len(token) >= 8 and set(token.casefold()) <= set("abcdef"))


def redacted(text: str) -> str:
    """A text's shape: capitals become X, other letters x, digits 0."""
    shown = re.sub(r"[^\W\d_]", lambda m: "X" if m[0].isupper() else "x", text[:LONGEST])
    return re.sub(r"\d", "0", shown)


@dataclass(slots=True)
class Tally:
    """Counts identifiers by the place where they were found."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    shapes: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    where: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    EXAMPLES = 3

    def add(self, place: str, text: str, where: str, role: str = "prose") -> None:
        """Looks at one text.

        Args:
            place: such as `folder`, `file name` or `column url`.
            text: what stands there.
            where: path of the file or picture that it belongs to.
            role: in `prose` only what can be told by its form is looked for; a `cell` of a table
                may be a name if it is written as one; a `label` is meant to say who somebody is, so
                a name in it needs no capitals, and a `word` or something `opaque` is counted too.
        """
        found = set(kinds(text))
        what = "opaque" if role == "prose" else nature(text, strict=role == "cell")
        if what == "name" or (role == "label" and not found):
            found.add(what)
        for kind in found:
            self._count((place, kind), text, where)

    def _count(self, row: tuple[str, str], text: str, where: str) -> None:
        self.counts[row] += 1
        shapes, places = self.shapes.setdefault(row, []), self.where.setdefault(row, [])
        shape = redacted(text)
        if len(shapes) < self.EXAMPLES and shape not in shapes:
            shapes.append(shape)
        if len(places) < self.EXAMPLES and where not in places:
            places.append(where)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each place and kind, sorted: how often, redacted examples, where."""
        return [
            {
                "place": place,
                "kind": kind,
                "count": count,
                "examples": self.shapes[place, kind],
                "where": self.where[place, kind],
            }
            for (place, kind), count in sorted(self.counts.items())
        ]
