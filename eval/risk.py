"""From scores to a risk: what an attack reaches, beside chance, a control and its own strength.

The shape is Anonymeter's (Giomi et al. 2023): attack, baseline, control, risk with an interval, and
an attack that is too weak says so instead of saying that the data are safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from anonymize.eval import stats
from anonymize.eval.stats import Array, Estimate

from anonymize.record import Floats

STRONG = 0.5
"""Least rank-1 on originals for a recogniser to count as an attacker at all."""

RATES = (1e-2, 1e-3, 1e-4)
"""False accept rates at which TAR is reported, as far as the non-mated scores allow."""

SWAPS = 20
"""Random swaps of people that the control averages over."""

TOO_WEAK = "attack too weak: proves nothing"
UNLEARNT = "it did not even learn its own people"


class UnmeasurableError(Exception):
    """An attack or a measure has nothing to work on; its reason goes into the report."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """The scores of one attack before anything is concluded from them.

    Attributes:
        attack: name as in gates, e.g. `semi-informed`.
        variant: which way of carrying it out, e.g. `linear`; empty where there is one.
        embedder: the recogniser, or what else scores.
        scores: (P, K) similarity of each probe with each enrolled person; -inf: no comparison.
        own: (P,) column of each probe's person.
        people: (P,) number of each probe's person, for resampling.
        nonmated: scores of strangers on the attacker's split, which fix the thresholds.
        strangers: (Q, K) searches of people who are not enrolled, for the open set; may be empty.
        cells: (K,) coarse cell of each enrolled person, within which the control swaps people.
        lost: probes without a face, which count as misses or are aligned by expectation.
        evidence: what the attack reaches on unseen pictures of the people it learnt from, and
            chance there; None for attacks that learn nothing.
    """

    attack: str
    variant: str
    embedder: str
    scores: Floats
    own: Array
    people: Array
    nonmated: Floats
    strangers: Floats
    cells: Array
    lost: int = 0
    evidence: tuple[Estimate, float] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attack achieved; shares are 0..1.

    Attributes:
        attack, variant, embedder: as in `Search`.
        rank1, rank5: closed-set identification rates.
        chance: rank-1 of guessing.
        control: rank-1 where each person's outputs were swapped with those of another person of the
            same cell: what keeping coarse attributes gives away by itself.
        risk: (rank1 - control) / (1 - control).
        tar: share of mated scores above the threshold, by the false accept rate that fixed it.
        far: what the same thresholds accept of this attack's own non-mated scores.
        eer: equal error rate.
        fnir: FNIR@FPIR 0.01, None where too few strangers were searched.
        d_sys: linkability less its null's mean; `d_sys_null` is the null itself.
        mated, nonmated: numbers of scores.
        lost: probes without a face.
        evidence: see `Search`.
        verdict: in words.
        histogram: (edges, mated counts, non-mated counts).
        roc: (FAR, TAR) points; cmc: rates for ranks 1, 2, ...
    """

    attack: str
    variant: str
    embedder: str
    rank1: Estimate
    rank5: Estimate | None
    chance: float
    control: Estimate
    risk: Estimate
    tar: dict[str, Estimate] = field(default_factory=dict)
    far: dict[str, float] = field(default_factory=dict)
    eer: float | None = None
    fnir: float | None = None
    d_sys: float | None = None
    d_sys_null: Estimate | None = None
    mated: int = 0
    nonmated: int = 0
    lost: int = 0
    evidence: tuple[Estimate, float] | None = None
    verdict: str = ""
    histogram: tuple[list[float], list[int], list[int]] = field(default=([], [], []))
    roc: tuple[list[float], list[float]] = field(default=([], []))
    cmc: list[float] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Attack and variant."""
        return f"{self.attack} ({self.variant})" if self.variant else self.attack


def measure(search: Search, seed: int = 0) -> Outcome:
    """All numbers of an attack except its verdict, which needs the other attacks."""
    scores, own, people = search.scores, search.own, search.people
    if not len(own) or scores.shape[1] < 2:
        raise UnmeasurableError("fewer than two people could be searched for")
    success = stats.hits(scores, own)
    control = controlled(scores, own, search.cells, seed)
    mated, nonmated = stats.mated_and_not(scores, own)
    comparable = bool(np.isfinite(mated).any() and np.isfinite(nonmated).any())
    limits = {rate: stats.threshold(search.nonmated, rate) for rate in RATES}
    known = {f"{rate:g}": limit for rate, limit in limits.items() if limit is not None}
    null = stats.d_sys_null(mated, nonmated, seed) if comparable else None
    return Outcome(
        search.attack,
        search.variant,
        search.embedder,
        rank1=stats.share(success, people, seed),
        rank5=stats.share(stats.hits(scores, own, 5), people, seed),
        chance=1 / scores.shape[1],
        control=stats.share(control, people, seed),
        risk=stats.excess(success, control, people, seed),
        tar={rate: stats.share(mated >= limit, people, seed) for rate, limit in known.items()},
        far={rate: float((nonmated >= limit).mean()) for rate, limit in known.items()},
        eer=stats.eer(mated, nonmated) if comparable else None,
        fnir=stats.fnir(scores, own, search.strangers) if len(search.strangers) else None,
        d_sys=stats.d_sys(mated, nonmated) - null.value if null else None,
        d_sys_null=null,
        mated=len(mated),
        nonmated=len(nonmated),
        lost=search.lost,
        evidence=search.evidence,
        histogram=_histogram(mated, nonmated),
        roc=_curve(mated, nonmated) if comparable else ([], []),
        cmc=[float(x) for x in stats.cmc(scores, own, min(20, scores.shape[1]))],
    )


def counted(
    attack: str, embedder: str, success: Array, control: Array, people: Array, seed: int = 0
) -> Outcome:
    """The outcome of an attack that either succeeds on a picture or does not, without scores.

    Args:
        attack, embedder: as in `Outcome`.
        success: (P,) 0..1.
        control: (P,) 0..1, what the same test says where nothing can be known.
        people: (P,) for resampling.
        seed: of the resampling.
    """
    if not len(success):
        raise UnmeasurableError("no output shows a face")
    floor = stats.share(control, people, seed)
    return Outcome(
        attack,
        "",
        embedder,
        stats.share(success, people, seed),
        None,
        floor.value,
        floor,
        stats.excess(success, control, people, seed),
        mated=len(success),
    )


def controlled(scores: Floats, own: Array, cells: Array, seed: int) -> Array:
    """(P,) how often probes hit another person of their cell who was put in their person's place.

    An anonymiser that keeps coarse attributes cannot do better than this.
    """
    rng = np.random.default_rng(seed)
    total = np.zeros(len(own))
    for _ in range(SWAPS):
        total += stats.hits(scores, swap(cells, rng)[own])
    return np.asarray(total / SWAPS)


def swap(cells: Array, rng: np.random.Generator) -> Array:
    """(K,) for each person another one, of the same cell where it has more than one."""
    other = np.empty(len(cells), np.int64)
    for cell in np.unique(cells):
        members = rng.permutation(np.nonzero(cells == cell)[0])
        other[members] = np.roll(members, 1)
    alone = np.nonzero(other == np.arange(len(cells)))[0]
    other[alone] = (alone + rng.integers(1, len(cells), len(alone))) % len(cells)
    return other


def judged(outcomes: list[Outcome]) -> list[Outcome]:
    """Adds verdicts. Nothing is ever called safe."""
    strength = {o.embedder: o.rank1 for o in outcomes if o.attack == "oo"}
    naive = {o.embedder: o.rank1.value for o in outcomes if o.attack == "oa"}
    return [replace(o, verdict=_verdict(o, strength, naive)) for o in outcomes]


def _verdict(outcome: Outcome, strength: dict[str, Estimate], naive: dict[str, float]) -> str:
    known = strength.get(outcome.embedder)
    if outcome.attack not in ("oo", "aa-same-key", "control") and outcome.risk.low > 0:
        return "people are recognised beyond the control"  # a success proves itself
    if known is not None and known.value < STRONG:
        return f"{TOO_WEAK} (finds only {known.value:.0%} of originals)"
    if outcome.attack == "oo":
        return "the recogniser is a strong attacker"
    if outcome.evidence is not None and outcome.evidence[0].low <= outcome.evidence[1]:
        return f"{TOO_WEAK} ({UNLEARNT})"
    rate = naive.get(outcome.embedder)
    learns = outcome.attack in ("semi-informed", "reverse-map", "negation", "set-averaging")
    if learns and rate is not None and rate >= outcome.rank1.value:
        return f"{TOO_WEAK} (no better than the naive attack)"
    return "not beyond the control"


def _histogram(mated: Floats, nonmated: Floats) -> tuple[list[float], list[int], list[int]]:
    both = np.concatenate([mated, nonmated])
    both = both[np.isfinite(both)]
    if not len(both) or np.ptp(both) == 0:
        return [], [], []
    edges = np.linspace(both.min(), both.max(), 41)
    counts = [np.histogram(s[np.isfinite(s)], edges)[0].tolist() for s in (mated, nonmated)]
    return [float(e) for e in edges], counts[0], counts[1]


def _curve(mated: Floats, nonmated: Floats) -> tuple[list[float], list[float]]:
    """The ROC at 60 false accept rates spaced by logarithm."""
    far, tar = stats.roc(mated, nonmated)
    wanted = np.geomspace(max(1 / len(nonmated), 1e-5), 1, 60)
    at = np.searchsorted(far, wanted, "right") - 1
    return [float(x) for x in wanted], [float(x) for x in tar[at]]
