"""Who the new people are: pseudonyms and identity codes, from the key and never from a face."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anonymize import seeds
from anonymize.record import Floats

LIMIT = 0.65
"""Greatest cosine between two codes. Stricter than the recogniser's threshold at a
false match rate of 1e-4, which is 0.79 (`eval/bench/thresholds.py`)."""

REDRAWS = 200
"""Draws for one person before the least similar of them is taken."""


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
        apart: False where even the last draw came too close to someone.
    """

    code: Floats
    cell: int
    draws: int
    apart: bool


def invent(
    prior: Any,
    key: bytes,
    people: Mapping[str, Floats | None],
    limit: float = LIMIT,
    redraws: int = REDRAWS,
) -> dict[str, Person]:
    """Draws an identity code for each person, none closer to another than `limit`.

    A code depends on the key, the label, the cell and, through redraws, on who else is there;
    people are taken in an order that the key decides, so the order of the source is of no account.

    Args:
        prior: `anonymize.priors.CodePrior`.
        key: the secret.
        people: label to the mean (cells,) logits of the person's visible contexts, or None to draw
            the cell blindly.
        limit: greatest cosine allowed between two people's codes.
        redraws: draws for one person before giving up on distance.
    """
    means = prior.mean.detach().double().cpu().numpy()
    factors = prior.factor.detach().double().cpu().numpy()
    weights = prior.weight.detach().double().cpu().numpy()
    order = sorted(people, key=lambda label: seeds.derive(key, "order", label))
    taken = np.zeros((len(order), means.shape[1]), np.float32)
    invented: dict[str, Person] = {}
    for count, label in enumerate(order):
        rng = seeds.generator(key, "code", label)
        logits = people[label]
        cell = (
            int(rng.choice(len(means), p=weights / weights.sum()))
            if logits is None
            else int(np.argmax(logits))
        )
        person = _draw(rng, means[cell], factors[cell], cell, taken[:count], limit, redraws)
        taken[count], invented[label] = person.code, person
    return invented


def _draw(
    rng: np.random.Generator,
    mean: Any,
    factor: Any,
    cell: int,
    taken: Floats,
    limit: float,
    redraws: int,
) -> Person:
    best, least = np.zeros(0, np.float32), np.inf
    for draws in range(1, redraws + 1):
        code = mean + factor @ rng.standard_normal(len(mean))
        code = (code / np.linalg.norm(code)).astype(np.float32)
        nearest = float((taken @ code).max(initial=-1))
        if nearest <= limit:
            return Person(code, cell, draws, True)
        if nearest < least:
            best, least = code, nearest
    return Person(best, cell, redraws, False)
