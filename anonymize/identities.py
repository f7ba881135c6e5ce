"""Who the new people are: pseudonyms and identity codes, from the key and never from a face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anonymize import seeds
from anonymize.record import Floats

APART = 0.42
"""Cosine between two codes up to which a draw is taken at once: pictures rarely match then. With
less, people are more distinct but odd, because only odd ones are so far from all others."""

LIMIT = 0.65
"""Greatest cosine between two codes. Stricter than the recogniser's threshold at a
false match rate of 1e-4, which is 0.76 (`eval/bench/thresholds.py`)."""

REDRAWS = 200
"""Draws for one person before the least similar of them is taken."""

BATCH = 4
"""Draws that are compared at once."""

COMPARISONS = 40_000
"""Comparisons for one person after which `LIMIT` will do: crowds have no room for `APART`."""


def pseudonym(key: bytes, label: str) -> str:
    """The released label of a person: opaque, and the same for the same key and label."""
    return "p" + seeds.handle(key, "person", label)


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """A person who does not exist.

    Attributes:
        code: (128,) float32 unit identity code.
        cell: the coarse cell of the prior that the code was drawn from.
        draws: how many draws it took to stay away from everybody else.
        apart: False where even the best draw came closer than `LIMIT` to someone.
    """

    code: Floats
    cell: int
    draws: int
    apart: bool


BOLDER = 2.0
"""How much surer than it says the guess may be taken for. It was fitted with much shrinkage, and if
taken at its word a set of mostly men would overrule what is visible of four in ten women
(`eval/bench/cells.py`)."""


def pooled(logits: Sequence[Floats]) -> Floats:
    """Logits (cells,) of a person's pictures as one, the guess taken for `BOLDER`.

    The sum over the root of their number: several pictures tell more than one, but not as much as
    if they had been taken independently.
    """
    return np.asarray(BOLDER * np.sum(logits, axis=0) / len(logits) ** 0.5, np.float32)


DOUBT = 50
"""As many people as this, spread over cells as the training faces are, are added to those of a data
set when it is estimated how they are spread: a few guesses prove nothing."""


def ruled_out(prior: Any, people: Mapping[str, Floats | None]) -> Mapping[str, Floats | None]:
    """Rules out, for each person, that half of the cells which their context speaks against.

    The guess was learnt from portraits, as many of women as of men, and errs often in photographs.
    What the whole set says helps: how its people are spread over cells is estimated from all their
    guesses (Saerens, Latinne and Decaestecker 2002), and decides with the guess between the two
    halves of the cells that differ most, in effect apparent sex. Among the cells of a half the
    guess alone decides, or nearly everybody would end up in the most frequent cell.

    Args:
        prior: see `invent`.
        people: label to logits (cells,), or None for a blind draw.

    Returns:
        The same with -inf in the half that was ruled out.
    """
    known = sorted(label for label, logits in people.items() if logits is not None)
    if not known:
        return people
    upper, usual = side(prior, _numbers(prior.mean)) > 0, _numbers(prior.weight)
    usual = np.maximum(usual / usual.sum(), 1e-6)
    logits = np.stack([people[label] for label in known]).astype(np.float64)  # type: ignore[misc]
    guesses = np.exp(logits - logits.max(1, keepdims=True))
    shares, likely = usual, guesses
    for _ in range(100):
        likely = guesses * (shares / usual)
        likely /= likely.sum(1, keepdims=True)
        shares = (likely.sum(0) + DOUBT * usual) / (len(known) + DOUBT)
    above = likely[:, upper].sum(1) > 0.5
    kept = np.where(upper == above[:, None], logits, -np.inf).astype(np.float32)
    return {**people, **dict(zip(known, kept, strict=True))}


def side(prior: Any, codes: Floats) -> Floats:
    """Where codes (N, 128) lie along the first canonical variate of the cells (Rao 1948), (N,).

    Along it cells differ most for their spread; in effect the sign is apparent sex, with that of
    the prior's mean as zero. Which sex is positive is of no account and may differ by prior.
    """
    from scipy.linalg import eigh

    means, factors, weights = (_numbers(x) for x in (prior.mean, prior.factor, prior.weight))
    weights = weights / weights.sum()
    apart = means - weights @ means
    within = np.einsum("k,kij,klj->il", weights, factors, factors)
    within += np.eye(len(within)) * (1e-6 * np.trace(within) + 1e-9)
    axis = eigh((apart.T * weights) @ apart, within)[1][:, -1]
    return np.asarray((codes - weights @ means) @ axis)


def _numbers(values: Any) -> Any:
    return values.detach().double().cpu().numpy()


CASTINGS = 8
"""Attempts at a new person who does not look like the one replaced."""


def cast(
    prior: Any,
    key: bytes,
    people: Mapping[str, Floats | None],
    resembling: Callable[[Mapping[str, Person]], set[str]],
    known: Mapping[str, Person],
) -> dict[str, Person]:
    """Invents people, and those again who look like the person they would replace.

    Args:
        prior, key, people: see `invent`.
        resembling: the labels of those of the given people who do, by looking at drafts of them.
        known: people who are there already and stay as they are.

    Returns:
        The people who were not known.
    """
    people = ruled_out(prior, people)
    people = {label: logits for label, logits in people.items() if label not in known}
    there = [person.code for person in known.values()]
    invented = invent(prior, key, people, taken=there)
    again = resembling(invented)
    for casting in range(1, CASTINGS):
        if not again:
            break
        wanted = {label: people[label] for label in again}
        others = [person.code for label, person in invented.items() if label not in again]
        drawn = invent(prior, key, wanted, taken=[*there, *others], casting=casting)
        invented |= drawn
        again = resembling(drawn)
    return invented


def invent(
    prior: Any,
    key: bytes,
    people: Mapping[str, Floats | None],
    *,
    taken: Sequence[Floats] = (),
    casting: int = 0,
    limit: float = LIMIT,
) -> dict[str, Person]:
    """Draws an identity code for each person, none closer to another than `limit`.

    A code depends on the key, the label, the cell and, through redraws, on who else is there;
    people are taken in an order that the key decides, so the order of the source is of no account.
    The first draw that stays `APART` from everybody is taken, in a crowd the best of some.

    Args:
        prior: `anonymize.priors.CodePrior`.
        key: the secret.
        people: label to the `pooled` logits (cells,) of the visible contexts, or None to draw
            the cell blindly.
        taken: codes (128,) of people who are there already.
        casting: which attempt at these people this is; each draws other codes.
        limit: greatest cosine allowed between two people's codes.
    """
    means, factors, weights = (_numbers(x) for x in (prior.mean, prior.factor, prior.weight))
    order = sorted(people, key=lambda label: seeds.derive(key, "order", label))
    codes = np.zeros((len(taken) + len(order), means.shape[1]), np.float32)
    codes[: len(taken)] = np.reshape(taken, (len(taken), means.shape[1]))
    invented: dict[str, Person] = {}
    for count, label in enumerate(order, len(taken)):
        rng = seeds.generator(key, "code", label, *([casting] if casting else []))
        logits = people[label]
        cell = (
            int(rng.choice(len(means), p=weights / weights.sum()))
            if logits is None
            else int(np.argmax(logits))
        )
        person = _draw(rng, means[cell], factors[cell], cell, codes[:count], limit)
        codes[count], invented[label] = person.code, person
    return invented


def _draw(
    rng: np.random.Generator, mean: Any, factor: Any, cell: int, taken: Floats, limit: float
) -> Person:
    best, least = np.zeros(0, np.float32), np.inf
    for draws in range(0, REDRAWS, BATCH):
        drawn = mean + rng.standard_normal((BATCH, len(mean))) @ factor.T
        codes = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
        nearest = (codes @ taken.T).max(1, initial=-1)
        good = np.flatnonzero(nearest <= min(APART, limit))
        if len(good):
            return Person(codes[good[0]], cell, draws + int(good[0]) + 1, True)
        if nearest.min() < least:
            best, least = codes[nearest.argmin()], float(nearest.min())
        if least <= limit and (draws + BATCH) * len(taken) > COMPARISONS:
            break
    return Person(best, cell, draws + BATCH, least <= limit)
