"""Statistics of recognition and re-identification, with intervals that resample people.

Convention: scores are similarities, higher means more alike; `-inf` is a comparison that could not
be made (no face found) and never matches. Names follow ISO/IEC 19795-1 and NIST FRTE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]

DRAWS = 2000
"""Bootstrap resamples behind an interval."""

LEVEL = 0.95
"""Coverage of every interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share or a statistic with its 95 % interval; `count` is what it was measured on."""

    value: float
    low: float
    high: float
    count: int


def wilson(hits: float, count: int) -> Estimate:
    """Share of independent trials with Wilson's score interval (Wilson 1927).

    Raises:
        ValueError: no trials, or more hits than trials.
    """
    if not 0 <= hits <= count or count < 1:
        raise ValueError(f"got {hits} hits of {count} trials")
    z = 1.959963984540054
    centre = (hits + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * np.sqrt(hits * (count - hits) / count + z * z / 4)
    low = float(centre - half) if hits > 0 else 0.0  # exactly, not but for rounding
    high = float(centre + half) if hits < count else 1.0
    return Estimate(hits / count, low, high, count)


def multiplicities(people: int, seed: int, draws: int = DRAWS) -> Array:
    """(draws, people) how often each person occurs in each bootstrap resample of people."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(people, np.full(people, 1 / people), size=draws)


def share(values: Array, people: Array, seed: int = 0) -> Estimate:
    """Mean of `values` (N,) in 0..1 with a bootstrap interval over `people` (N,).

    Images of one person are not independent, so whole people are resampled (Efron and Tibshirani
    1993). Where every value is the same the bootstrap would claim certainty; Wilson's interval with
    one trial per person stands in.
    """
    values = np.asarray(values, np.float64)
    sums, counts = _by_person(values, people)
    if not counts.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    value = float(sums.sum() / counts.sum())
    if np.ptp(values) == 0 and value in (0.0, 1.0):
        trials = len(counts)
        sure = wilson(value * trials, trials)
        return Estimate(value, sure.low, sure.high, len(values))
    weights = multiplicities(len(counts), seed)
    return _interval(value, (weights @ sums) / (weights @ counts), len(values))


def excess(attack: Array, control: Array, people: Array, seed: int = 0) -> Estimate:
    """Risk R = (attack - control) / (1 - control) (Giomi et al. 2023, Anonymeter).

    Args:
        attack: (N,) success of each attack, 0..1.
        control: (N,) what the same attack reaches on each target where it cannot know anything.
        people: (N,) whom the targets belong to; resampled as wholes.
        seed: of the resampling.

    Returns:
        R, at most 1; below 0 where the attack does worse than its control.
    """
    hits, counts = _by_person(attack, people)
    floor, _ = _by_person(control, people)
    rate, base = hits.sum() / counts.sum(), floor.sum() / counts.sum()
    value = float((rate - base) / max(1 - base, 1e-9))
    ceiling = wilson(hits.sum() / counts.sum() * len(counts), len(counts))
    if np.ptp(attack) == 0:
        low, high = ((x - base) / max(1 - base, 1e-9) for x in (ceiling.low, ceiling.high))
        return Estimate(value, float(low), float(high), len(attack))
    weights = multiplicities(len(counts), seed)
    total = weights @ counts
    rates, bases = (weights @ hits) / total, (weights @ floor) / total
    return _interval(value, (rates - bases) / np.maximum(1 - bases, 1e-9), len(attack))


def resampled(
    statistic: Callable[[Array], float], people: Array, seed: int = 0, draws: int = 200
) -> Estimate:
    """Any statistic of items with weights, with a bootstrap interval over people.

    Args:
        statistic: maps item weights (N,) int to a number.
        people: (N,) the person of each item.
        seed: of the resampling.
        draws: resamples.
    """
    _, index = np.unique(people, return_inverse=True)
    weights = multiplicities(int(index.max()) + 1, seed, draws)
    values = np.array([statistic(row[index]) for row in weights])
    return _interval(float(statistic(np.ones(len(people), np.int64))), values, len(people))


def jackknife(
    without: Callable[[Array], float], people: Array, seed: int = 0, groups: int = 20
) -> Estimate:
    """A statistic with an interval from leaving out groups of people in turn (Tukey 1958).

    For distances between sets, which the bootstrap's repeated items bias upwards.

    Args:
        without: the statistic, computed without some people (their numbers).
        people: (P,) numbers of all people.
        seed: of the grouping.
        groups: how many.
    """
    parts = np.array_split(np.random.default_rng(seed).permutation(people), groups)
    parts = [part for part in parts if len(part)]
    values, value = np.array([without(part) for part in parts]), without(people[:0])
    count = len(parts)
    error = np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
    half = 1.959963984540054 * float(error)
    return Estimate(value, value - half, value + half, len(people))


def _by_person(values: Array, people: Array) -> tuple[Array, Array]:
    _, index = np.unique(people, return_inverse=True)
    return np.bincount(index, values), np.bincount(index)


def _interval(value: float, draws: Array, count: int) -> Estimate:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws[np.isfinite(draws)], [tail, 1 - tail])
    return Estimate(value, float(low), float(high), count)


def hits(scores: Array, own: Array, rank: int = 1) -> Array:
    """(P,) chance that each probe's own person is among the best `rank` of the gallery.

    Ties are broken at random, so a score that is the same for everybody earns 1/N and no more.

    Args:
        scores: (P, K) similarity of probes and enrolled people.
        own: (P,) column of the probe's person.
        rank: 1 for rank-1.
    """
    mine = scores[np.arange(len(scores)), own][:, None]
    better, tied = (scores > mine).sum(1), (scores == mine).sum(1)
    chance = np.clip((rank - better) / tied, 0, 1)
    return np.where(np.isneginf(mine[:, 0]), 0.0, chance)


def cmc(scores: Array, own: Array, ranks: int) -> Array:
    """(ranks,) cumulative match characteristic: share of probes found within each rank."""
    return np.array([hits(scores, own, rank).mean() for rank in range(1, ranks + 1)])


def mated_and_not(scores: Array, own: Array) -> tuple[Array, Array]:
    """The (P,) scores of probes with their own person and the (P * (K - 1),) with all others."""
    mask = np.zeros(scores.shape, bool)
    mask[np.arange(len(scores)), own] = True
    return scores[mask], scores[~mask]


def threshold(nonmated: Array, far: float, least: int = 10) -> float | None:
    """The least score at which at most `far` of the non-mated comparisons would be accepted.

    Returns:
        A threshold for `score >= threshold`; None where fewer than `least` comparisons are
        expected beyond it, which is too few to fix one.
    """
    if len(nonmated) * far < least:
        return None
    allowed = int(np.floor(far * len(nonmated)))
    limit = np.partition(nonmated, -allowed - 1)[-allowed - 1]
    return float(np.nextafter(limit, np.inf))


def roc(mated: Array, nonmated: Array) -> tuple[Array, Array]:
    """False accept rates and true accept rates over all thresholds, both rising from 0 to 1."""
    from sklearn.metrics import roc_curve

    least = min(mated[np.isfinite(mated)].min(initial=0), nonmated[np.isfinite(nonmated)].min()) - 1
    scores = np.nan_to_num(np.concatenate([mated, nonmated]), neginf=least)
    truth = np.concatenate([np.ones(len(mated)), np.zeros(len(nonmated))])
    far, tar, _ = roc_curve(truth, scores)
    return np.asarray(far), np.asarray(tar)


def eer(mated: Array, nonmated: Array) -> float:
    """Equal error rate: where false accepts and false rejects are equally frequent."""
    far, tar = roc(mated, nonmated)
    gap = far - (1 - tar)  # rises along the curve from -1 to 1
    at = int(np.argmax(gap >= 0))
    if at == 0:
        return float(far[0])
    part = -gap[at - 1] / (gap[at] - gap[at - 1])
    return float(far[at - 1] + part * (far[at] - far[at - 1]))


def fnir(scores: Array, own: Array, strangers: Array, fpir: float = 0.01) -> float | None:
    """Open-set FNIR@FPIR at rank 1 (NIST FRTE 1:N, ISO/IEC 19795-1).

    Args:
        scores: (P, K) searches of people who are enrolled.
        own: (P,) the column of each one's person.
        strangers: (Q, K) searches of people who are not enrolled.
        fpir: share of the strangers' searches that may return a candidate.

    Returns:
        Share of enrolled searches whose person is not the best candidate above the threshold that
        `fpir` asks for; None where the strangers are too few to fix one.
    """
    limit = threshold(strangers.max(1), fpir, least=1)
    if limit is None:
        return None
    mine = scores[np.arange(len(scores)), own]
    return float(1 - (hits(scores, own) * (mine >= limit)).mean())


def d_sys(mated: Array, nonmated: Array) -> float:
    """Global linkability of two score distributions (Gomez-Barrero et al. 2018), 0..1.

    Local linkability is 0 where the likelihood ratio LR is at most 1, else 2 LR / (1 + LR) - 1, and
    1 where non-mated scores never occur; the global one is its mean over mated scores. Equal prior
    odds. Histograms have a tenth as many bins as there are mated scores, at most 100, which is why
    the value is biased upwards at chance: compare with `d_sys_null`.
    """
    mated, nonmated = mated[np.isfinite(mated)], nonmated[np.isfinite(nonmated)]
    if not len(mated) or not len(nonmated):
        return float("nan")
    bins = int(np.clip(len(mated) / 10, 1, 100))
    low, high = min(mated.min(), nonmated.min()), max(mated.max(), nonmated.max())
    if low == high:
        return 0.0
    edges = np.linspace(low, high, bins + 1)
    p = np.histogram(mated, edges)[0] / len(mated)
    q = np.histogram(nonmated, edges)[0] / len(nonmated)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = p / q
        local = np.where(ratio > 1, 2 * ratio / (1 + ratio) - 1, 0.0)
    local = np.where((q == 0) & (p > 0), 1.0, local)
    return float((local * p).sum())


def d_sys_null(mated: Array, nonmated: Array, seed: int = 0, draws: int = 50) -> Estimate:
    """D_sys under chance: the same scores with mated and non-mated labels permuted."""
    mated, nonmated = mated[np.isfinite(mated)], nonmated[np.isfinite(nonmated)]
    rng, pool = np.random.default_rng(seed), np.concatenate([mated, nonmated])
    values = []
    for _ in range(draws):
        rng.shuffle(pool)
        values.append(d_sys(pool[: len(mated)], pool[len(mated) :]))
    return _interval(float(np.mean(values)), np.array(values), len(mated))


def frechet(a: Array, b: Array) -> float:
    """Frechet distance of two sets of embeddings (N, D), (M, D), each taken as a Gaussian.

    The formula of FID (Heusel et al. 2017) in whatever space the embeddings live in; its square
    root's covariance term is computed from eigenvalues, which is stable for few samples.
    """
    gap = a.mean(0) - b.mean(0)
    one, two = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(one)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ two @ root), 0)).sum()
    return float(gap @ gap + np.trace(one) + np.trace(two) - 2 * cross)


def kid(a: Array, b: Array) -> float:
    """Kernel distance (unbiased squared MMD, cubic kernel; Binkowski et al. 2018)."""

    def kernel(x: Array, y: Array) -> Array:
        return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)

    xx, yy, n, m = kernel(a, a), kernel(b, b), len(a), len(b)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())
