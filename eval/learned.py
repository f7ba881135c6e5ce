"""Attackers who know the method: they anonymised photographs of other people and learnt from them.

Half of a trial's people are the attacker's. Their pairs of original and output teach a map, which
is then tried on people it has never seen. As a proof that the map is worth anything, each attack
also reports what it reaches on unseen pictures of the attacker's own people.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from anonymize.eval.attacks import Gallery, gallery, nonmated, probes_of, searched
from anonymize.eval.risk import Search, UnmeasurableError
from anonymize.eval.stats import Array, Estimate, hits, share
from anonymize.eval.trial import Trial, View, unit
from torch import nn

from anonymize.embedders import CHIP_SIZE, DlibEmbedder, DlibResNet, Embedder
from anonymize.record import Floats, Pixels

Map: TypeAlias = Callable[[Array], Floats]
"""Takes rows of the trial's outputs, gives unit vectors in the space of the view's originals."""

FOLDS = 4
"""Person-disjoint folds that choose a map's strength on the attacker's split."""

STRENGTHS = (0.3, 3.0, 30.0, 300.0, 3000.0)
"""Ridge penalties to choose from; under the greatest the map is hardly more than the identity."""

KNOWN_BLOCKS = 6
"""Blocks of dlib's ResNet that fine-tuning leaves as they are."""

STEPS, RATE, SCALE = 300, 3e-4, 16.0
"""Fine-tuning: optimiser steps of 32 outputs, greatest learning rate, factor of the cosines."""


def linear(trial: Trial, embedder: Embedder) -> list[Search]:
    """Semi-informed, linear: which direction does the method move embeddings in?

    The attacker fits a ridge regression from embeddings of outputs to the mean embedding of the
    same person's originals and searches the gallery with what it predicts (cf. the informed
    attackers of the VoicePrivacy Challenge, Tomashenko et al. 2022).
    """
    view = trial.view(embedder)

    def fit(rows: Array) -> Map:
        apply = ridge(view, rows)
        return lambda wanted: apply(view.a[wanted])

    return [_mapped(view, "semi-informed", "linear", fit)]


def tuned(trial: Trial, embedder: Embedder) -> list[Search]:
    """Semi-informed, fine-tuned: a recogniser retrained on outputs.

    The later blocks of dlib's ResNet are trained on the attacker's outputs to land on their
    person's originals (cosine softmax over people), which is how recognisers learn to read
    through blur and mosaics (McPherson et al. 2016, "Defeating image obfuscation with deep
    learning"). Other recognisers than dlib's have no such row.
    """
    if not isinstance(embedder, DlibEmbedder):
        return []
    view = trial.view(embedder)
    network = embedder.network
    assert isinstance(network, DlibResNet)
    maps = _early(trial, network, embedder.device)

    def fit(rows: Array) -> Map:
        return _finetune(view, network, maps, rows)

    return [_mapped(view, "semi-informed", "fine-tuned", fit)]


def reverse(trial: Trial, embedder: Embedder) -> list[Search]:
    """Reversal: can the original picture be computed back?

    Principal components of outputs are regressed on those of the originals of the attacker's
    people; the restored picture is searched for like a photograph (irreversibility in the sense
    of ISO/IEC 24745).
    """
    view = trial.view(embedder)

    def fit(rows: Array) -> Map:
        return _restorer(view, embedder, rows)

    return [_mapped(view, "reverse-map", "", fit)]


def _mapped(view: View, attack: str, variant: str, fit: Callable[[Array], Map]) -> Search:
    """Searches with a map learnt on all of the attacker's pairs; adds the evidence of its worth."""
    trial = view.trial
    mine, people = trial.rows("a", attacker=True), trial.a.people
    rows, owners, _ = probes_of(view)
    seen = trial.rows("a", attacker=True, enrolled=True)
    unseen = trial.rows("a", attacker=True, enrolled=False)
    own = gallery(view, "o", attacker=True)
    if len(np.unique(people[seen])) < FOLDS or not len(unseen):
        raise UnmeasurableError("the attacker's people have too few outputs to learn from")
    return searched(
        view,
        attack,
        gallery(view, "o", attacker=False),
        fit(mine)(rows),
        owners,
        variant=variant,
        thresholds=_held_out(fit, mine, people, own),
        evidence=_evidence(fit(seen)(unseen), people[unseen], own, trial.seed),
    )


def _held_out(fit: Callable[[Array], Map], mine: Array, people: Array, own: Gallery) -> Floats:
    """Non-mated scores of people whom the map was not fitted on, which fix its thresholds."""
    half = np.unique(people[mine])[::2]
    held = np.isin(people[mine], half)
    return nonmated(own, fit(mine[~held])(mine[held]), people[mine[held]])


def _evidence(probes: Floats, people: Array, own: Gallery, seed: int) -> tuple[Estimate, float]:
    known = own.known
    if not len(known):
        return Estimate(0, 0, 0, 0), 0.0
    kept = np.isin(people, known)
    columns = np.searchsorted(known, people[kept])
    rate = share(hits(own.search(probes[kept]), columns), people[kept], seed)
    return rate, 1 / len(known)


def _targets(view: View, people: Array) -> tuple[Array, Floats]:
    """Numbers (K,) of people and the mean unit vector (K, D) of each one's originals."""
    shots, known = view.trial.o, np.unique(people)
    rows = [(shots.people == person) & shots.found for person in known]
    means = [view.o[r].mean(0) if r.any() else np.zeros(view.o.shape[1]) for r in rows]
    return known, unit(np.stack(means).astype(np.float32))


def ridge(view: View, rows: Array) -> Callable[[Floats], Floats]:
    """Ridge regression from outputs to their people's originals, its penalty chosen by folds.

    It learns the difference, so that with little to learn from it falls back on the naive attack.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold

    people = view.trial.a.people[rows]
    known, means = _targets(view, people)
    column = np.searchsorted(known, people)
    inputs = view.a[rows]
    missing = means[column] - inputs
    folds = list(GroupKFold(min(FOLDS, len(known))).split(inputs, groups=people))

    def score(strength: float) -> float:
        gained = 0.0
        for train, test in folds:
            model = Ridge(strength).fit(inputs[train], missing[train])
            shown = np.unique(column[test])
            scores = unit(inputs[test] + model.predict(inputs[test])) @ means[shown].T
            gained += float(hits(scores, np.searchsorted(shown, column[test]), 3).sum())
        return gained

    model = Ridge(max(STRENGTHS, key=score)).fit(inputs, missing)
    return lambda vectors: unit((vectors + model.predict(vectors)).astype(np.float32))


def _chips(trial: Trial, side: str, rows: Array) -> list[Pixels]:
    shots = trial.o if side == "o" else trial.a
    with ThreadPoolExecutor() as pool:
        return list(pool.map(shots.chip, rows))


def _early(trial: Trial, network: DlibResNet, device: str) -> torch.Tensor:
    """(M, C, H, W) half-precision maps of all outputs after the blocks that stay as they are."""
    parts = []
    for start in range(0, len(trial.a.paths), 32):
        chips = _chips(trial, "a", np.arange(start, min(start + 32, len(trial.a.paths))))
        pixels = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            parts.append(network.levels(pixels.to(device))[0].half().cpu())
        trial.progress("read outputs for fine-tuning", start + len(chips), len(trial.a.paths))
    return torch.cat(parts)


class _Late(nn.Module):
    """The rest of dlib's ResNet, to be trained: maps to unit vectors as views have them."""

    def __init__(self, network: DlibResNet, centre: Floats) -> None:
        super().__init__()
        from copy import deepcopy

        self.blocks = deepcopy(network.blocks[KNOWN_BLOCKS:])
        self.head = nn.Parameter(network.head.detach().clone())
        self.centre = nn.Parameter(torch.from_numpy(centre).to(network.head))
        self.requires_grad_(True)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        vectors = self.blocks(maps).mean((2, 3)) @ self.head
        return F.normalize(vectors - self.centre, dim=1)


def _finetune(view: View, network: DlibResNet, maps: torch.Tensor, rows: Array) -> Map:
    """Trains the late blocks on outputs of the attacker's people."""
    people = view.trial.a.people[rows]
    known, means = _targets(view, people)
    device = network.head.device
    targets = torch.from_numpy(means).to(device)
    column = torch.from_numpy(np.searchsorted(known, people)).to(device)
    inputs = maps[torch.from_numpy(rows)]
    generator = torch.Generator().manual_seed(view.trial.seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        late = _Late(network, view.centre).to(device)
        optimiser = torch.optim.AdamW(late.parameters(), RATE, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS + 1)
        for _ in range(STEPS):
            batch = torch.randint(len(inputs), (32,), generator=generator)
            some = inputs[batch].to(device).float()
            flipped = torch.rand(len(some), generator=generator) < 0.5
            some[flipped] = some[flipped].flip(3)
            loss = F.cross_entropy(SCALE * late(some) @ targets.T, column[batch])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    late.eval()

    @torch.no_grad()
    def apply(wanted: Array) -> Floats:
        parts = torch.split(maps[torch.from_numpy(wanted)], 64)
        return np.concatenate([late(p.to(device).float()).cpu().numpy() for p in parts])

    return apply


SIDE, COMPONENTS = 48, 250
"""Side of the pictures that `reverse` restores, and how many principal components it uses."""


def _restorer(view: View, embedder: Embedder, rows: Array) -> Map:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge

    trial = view.trial
    inputs, originals = _small(trial, "a", rows), _small(trial, "o", trial.a.links[rows])
    count = min(COMPONENTS, len(rows) - 1)
    before = PCA(count, svd_solver="randomized", random_state=trial.seed).fit(inputs)
    after = PCA(count, svd_solver="randomized", random_state=trial.seed).fit(originals)
    coded = before.transform(inputs)
    strength = 0.03 * float(before.explained_variance_.mean()) * len(rows)
    model = Ridge(strength).fit(coded, after.transform(originals))

    def apply(wanted: Array) -> Floats:
        codes = model.predict(before.transform(_small(trial, "a", wanted)))
        flat = np.clip(after.inverse_transform(codes), 0, 255).astype(np.uint8)
        side = (CHIP_SIZE, CHIP_SIZE)
        restored = [
            np.asarray(cv2.resize(x.reshape(SIDE, SIDE, 3), side, interpolation=cv2.INTER_CUBIC))
            for x in flat
        ]
        with ThreadPoolExecutor() as pool:
            vectors = list(pool.map(lambda chip: embedder([chip])[0], restored))
        return unit(np.stack(vectors) - view.centre)

    return apply


def _small(trial: Trial, side: str, rows: Array) -> Floats:
    """(N, SIDE * SIDE * 3) float32 chips, reduced."""
    size = (SIDE, SIDE)
    small = [cv2.resize(c, size, interpolation=cv2.INTER_AREA) for c in _chips(trial, side, rows)]
    return np.stack(small).reshape(len(rows), -1).astype(np.float32)
