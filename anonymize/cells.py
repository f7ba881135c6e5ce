"""Coarse cells of people, such as what stays visible of them can tell apart; training only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from anonymize.embedders import CHIP_SIZE, DlibResNet
from anonymize.errors import ConfigError
from anonymize.priors import CodePrior
from anonymize.record import Floats

AXES = 4
"""Directions of the code space in which cells differ."""

HELD_OUT = 10
"""Every tenth training face is kept out of the classifier's fit and measures it."""


@torch.no_grad()
def hints(recogniser: DlibResNet, context: Tensor) -> Tensor:
    """What a recogniser's middle layers make of contexts: (N, 7, S, S) to (N, D) features.

    Averages over the surroundings of the region and over the upper and the lower half of the crop.
    """
    pixels = F.interpolate(context[:, :3], (CHIP_SIZE, CHIP_SIZE), mode="bilinear", antialias=True)
    features = []
    for level in recogniser.levels((pixels + 1) * 127.5):
        mask = F.interpolate(context[:, 3:4], level.shape[-2:], mode="area")
        near = F.max_pool2d(mask, 3, 1, 1) * (1 - mask) + 1e-3
        features += [
            (level * near).sum((2, 3)) / near.sum((2, 3)),
            F.adaptive_avg_pool2d(level, (2, 1)).flatten(1),
        ]
    return torch.cat(features, 1)


def fit_cells(
    prior: CodePrior,
    embeddings: Tensor,
    groups: npt.NDArray[np.int64],
    features: Tensor,
    seed: int,
) -> Tensor:
    """Fits centre and cells of a prior; returns each training face's cell (N,).

    Cells should differ in what a wrong guess would show, such as apparent sex, age and skin tone
    against hair and neck. These are the directions of the code space that the context predicts
    best (reduced-rank regression, Izenman 1975), fitted within each source so that scenery does
    not count. Cells are k-means clusters along them; each becomes a Gaussian over whole codes with
    a shrunk covariance (Ledoit and Wolf 2004).

    Args:
        prior: its centre, means, factors and weights are set.
        embeddings: (N, 128) of the recogniser.
        groups: (N,) the source that each face came from.
        features: (N, D) of the faces' contexts, from `hints`.
        seed: of k-means.

    Raises:
        ConfigError: a cell of one or two faces, whose covariance cannot be shrunk.
    """
    from sklearn.cluster import KMeans
    from sklearn.covariance import LedoitWolf

    prior.centre.data = embeddings.mean(0)
    codes = prior.code(embeddings).numpy().astype(np.float64)
    balance = np.bincount(groups)[groups] ** -0.5
    axes = _axes(codes, features.double().numpy(), groups, balance)
    count = len(prior.mean)
    cells = KMeans(count, n_init=4, random_state=seed).fit_predict(codes @ axes, None, balance)
    if (least := np.bincount(cells, minlength=count).min()) < 3:
        raise ConfigError(
            f"got {len(codes)} faces to train on, of which a cell has {least}, expected at least 3 "
            f"in each of {count} cells: train on more faces, or with fewer cells (--set cells=N)"
        )
    for cell in range(count):
        members = codes[cells == cell]
        factor = np.linalg.cholesky(LedoitWolf().fit(members).covariance_)
        prior.mean.data[cell] = torch.from_numpy(members.mean(0)).float()
        prior.factor.data[cell] = torch.from_numpy(factor).float()
        prior.weight.data[cell] = len(members) / len(codes)
    return torch.from_numpy(cells).long()


def _axes(
    codes: Floats, features: Floats, groups: npt.NDArray[np.int64], balance: Floats
) -> Floats:
    """(128, AXES) directions that contexts predict, scaled by the share they predict of them."""
    from scipy.linalg import eigh
    from sklearn.linear_model import Ridge

    codes, features = _centred(codes, groups), _centred(features, groups)
    features = features / (features.std(0) + 1e-4)
    ridge = Ridge(0.3 * len(codes)).fit(features, codes, balance / balance.mean())
    spread = np.cov(codes.T)
    spread += np.eye(len(spread)) * 0.05 * np.trace(spread) / len(spread)
    shares, axes = eigh(np.cov(ridge.predict(features).T), spread)
    return np.asarray(axes[:, -AXES:] * shares[-AXES:])


def _centred(values: Floats, groups: npt.NDArray[np.int64]) -> Floats:
    sums = np.stack([np.bincount(groups, column) for column in values.T], 1)
    return np.asarray(values - (sums / np.bincount(groups)[:, None])[groups])


def _erased(context: Tensor) -> Tensor:
    """Contexts with a random rectangle of the picture blanked (Zhong et al. 2020)."""
    size, out = context.shape[-1], context.clone()
    corners = torch.randint(0, size, (len(context), 2)).tolist()
    sides = torch.randint(size // 8, size // 2, (len(context), 2)).tolist()
    for picture, (row, column), (high, wide) in zip(out, corners, sides, strict=True):
        picture[:3, row : row + high, column : column + wide] = 0
    return out


def fit_classifier(
    prior: CodePrior,
    pairs: Iterator[tuple[Tensor, Tensor]],
    cells: Tensor,
    steps: int,
    report: Callable[[str], None],
) -> None:
    """Fits the guess of the cell from the context; reports its accuracy on held-out people.

    Args:
        prior: its `classify` is trained.
        pairs: endless batches of contexts (N, 7, S, S) and indices of their faces (N,).
        cells: (faces,) the cell of each training face.
        steps: optimiser steps.
        report: takes progress lines.
    """
    optimiser = torch.optim.AdamW(prior.classify.parameters(), 1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(2, steps + 1))
    hits, seen = 0, 0
    for step in range(steps):
        context, index = next(pairs)
        prior.train()
        logits, held = prior(_erased(context)), index % HELD_OUT == 0
        right = (logits.argmax(1) == cells[index])[held]
        hits, seen = hits + int(right.sum()), seen + len(right)
        optimiser.zero_grad()
        if not held.all():
            loss = F.cross_entropy(logits[~held], cells[index][~held], label_smoothing=0.05)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            share = 100 * hits / max(1, seen)
            report(f"cell classifier, step {step + 1} of {steps}: {share:.1f} % of held-out right")
            hits, seen = 0, 0
    prior.eval()
