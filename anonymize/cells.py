"""Coarse cells of people, such as what stays visible of them can tell apart; training only."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anonymize.errors import ConfigError
from anonymize.priors import CodePrior
from anonymize.record import Floats

AXES = 4
"""Directions of the code space in which cells differ."""

DECAY = 0.1
"""Weight of the squared slopes of the guess, which are per standard deviation."""

HELD_OUT = 10
"""Every tenth training face is kept out of the fit of the guess and measures it."""


def fit_cells(
    prior: CodePrior,
    embeddings: Tensor,
    groups: npt.NDArray[np.int64],
    features: Tensor,
    seed: int,
    drawn_after: npt.NDArray[np.bool_] | None = None,
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
        features: (N, D) of the faces' contexts, from `priors.hints`.
        seed: of k-means.
        drawn_after: (N,) bool, the faces whose spread within the cells new people have; all if
            None.

    Raises:
        ConfigError: a cell of one or two such faces, whose covariance cannot be shrunk.
    """
    from sklearn.cluster import KMeans
    from sklearn.covariance import LedoitWolf

    prior.centre.data = embeddings.mean(0)
    codes = prior.code(embeddings).numpy().astype(np.float64)
    balance = np.bincount(groups)[groups] ** -0.5
    axes = _axes(codes, features.double().numpy(), groups, balance)
    count = len(prior.mean)
    clusters = KMeans(min(count, len(codes)), n_init=4, random_state=seed)
    cells = clusters.fit_predict(codes @ axes, None, balance)
    chosen = np.ones(len(codes), bool) if drawn_after is None else drawn_after
    if (least := np.bincount(cells[chosen], minlength=count).min()) < 3:
        raise ConfigError(
            f"got {chosen.sum()} faces to draw people after, of which a cell has {least}, expected "
            f"at least 3 in each of {count} cells: train on more faces, or with fewer cells "
            "(--set cells=N)"
        )
    for cell in range(count):
        members = codes[(cells == cell) & chosen]
        factor = np.linalg.cholesky(LedoitWolf().fit(members).covariance_)
        prior.mean.data[cell] = torch.from_numpy(members.mean(0)).float()
        prior.factor.data[cell] = torch.from_numpy(factor).float()
        prior.weight.data[cell] = len(members) / chosen.sum()
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


def fit_guess(
    prior: CodePrior, features: Tensor, cells: Tensor, groups: Tensor, held: Tensor
) -> float:
    """Fits the guess of the cell from the context: a logistic regression on `priors.hints`.

    Every source counts the same, because sources differ most in scenery, which is not to matter.

    Args:
        prior: its `classify` is set.
        features: (N, HINTS) of views of training faces.
        cells: (N,) int64, the cells of their faces.
        groups: (N,) int64, the sources that they come from.
        held: (N,) bool, views that take no part in the fit.

    Returns:
        Share of the views held out whose cell is guessed right, 0..1; NaN if there are none.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-4
    seen, known = (features - mean) / scale, ~held
    weight = 1 / groups.bincount()[groups].float()
    weight /= weight[known].sum()
    layer = nn.Linear(*prior.classify.weight.shape[::-1]).to(features.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        missed = F.cross_entropy(layer(seen[known]), cells[known], reduction="none")
        total = (missed * weight[known]).sum() + DECAY / 2 * layer.weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        right = layer(seen[held]).argmax(1) == cells[held]
        prior.classify.weight.copy_(layer.weight / scale)
        prior.classify.bias.copy_(layer.bias - layer.weight @ (mean / scale))
    return float(right.float().mean())
