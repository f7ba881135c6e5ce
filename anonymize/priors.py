"""The prior over identity codes: coarse cells of people, fitted on the training faces."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

CODE = 128
"""Length of an identity code: the recogniser's embedding, centred and normalised."""

CONTEXT = 7
"""Channels of a context: picture without the region (3), region mask (1), landmark maps (3)."""

NEAR = 9
"""How far around the region the guess of the cell looks, in 64ths of the crop: scenery tells more
about a data set than about a person."""

HELD_OUT = 10
"""Every tenth training face is kept out of the classifier's fit and measures it."""


class CodePrior(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A prior over identity codes in a few coarse cells, and a guess of the cell from the context.

    Each cell is a Gaussian over codes; its mean and factor were fitted on the training faces. The
    classifier sees the context only, never the removed face, so a code that follows it tells
    nothing that the published picture does not show anyway.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, cells: int = 8) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(CODE), requires_grad=False)
        self.mean = nn.Parameter(torch.zeros(cells, CODE), requires_grad=False)
        self.factor = nn.Parameter(torch.zeros(cells, CODE, CODE), requires_grad=False)
        self.weight = nn.Parameter(torch.full((cells,), 1 / cells), requires_grad=False)
        self.classify = nn.Sequential(
            nn.Conv2d(CONTEXT, 24, 5, 2, 2),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, 2, 1),
            nn.GroupNorm(8, 48),
            nn.SiLU(),
            nn.Conv2d(48, 96, 3, 2, 1),
            nn.GroupNorm(8, 96),
            nn.SiLU(),
            nn.Conv2d(96, 96, 3, 2, 1),
            nn.GroupNorm(8, 96),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(96 * 16, cells),
        )

    def code(self, embeddings: Tensor) -> Tensor:
        """(N, 128) recogniser embeddings to unit codes: centred, because dlib's share a mean."""
        return F.normalize(embeddings - self.centre, dim=1)

    def draw(self, cells: Tensor, normal: Tensor) -> Tensor:
        """Codes of new people.

        Args:
            cells: (N,) int64 cell indices.
            normal: (N, 128) standard normal numbers.

        Returns:
            (N, 128) unit codes.
        """
        spread = (self.factor[cells] @ normal[:, :, None])[:, :, 0]
        return F.normalize(self.mean[cells] + spread, dim=1)

    def forward(self, context: Tensor) -> Tensor:
        """(N, 7, S, S) contexts to (N, cells) logits."""
        small = F.interpolate(context, (64, 64), mode="area")
        near = F.max_pool2d(small[:, 3:4], 2 * NEAR + 1, 1, NEAR)  # hair, ears, neck: no scenery
        count = near.mean((1, 2, 3), keepdim=True).clamp(min=1e-3)
        pixels = small[:, :3] * near
        level = pixels.mean((1, 2, 3), keepdim=True) / count
        pixels = (pixels - level) * near
        spread = (pixels.square().mean((1, 2, 3), keepdim=True) / count).sqrt()
        x = self.classify[:-1](torch.cat([pixels / (spread + 0.05), small[:, 3:]], 1))
        out: Tensor = self.classify[-1](F.dropout(x, 0.4, self.training))
        return out


def fit_cells(prior: CodePrior, embeddings: Tensor, seed: int) -> Tensor:
    """Fits centre and cells to recogniser embeddings (N, 128); returns each one's cell (N,).

    Cells are k-means clusters of the codes; each becomes a Gaussian with a shrunk covariance
    (Ledoit and Wolf 2004).
    """
    from sklearn.cluster import KMeans
    from sklearn.covariance import LedoitWolf

    prior.centre.data = embeddings.mean(0)
    codes = prior.code(embeddings).numpy().astype(np.float64)
    count = len(prior.mean)
    cells = KMeans(count, n_init=4, random_state=seed).fit_predict(codes)
    for cell in range(count):
        members = codes[cells == cell]
        factor = np.linalg.cholesky(LedoitWolf().fit(members).covariance_)
        prior.mean.data[cell] = torch.from_numpy(members.mean(0)).float()
        prior.factor.data[cell] = torch.from_numpy(factor).float()
        prior.weight.data[cell] = len(members) / len(codes)
    return torch.from_numpy(cells).long()


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
