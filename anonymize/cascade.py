"""MTCNN's three networks, out of the `mtcnn` wheel, and the pyramid that the first one looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anonymize.devices import tuned
from anonymize.packages import package_file

CELL = 12
"""Side of what the first network looks at, in pixels of a level."""

LANES = 16
"""Numbers in a vector of AVX-512."""

FACTOR = 0.709
"""From one level's scale to the next."""


@dataclass(frozen=True, slots=True)
class Level:
    """A picture at one scale, and where it lies on the canvas: top and left are even."""

    scale: float
    rows: int
    columns: int
    top: int
    left: int

    def on(self, canvas: Tensor) -> Tensor:
        """(..., H, W) to the view of this level's (..., rows, columns)."""
        inside = canvas[..., self.top : self.top + self.rows, :]
        return inside[..., self.left : self.left + self.columns]

    def close(self, x: Tensor) -> None:
        """Repeats an odd last pixel before it is pooled, so that nothing else is pooled with it.

        Args:
            x: (1, C, H - 2, W - 2) what a convolution without padding made of the canvas.
        """
        rows, columns = (side - 2 + side % 2 for side in (self.rows, self.columns))
        inside = self.on(x)[..., :rows, :columns]
        if self.rows % 2:
            inside[..., -1, :] = inside[..., -2, :]
        if self.columns % 2:
            inside[..., -1] = inside[..., -2]


@lru_cache(64)
def pyramid(rows: int, columns: int, scale: float) -> tuple[tuple[Level, ...], tuple[int, int]]:
    """Lays a picture out at all its scales on one canvas, so that one pass searches them all.

    Args:
        rows: of the picture.
        columns: of the picture.
        scale: of the largest level.

    Returns:
        The levels, largest first, and the canvas' rows and columns.
    """
    levels: list[Level] = []
    shelves: list[tuple[int, int]] = []  # top, columns taken
    wide = high = 0
    while min(rows, columns) * scale >= CELL:
        down, across = math.ceil(rows * scale), math.ceil(columns * scale)
        wide = max(wide, across + across % 2)
        fits = [index for index, (_, taken) in enumerate(shelves) if taken + across <= wide]
        if not fits:  # levels get smaller: a shelf is as high as the first on it
            fits = [len(shelves)]
            shelves.append((high, 0))
            high += down + down % 2
        top, left = shelves[fits[0]]
        levels.append(Level(scale, down, across, top, left))
        shelves[fits[0]] = top, left + across + across % 2
        scale *= FACTOR
    return tuple(levels), (high, wide)


class Flat(nn.Module):
    """Flattens in the order of the original networks: columns, rows, channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, W * H * C)."""
        return x.permute(0, 3, 2, 1).flatten(1)


def proposer(device: str) -> tuple[nn.Module, nn.Module]:
    """P-Net, before and after its pooling: (1, 3, H, W) to (1, 6, (H - 10) / 2, (W - 10) / 2).

    The answers are shifts of the corners (4) and the logits of no face and face.
    """
    network = _network("pnet", [nn.Identity(), nn.Identity(), nn.Identity()])
    tuned(network, device)
    return network[:2], network[2:]


def refiner(device: str) -> nn.Module:
    """R-Net: (N, 3, 24, 24) to (N, 6), as `proposer`."""
    between = [nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2), Flat(), nn.Identity()]
    return tuned(_network("rnet", between), device)


def finisher(device: str, differentiable: bool = False) -> nn.Module:
    """O-Net: (N, 3, 48, 48) to (N, 16): shifts (4), x (5) and y (5) of landmarks, logits (2).

    Args:
        device: a torch device type.
        differentiable: by its inputs, which on CPUs takes longer.
    """
    pools = [nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(3, 2), nn.MaxPool2d(2)]
    network = _network("onet", [*pools, Flat(), nn.Identity()])
    return network.to(device).eval() if differentiable else tuned(network, device)


def _network(name: str, between: Sequence[nn.Module]) -> nn.Sequential:
    """Builds a network from its file; the layers that answer become one, in the file's order.

    Args:
        name: of the file.
        between: what follows each inner layer.
    """
    stored = joblib.load(package_file("mtcnn", f"assets/weights/{name}.lz4"))
    tensors = [torch.from_numpy(np.array(array, np.float32)) for array in stored]
    _widen(tensors)
    parts: list[nn.Module] = []
    for index, after in enumerate(between):
        weight, bias, slope = tensors[3 * index : 3 * index + 3]
        prelu = nn.PReLU(slope.numel())
        prelu.weight.data = slope.flatten()
        parts += [_layer(weight, bias), prelu, after]
    answers = tensors[3 * len(between) :]
    parts.append(_layer(torch.cat(answers[::2], -1), torch.cat(answers[1::2])))
    return nn.Sequential(*parts).requires_grad_(False)


def _widen(tensors: list[Tensor]) -> None:
    """Gives the first layer channels of zeros, up to a multiple of what CPUs compute at once.

    Others have such a number already. Pooling P-Net's 10 channels would take longer than 16.
    """
    more = -tensors[0].shape[3] % LANES
    tensors[:3] = (F.pad(tensor, (0, more)) for tensor in tensors[:3])
    tensors[3] = F.pad(tensors[3], (0, 0, 0, more))


def _layer(weight: Tensor, bias: Tensor) -> nn.Module:
    """A layer of Keras' arrays, (rows, columns, in, out) or (in, out), as torch wants them."""
    layer: nn.Conv2d | nn.Linear
    if weight.dim() == 4:
        rows, columns, inputs, outputs = weight.shape
        layer = nn.Conv2d(inputs, outputs, (rows, columns))
        layer.weight.data = weight.permute(3, 2, 0, 1).contiguous()
    else:
        layer = nn.Linear(*weight.shape)
        layer.weight.data = weight.T.contiguous()
    layer.bias.data = bias  # type: ignore[union-attr]
    return layer
