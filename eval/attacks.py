"""The attacks: each docstring is its threat model. All but `oo` try to undo the anonymisation.

Every attack is a function of a trial and one recogniser that returns searches: probes scored
against enrolled people. `risk.measure` turns those into numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from anonymize.eval.risk import Search, UnmeasurableError
from anonymize.eval.stats import Array, Estimate
from anonymize.eval.trial import Trial, View, unit

from anonymize.embedders import Embedder
from anonymize.record import Floats

Attack: TypeAlias = Callable[[Trial, Embedder], list[Search]]

CELLS = 8
"""Coarse cells of look-alikes among the originals within which the control swaps people."""


@dataclass(frozen=True, slots=True, eq=False)
class Gallery:
    """Enrolled pictures and their people; a person's score is that of the best picture.

    Pictures without a face match nothing, but their people stay enrolled.
    """

    vectors: Floats
    people: Array
    found: Array

    @property
    def known(self) -> Array:
        """(K,) numbers of the enrolled people, sorted; column k of scores is the k-th of them."""
        return np.unique(self.people)

    def search(self, probes: Floats) -> Floats:
        """(P, D) probes to (P, K) scores."""
        pictures, columns = probes @ self.vectors.T, self.known
        pictures[:, ~self.found] = -np.inf
        scores = [pictures[:, self.people == person].max(1) for person in columns]
        return np.stack(scores, 1)


def gallery(view: View, side: str, *, attacker: bool, enrolled: bool = True) -> Gallery:
    """Enrolled (or other) pictures of one side, of the attacker's or the evaluation's people."""
    shots, vectors = (view.trial.o, view.o) if side == "o" else (view.trial.a, view.a)
    rows = view.trial.rows(side, attacker=attacker, enrolled=enrolled)
    return Gallery(vectors[rows], shots.people[rows], shots.found[rows])


def strangers(view: View) -> tuple[Floats, Array]:
    """(N, D) originals of the attacker's that are not enrolled and show a face; their people."""
    trial = view.trial
    rows = trial.rows("o", attacker=True, enrolled=False)
    rows = rows[trial.o.found[rows]]
    return view.o[rows], trial.o.people[rows]


def strangers_scores(view: View) -> Floats:
    """Non-mated scores on the attacker's split: its own originals, which fix the thresholds."""
    return nonmated(gallery(view, "o", attacker=True), *strangers(view))


def nonmated(enrolled: Gallery, probes: Floats, people: Array) -> Floats:
    """All scores of probes with people who are not theirs, in one row."""
    if not len(probes) or len(enrolled.known) < 2:
        return np.zeros(0, np.float32)
    scores = enrolled.search(probes)[people[:, None] != enrolled.known[None]]
    return np.asarray(scores[np.isfinite(scores)])


def cells(view: View, people: Array) -> Array:
    """(K,) coarse cell of each person: k-means on the mean of the person's originals."""
    from sklearn.cluster import KMeans

    rows = [view.trial.o.people == person for person in people]
    means = np.stack([view.o[r].mean(0) for r in rows]).astype(np.float64)
    count = max(1, min(CELLS, len(people) // 2))
    return np.asarray(KMeans(count, n_init=4, random_state=view.trial.seed).fit_predict(means))


def searched(
    view: View,
    attack: str,
    enrolled: Gallery,
    probes: Floats,
    people: Array,
    *,
    variant: str = "",
    found: Array | None = None,
    strangers: Floats | None = None,
    thresholds: Floats | None = None,
    evidence: tuple[Estimate, float] | None = None,
) -> Search:
    """Scores probes of enrolled people; rows whose `found` is False match nobody."""
    known = enrolled.known
    kept = np.isin(people, known)
    if len(known) < 2 or not kept.any():
        raise UnmeasurableError("fewer than two people could be searched for")
    probes, people = probes[kept], people[kept]
    scores = enrolled.search(probes)
    found = np.ones(len(people), bool) if found is None else found[kept]
    scores[~found] = -np.inf
    return Search(
        attack,
        variant,
        view.name,
        scores,
        np.searchsorted(known, people),
        people,
        strangers_scores(view) if thresholds is None else thresholds,
        np.zeros((0, len(known)), np.float32) if strangers is None else enrolled.search(strangers),
        cells(view, known),
        int((~found).sum()),
        evidence,
    )


def probes_of(view: View, *, attacker: bool = False) -> tuple[Array, Array, Array]:
    """Rows of the outputs that are searched for, their people, and whether a face was found."""
    rows = view.trial.rows("a", attacker=attacker, enrolled=False)
    return rows, view.trial.a.people[rows], view.trial.a.found[rows]


def oo(trial: Trial, embedder: Embedder) -> list[Search]:
    """Originals against originals: is this recogniser an attacker at all?

    No threat, but the gate of all others: a report whose recogniser cannot find people in the
    originals proves nothing about the outputs (protocol of ISO/IEC 19795-1, closed set).
    """
    view = trial.view(embedder)
    rows = trial.rows("o", attacker=False, enrolled=False)
    return [
        searched(
            view,
            "oo",
            gallery(view, "o", attacker=False),
            view.o[rows],
            trial.o.people[rows],
            found=trial.o.found[rows],
            strangers=strangers(view)[0],
        )
    ]


def oa(trial: Trial, embedder: Embedder) -> list[Search]:
    """Who is this? The attacker has other photographs of the people, from anywhere, names attached.

    An output is searched among them with a pretrained recogniser. No knowledge of the method.
    """
    view = trial.view(embedder)
    rows, people, found = probes_of(view)
    others, _, seen = probes_of(view, attacker=True)
    return [
        searched(
            view,
            "oa",
            gallery(view, "o", attacker=False),
            view.a[rows],
            people,
            found=found,
            strangers=view.a[others[seen]],
        )
    ]


def ao(trial: Trial, embedder: Embedder) -> list[Search]:
    """Is this person in the release? A photograph of someone is searched among the outputs.

    Membership by identity: what a stalker, or a data subject, would try first.
    """
    view = trial.view(embedder)
    rows = trial.rows("o", attacker=False, enrolled=True)
    released = gallery(view, "a", attacker=False, enrolled=False)
    return [
        searched(
            view, "ao", released, view.o[rows], trial.o.people[rows], found=trial.o.found[rows]
        )
    ]


def negation(trial: Trial, embedder: Embedder) -> list[Search]:
    """Whoever looks least alike: the attacker knows that outputs were pushed away from the source.

    "As far as possible from the source" is itself a function of the source: search for the lowest
    score first.
    """
    view = trial.view(embedder)
    rows, people, found = probes_of(view)
    worst, mine = (_opposite(gallery(view, "o", attacker=attacker)) for attacker in (False, True))
    limits = nonmated(mine, *strangers(view))
    return [searched(view, "negation", worst, view.a[rows], people, found=found, thresholds=limits)]


def _opposite(enrolled: Gallery) -> Gallery:
    """Each person's mean, turned round, so that the least alike scores best."""
    known, seen = enrolled.known, enrolled.found
    rows = [(enrolled.people == person) & seen for person in known]
    some = np.array([row.any() for row in rows])
    empty = np.zeros(enrolled.vectors.shape[1], np.float32)
    means = [enrolled.vectors[row].mean(0) if row.any() else empty for row in rows]
    return Gallery(-unit(np.stack(means)), known, some)


def set_averaging(trial: Trial, embedder: Embedder) -> list[Search]:
    """Many outputs of one pseudonym: noise that differs between pictures averages out.

    The attacker groups the release by its labels and searches with the mean of 1, 5, 20 or all
    embeddings of one pseudonym.
    """
    view = trial.view(embedder)
    rows, people, found = probes_of(view)
    persons = np.unique(people)
    enrolled, searches, before = gallery(view, "o", attacker=False), [], 0
    most = int(np.bincount(people[found]).max(initial=0))
    for size in (1, 5, 20, most):
        reached = min(size, most)
        if reached <= before:
            continue
        before = reached
        sets = [rows[found & (people == person)][:size] for person in persons]
        empty = np.zeros(view.a.shape[1], np.float32)
        means = unit(np.stack([view.a[s].mean(0) if len(s) else empty for s in sets]))
        seen = np.array([len(s) > 0 for s in sets])
        name = "all" if reached == most else str(size)
        searches.append(
            searched(view, "set-averaging", enrolled, means, persons, variant=name, found=seen)
        )
    return searches


def control(trial: Trial, embedder: Embedder) -> list[Search]:
    """The floor: outputs of one person passed off as those of another one of the same cell.

    What it reaches, coarse attributes alone give away; no anonymiser that keeps them does better.
    """
    from anonymize.eval.risk import swap

    (search,) = oa(trial, embedder)
    rng = np.random.default_rng(trial.seed + 1)
    own = swap(search.cells, rng)[search.own]
    fields = {"attack": "control", "own": own}
    return [Search(**{name: fields.get(name, getattr(search, name)) for name in Search.__slots__})]
