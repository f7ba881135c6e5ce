"""The adversary of the training: a network that tells generated crops from real ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FINE = 6.0
"""By how much fine differences are amplified in what the adversary sees beside the crop."""


class Discriminator(nn.Module):
    """Tells real crops from generated ones at three scales; it sees mask and landmarks.

    Small patches (20 px of 128) show specks, large ones features, the whole its balance. Fine
    differences, in which a soft face differs from a sharp one, are a small part of a crop's values,
    so they are given by themselves, amplified; group normalisation keeps them through the layers.

    Trained by comparison (`relativistic`), with the R1 and R2 gradient penalties (Mescheder et al.
    2018).
    """

    def __init__(self, base: int = 32) -> None:
        super().__init__()
        widths = (base // 2, base, 2 * base, 4 * base, 5 * base)
        down = [nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList([nn.Conv2d(3 + 3 + 4, widths[0], 3, 1, 1), *down])
        self.speck = nn.Conv2d(widths[2], 1, 3, 1, 1)
        self.patch = nn.Conv2d(widths[-1], 1, 3, 1, 1)
        self.squeeze = nn.Conv2d(widths[-1], widths[-1], 4, 2, 1)
        self.whole = nn.Conv2d(widths[-1], 1, 4)
        for layer in self.modules():  # He et al. 2015: keeps the scale through the layers
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, 0.2)
                layer.bias = nn.Parameter(torch.zeros(layer.out_channels))

    def forward(self, crops: Tensor, context: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(N, 3, S, S) and (N, 7, S, S) to logits [(N, P), ...], finest first, and features."""
        soft = F.avg_pool2d(F.pad(crops, (2,) * 4, mode="replicate"), 5, 1)
        x, features = torch.cat([crops, FINE * (crops - soft), context[:, 3:]], 1), []
        for depth, layer in enumerate(self.layers):
            x = layer(x)
            x = F.leaky_relu(F.group_norm(x, 8) if depth else x, 0.2)
            features.append(x)
        whole = self.whole(F.leaky_relu(self.squeeze(x), 0.2))
        logits = [self.speck(features[2]), self.patch(x), whole]
        return [scale.flatten(1) for scale in logits], features[1:]


def relativistic(logits: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Small where logits exceed the others' in the same place, summed over scales.

    A real crop is compared with what was generated into that very crop, so what they share, all of
    the surroundings, cancels (Jolicoeur-Martineau 2019; Huang et al. 2024): an adversary that
    judges each by itself spends hundreds of steps on telling photographs apart.
    """
    pairs = zip(logits, others, strict=True)
    return torch.stack([F.softplus(b.float() - a.float()).mean() for a, b in pairs]).sum()
