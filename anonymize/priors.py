"""The prior over identity codes: coarse cells of people, fitted on the training faces."""

from __future__ import annotations

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
        side = 2 * NEAR + 1  # a square's maximum is that of its rows' maxima
        near = F.max_pool2d(small[:, 3:4], (1, side), 1, (0, NEAR))
        near = F.max_pool2d(near, (side, 1), 1, (NEAR, 0))  # hair, ears, neck: no scenery
        count = near.mean((1, 2, 3), keepdim=True).clamp(min=1e-3)
        pixels = small[:, :3] * near
        level = pixels.mean((1, 2, 3), keepdim=True) / count
        pixels = (pixels - level) * near
        spread = (pixels.square().mean((1, 2, 3), keepdim=True) / count).sqrt()
        x = self.classify[:-1](torch.cat([pixels / (spread + 0.05), small[:, 3:]], 1))
        out: Tensor = self.classify[-1](F.dropout(x, 0.4, self.training))
        return out
