"""Generator memory: does a face that belongs to no one belong to someone from the training set?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from anonymize.eval.links import pictures
from anonymize.eval.risk import Outcome, counted
from anonymize.eval.stats import Array
from anonymize.eval.trial import Shots, Trial, embed, shots, unit

from anonymize.embedders import Embedder
from anonymize.errors import ConfigError
from anonymize.record import Floats

FALSE = 0.01
"""Share of real people, never seen in training, who may look like a training face by chance."""


def memory(trial: Trial, embedder: Embedder, training: Path, limit: int = 5000) -> Outcome:
    """Memory: outputs are searched among the faces that the generator was trained on.

    An output counts as a copy when its nearest training face is nearer than that of 99 % of the
    attacker's originals, who took no part in the training; the control is the same count for the
    evaluation's originals. Above the control, the generator repeats whom it learnt from.

    Args:
        trial: what is evaluated.
        embedder: the recogniser.
        training: folder of the training faces.
        limit: at most so many of them, evenly spread.

    Raises:
        ConfigError: none of them shows a face.
    """
    view, faces = trial.view(embedder), _training(trial, training, limit)
    if not faces.found.any():
        raise ConfigError(f"{training}: no face was found in any picture")
    what = f"embed training faces ({embedder.name})"
    vectors = embed(faces, trial.cache, embedder, trial.progress, what)[faces.found]
    known = unit(vectors - view.centre)
    strangers = _nearest(view.o, trial.o, trial.rows("o", attacker=True), known)
    limit_score = float(np.quantile(strangers, 1 - FALSE))
    rows = _found(trial.a, trial.rows("a", attacker=False))
    copies = _nearest(view.a, trial.a, rows, known) > limit_score
    floor = _nearest(view.o, trial.o, trial.a.links[rows], known, every=True) > limit_score
    people = trial.a.people[rows]
    return counted("generator-memory", view.name, copies * 1.0, floor * 1.0, people, trial.seed)


def _training(trial: Trial, folder: Path, limit: int) -> Shots:
    paths = pictures(folder)
    step = max(1, -(-len(paths) // limit))
    return shots(folder, paths[::step], trial.cache, trial.progress, "detect training faces")


def _found(side: Shots, rows: Array) -> Array:
    return np.asarray(rows[side.found[rows]])


def _nearest(
    vectors: Floats, side: Shots, rows: Array, known: Floats, every: bool = False
) -> Floats:
    """(N,) score of the nearest known face for each row with a face, or for every row."""
    rows = rows if every else _found(side, rows)
    return np.asarray((vectors[rows] @ known.T).max(1))
