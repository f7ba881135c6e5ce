"""The contract of attacks, as a check to call from the tests of whoever writes one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from anonymize.eval.attacks import Attack
from anonymize.eval.cache import Cache
from anonymize.eval.risk import Search, measure
from anonymize.eval.trial import Shots, Trial, View

from anonymize.record import Floats, Pixels

PEOPLE, EACH, DIMS = 80, 4, 48


class Staged:
    """A recogniser whose embeddings are given with the trial (`staged`); it sees no picture."""

    name = "staged"

    def __call__(self, chips: Sequence[Pixels]) -> Floats:
        raise AssertionError("an attack asked for embeddings past `Trial.view`")


def staged(o: Floats, a: Floats, found: Floats | None = None, seed: int = 0) -> Trial:
    """A trial of PEOPLE people with EACH originals each, half of them enrolled, without pictures.

    Args:
        o: (PEOPLE * EACH, D) embeddings of the originals, person after person.
        a: the same of their outputs.
        found: (PEOPLE * EACH) whether a face is found in an output; default in all.
        seed: of who belongs to the attacker: half of the people.
    """
    count = len(o)
    people = np.repeat(np.arange(PEOPLE), EACH)
    everywhere = np.ones(count, bool)

    def shots(seen: Floats) -> Shots:
        rows = np.arange(count)
        paths = [f"p{p}/{i}.jpg" for i, p in enumerate(people)]
        blank = np.zeros((count, 5, 2), np.float32)
        boxes, sizes = np.zeros((count, 4), np.float32), np.ones((count, 2), np.int64)
        tables = (seen, blank, boxes, sizes, everywhere)
        return Shots(Path("nowhere"), paths, people, rows, [""] * count, *tables)

    attacker = np.random.default_rng(seed).permutation(PEOPLE) < PEOPLE // 2
    enrolled = np.tile(np.arange(EACH) < EACH // 2, PEOPLE)
    names = [f"p{i}" for i in range(PEOPLE)]
    outputs = shots(everywhere if found is None else found.astype(bool))
    trial = Trial(shots(everywhere), outputs, attacker, enrolled, names, seed, Cache(None))
    trial._views[Staged.name] = View(trial, Staged.name, o, a)
    return trial


def check_attack(attack: Attack) -> None:
    """Checks what `attacks.Attack` promises, on embeddings of people who do not exist.

    The attack must be repeatable, must sit at chance where nothing links outputs to originals, must
    not find an output by its own original, and must fix its thresholds on the attacker's people.

    Args:
        attack: takes a trial and a recogniser, and works on the embeddings of `Trial.view`; those
            that look at pixels themselves cannot be checked in this way, nor can the gate `oo`.

    Raises:
        AssertionError: a promise is broken.
    """
    o, strangers = _people(0), _people(1)
    searches = attack(staged(o, strangers), Staged())
    _expect(isinstance(searches, list) and bool(searches), "an attack must give a list of searches")
    for search in searches:
        _shaped(search)
    again = attack(staged(o, strangers), Staged())
    same = [np.array_equal(a.scores, b.scores) for a, b in zip(searches, again, strict=True)]
    _expect(all(same), "the attack gives other scores the second time")
    _at_chance(searches, "the attack finds strangers, so it knows who belongs to whom")
    alone = np.random.default_rng(2).normal(size=o.shape).astype(np.float32)
    own = attack(staged(alone, alone), Staged())
    _at_chance(own, "the attack finds an output by its own original, which it must not enrol")
    _own_thresholds(attack, o, strangers)


def _people(seed: int) -> Floats:
    """(PEOPLE * EACH, DIMS): a centre for each person, and a little noise for each picture."""
    rng = np.random.default_rng(seed)
    who = np.repeat(rng.normal(size=(PEOPLE, DIMS)), EACH, axis=0)
    return (who + 0.25 * rng.normal(size=who.shape)).astype(np.float32)


def _shaped(search: Search) -> None:
    _expect(isinstance(search, Search), f"got {type(search).__name__}, not a Search")
    _expect(bool(search.attack and search.embedder), "a search must name its attack and recogniser")
    scores = np.asarray(search.scores)
    _expect(scores.ndim == 2 and scores.size > 0, f"scores have shape {scores.shape}, not (P, K)")
    _expect(not np.isnan(scores).any(), "scores hold NaN; where nothing is compared, give -inf")
    probes, known = scores.shape
    for name, wanted in (("own", probes), ("people", probes), ("cells", known)):
        length = np.shape(getattr(search, name))
        _expect(length == (wanted,), f"{name} has shape {length}, not ({wanted},)")
    within = ((search.own >= 0) & (search.own < known)).all()
    _expect(bool(within), "own must be the column of each probe's person")
    _expect(np.shape(search.strangers)[1:] == (known,), "strangers must have shape (Q, K)")
    _expect(bool(np.isfinite(search.nonmated).all()), "nonmated scores must be finite")
    _expect(0 <= search.lost <= probes, f"lost is {search.lost}, not 0 to {probes}")


def _at_chance(searches: list[Search], broken: str) -> None:
    for search in searches:
        outcome = measure(search)
        lucky = outcome.chance + 0.12  # about four standard deviations of 40 probed people
        _expect(outcome.rank1.value <= lucky, f"{broken}: rank-1 {outcome.rank1.value:.0%}")


def _own_thresholds(attack: Attack, o: Floats, a: Floats) -> None:
    """Other originals of the people who are searched for must not move the thresholds."""
    trial = staged(o, a)
    mine = trial.attacker[trial.o.people]
    changed = np.where(mine[:, None], o, _people(3)).astype(np.float32)
    pairs = zip(attack(trial, Staged()), attack(staged(changed, a), Staged()), strict=True)
    same = [np.allclose(one.nonmated, two.nonmated, atol=1e-5) for one, two in pairs]
    _expect(all(same), "nonmated scores depend on people who are not the attacker's")


def _expect(kept: bool, broken: str) -> None:
    if not kept:
        raise AssertionError(broken)
