"""The prior over identity codes: coarse cells of people, fitted on the training faces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from anonymize.embedders import CHIP_SIZE, LEVELS, DlibResNet

CODE = 128
"""Length of an identity code: the recogniser's embedding, centred and normalised."""

CONTEXT = 7
"""Channels of a context: picture without the region (3), region mask (1), landmark maps (3)."""

HINTS = 3 * sum(LEVELS)
"""Numbers that `hints` makes of a context."""


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
        self.classify = nn.Linear(HINTS, cells)

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

    def forward(self, hints: Tensor) -> Tensor:
        """What `hints` saw of contexts (N, HINTS) to (N, cells) logits."""
        out: Tensor = self.classify(hints)
        return out


@torch.no_grad()
def hints(recogniser: DlibResNet, context: Tensor) -> Tensor:
    """What a recogniser's middle layers make of contexts: (N, 7, S, S) to (N, HINTS) float32.

    Averages over the surroundings of the region and over the upper and the lower half of the crop.
    The recogniser has learnt from photographs, and so copes with them better than what could be
    learnt here from pictures of faces that belong to no one.
    """
    pixels = F.interpolate(context[:, :3], (CHIP_SIZE, CHIP_SIZE), mode="bilinear", antialias=True)
    features = []
    for level in recogniser.levels((pixels + 1) * 127.5):
        level = level.float()
        mask = F.interpolate(context[:, 3:4], level.shape[-2:], mode="area")
        near = F.max_pool2d(mask, 3, 1, 1) * (1 - mask) + 1e-3
        features += [
            (level * near).sum((2, 3)) / near.sum((2, 3)),
            F.adaptive_avg_pool2d(level, (2, 1)).flatten(1),
        ]
    return torch.cat(features, 1)
