"""The adversary of the training: a network that tells generated crops from real ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """Tells real crops from generated ones at three scales; it sees mask and landmarks.

    Small patches (20 px of 128) show specks, large ones features, the whole its balance.

    Trained with the logistic loss and the R1 gradient penalty (Mescheder et al. 2018).
    """

    def __init__(self, base: int = 64) -> None:
        super().__init__()
        widths = (base // 2, base, 2 * base, 4 * base, 5 * base)
        down = [nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths)]
        self.layers = nn.ModuleList([nn.Conv2d(3 + 4, widths[0], 3, 1, 1), *down])
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
        x, features = torch.cat([crops, context[:, 3:]], 1), []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        whole = self.whole(F.leaky_relu(self.squeeze(x), 0.2))
        logits = [self.speck(features[2]), self.patch(x), whole]
        return [scale.flatten(1) for scale in logits], features[1:]


def logistic(logits: Sequence[Tensor], sign: float) -> Tensor:
    """The adversary's loss where its logits should have the sign, summed over scales."""
    return torch.stack([F.softplus(-sign * scale.float()).mean() for scale in logits]).sum()
