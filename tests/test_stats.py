"""Every statistic against a closed form, a library or a property."""

from __future__ import annotations

import numpy as np
import pytest
from anonymize.eval import stats
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference
from sklearn.metrics import roc_auc_score


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 1200)])
def test_wilson_is_scipys(hits: int, count: int) -> None:
    ours = stats.wilson(hits, count)
    theirs = reference.binomtest(hits, count).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.value == hits / count


def test_wilson_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="3 hits of 2"):
        stats.wilson(3, 2)
    with pytest.raises(ValueError, match="0 trials"):
        stats.wilson(0, 0)


def test_intervals_resample_people_not_pictures() -> None:
    """A hundred copies of each person's result must not narrow the interval."""
    rng = np.random.default_rng(0)
    once = rng.random(40) < 0.5
    people = np.arange(40)
    few = stats.share(once, people)
    many = stats.share(np.repeat(once, 100), np.repeat(people, 100))
    assert (few.low, few.high) == pytest.approx((many.low, many.high), abs=1e-9)
    naive = stats.wilson(float(once.sum()) * 100, 4000)
    assert many.high - many.low > 5 * (naive.high - naive.low)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(1), 0
    for trial in range(200):
        rates = rng.beta(2, 4, 60)  # people differ; the mean is 1/3
        values = (rng.random((60, 5)) < rates[:, None]).ravel()
        estimate = stats.share(values, np.repeat(np.arange(60), 5), trial)
        covered += estimate.low <= 1 / 3 <= estimate.high
    assert 0.90 <= covered / 200 <= 0.985


def test_certainty_is_never_claimed() -> None:
    none = stats.share(np.zeros(50), np.repeat(np.arange(10), 5))
    assert none.value == none.low == 0
    assert none.high == pytest.approx(stats.wilson(0, 10).high)


@given(st.floats(0, 1), st.floats(0, 0.99))
def test_risk_has_anonymeters_form(attack: float, control: float) -> None:
    people = np.arange(20)
    risk = stats.excess(np.full(20, attack), np.full(20, control), people)
    assert risk.value == pytest.approx((attack - control) / (1 - control), abs=1e-9)


def test_hits_break_ties_at_random() -> None:
    same = np.ones((3, 4))
    assert stats.hits(same, np.array([0, 1, 2])) == pytest.approx([0.25] * 3)
    assert stats.hits(same, np.array([0, 1, 2]), 2) == pytest.approx([0.5] * 3)
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [-np.inf] * 3])
    assert stats.hits(scores, np.array([0, 1, 0])).tolist() == [1, 0, 0]
    assert stats.hits(scores, np.array([0, 1, 0]), 2).tolist() == [1, 1, 0]


@given(st.integers(2, 12), st.integers(0, 10_000))
def test_cmc_rises_to_one(people: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    curve = stats.cmc(rng.random((30, people)), rng.integers(people, size=30), people)
    assert (np.diff(curve) >= 0).all()
    assert curve[-1] == pytest.approx(1)


def test_threshold_keeps_its_false_accept_rate() -> None:
    scores = np.random.default_rng(0).normal(size=20_000)
    for rate in (1e-2, 1e-3):
        limit = stats.threshold(scores, rate)
        assert limit is not None
        assert (scores >= limit).mean() <= rate
        assert (scores >= limit).mean() > 0.9 * rate
    assert stats.threshold(scores, 1e-4) is None  # two comparisons cannot fix a threshold
    tied = np.zeros(20_000)
    limit = stats.threshold(tied, 1e-2)
    assert limit is not None
    assert (tied >= limit).sum() == 0


def test_roc_and_eer_of_two_normals() -> None:
    rng = np.random.default_rng(2)
    mated, others = rng.normal(2, 1, 40_000), rng.normal(0, 1, 40_000)
    assert stats.eer(mated, others) == pytest.approx(reference.norm.cdf(-1), abs=0.005)
    far, tar = stats.roc(mated, others)
    truth = np.repeat([1, 0], 40_000)
    area = roc_auc_score(truth, np.concatenate([mated, others]))
    assert np.trapezoid(tar, far) == pytest.approx(area, abs=1e-6)
    assert np.interp(0.1, far, tar) == pytest.approx(reference.norm.sf(1.2816 - 2), abs=0.01)


@given(st.integers(0, 1000))
def test_eer_mirrors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mated, others = rng.normal(1, 1, 60), rng.normal(0, 1, 90)
    assert stats.eer(mated, others) == pytest.approx(1 - stats.eer(others, mated), abs=0.06)


def test_missed_faces_are_misses() -> None:
    mated = np.array([-np.inf, 3.0, 3.0, 3.0])
    far, tar = stats.roc(mated, np.array([0.0, 1.0]))
    assert np.interp(0.4, far, tar) == pytest.approx(0.75)


def test_fnir_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.6], [0.1, 0.3]])
    own = np.array([0, 1, 1, 1])  # third: another is better; fourth: below the threshold
    strangers = np.full((1000, 2), 0.4)
    assert stats.fnir(scores, own, strangers) == pytest.approx(0.5)
    assert stats.fnir(scores, own, strangers[:99]) is None


@pytest.mark.parametrize(("count", "bias"), [(1000, 0.062), (3000, 0.032), (10_000, 0.017)])
def test_linkability_is_biased_at_chance_and_its_null_says_so(count: int, bias: float) -> None:
    rng = np.random.default_rng(count)
    mated, others = rng.normal(size=count), rng.normal(size=20 * count)
    null = stats.d_sys_null(mated, others, draws=20)
    assert null.value == pytest.approx(bias, rel=0.3)
    assert abs(stats.d_sys(mated, others) - null.value) < 0.3 * bias + 0.004


def test_linkability_of_separate_and_of_shifted_scores() -> None:
    rng = np.random.default_rng(0)
    assert stats.d_sys(rng.normal(9, 1, 500), rng.normal(0, 1, 500)) == pytest.approx(1, abs=0.01)
    x = np.linspace(-8, 10, 20_001)
    p, q = reference.norm.pdf(x, 1), reference.norm.pdf(x)
    exact = np.trapezoid(np.where(p > q, 2 * p / (p + q) - 1, 0) * p, x)
    mated, others = rng.normal(1, 1, 200_000), rng.normal(0, 1, 200_000)
    assert stats.d_sys(mated, others) == pytest.approx(exact, abs=0.01)
    assert stats.d_sys(np.ones(5), np.ones(9)) == 0


def test_frechet_of_known_gaussians() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(0, 1, (60_000, 3))
    b = rng.normal([3, 0, 0], 2, (60_000, 3))
    assert stats.frechet(a, b) == pytest.approx(9 + 3 * (1 - 2) ** 2, rel=0.02)
    assert stats.frechet(a, a) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    same = [stats.kid(rng.normal(size=(40, 4)), rng.normal(size=(50, 4))) for _ in range(300)]
    assert np.mean(same) == pytest.approx(0, abs=3 * np.std(same) / np.sqrt(300))
    assert stats.kid(rng.normal(size=(200, 4)), rng.normal(2, 1, (200, 4))) > 1
