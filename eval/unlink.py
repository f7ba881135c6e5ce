"""Unlinkability between releases: can two of the same people be joined person by person?"""

from __future__ import annotations

import numpy as np
from anonymize.eval.attacks import Gallery, cells, nonmated
from anonymize.eval.learned import ridge
from anonymize.eval.risk import Search, UnmeasurableError
from anonymize.eval.stats import Array
from anonymize.eval.trial import Trial, View, unit

from anonymize.embedders import Embedder
from anonymize.record import Floats


def cross_key(first: Trial, second: Trial, third: Trial | None, embedder: Embedder) -> list[Search]:
    """Cross key: outputs under one key are searched among outputs under another key.

    If two releases of the same photographs, made under different keys, can be joined, pseudonyms
    are not renewable (unlinkability, ISO/IEC 24745). Pictures of one person come from different
    originals on the two sides. With a third release the attacker also learns a map from outputs to
    originals there, on its own half of the people, and applies it to both sides.

    Args:
        first, second: trials of the two releases over the same originals and with one seed.
        third: one made under a third key, or None for the pretrained recogniser alone.
        embedder: the recogniser.
    """
    for other in (second, *([third] if third is not None else [])):
        if first.chosen != other.chosen or first.names != other.names:
            raise AssertionError("the trials of a cross-key attack must have the same parts")
    one, two = first.view(embedder), second.view(embedder)
    searches = [_search(one, two, one.a, two.a, "pretrained")]
    if third is not None:
        view = third.view(embedder)
        apply = ridge(view, third.rows("a", attacker=True))
        searches.append(_search(one, two, apply(one.a), apply(two.a), "fitted"))
    return searches


def _search(one: View, two: View, left: Floats, right: Floats, variant: str) -> Search:
    enrolled = _gallery(one, left, attacker=False)
    if len(enrolled.known) < 2:
        raise UnmeasurableError("fewer than two people are in both releases")
    rows, people = _probes(two, attacker=False)
    kept = np.isin(people, enrolled.known)
    rows, people = rows[kept], people[kept]
    others, strangers = _probes(two, attacker=True)
    mine = _gallery(one, left, attacker=True)
    return Search(
        "cross-key",
        variant,
        one.name,
        enrolled.search(right[rows]),
        np.searchsorted(enrolled.known, people),
        people,
        nonmated(mine, right[others], strangers),
        enrolled.search(right[others]),
        cells(one, enrolled.known),
        int((~two.trial.a.found[rows]).sum()),
    )


def _gallery(view: View, vectors: Floats, *, attacker: bool) -> Gallery:
    rows = view.trial.rows("a", attacker=attacker, enrolled=True)
    shots = view.trial.a
    return Gallery(unit(vectors[rows]), shots.people[rows], shots.found[rows])


def _probes(view: View, *, attacker: bool) -> tuple[Array, Array]:
    rows = view.trial.rows("a", attacker=attacker, enrolled=False)
    return rows, view.trial.a.people[rows]
