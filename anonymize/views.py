"""Differentiable random views: what a published picture may go through before a recogniser."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from anonymize.embedders import chips

LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of brightness in Annex K of ITU-T T.81."""

CHROMA = (
    (17, 18, 24, 47),
    (18, 21, 26, 66),
    (24, 26, 56, 99),
    (47, 66, 99, 99),
)
"""The same of colour; 99 beyond these four rows and columns."""

YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
"""RGB to brightness and two colour differences (JFIF)."""


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (N, C, H, W); `sigma` in pixels, edges replicated."""
    reach = max(1, math.ceil(3 * sigma))
    axis = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
    kernel = torch.exp(-(axis**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(pixels.shape[1], 1, 1, -1)
    padded = F.pad(pixels, (reach,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel, groups=pixels.shape[1])
    return F.conv2d(rows, kernel.transpose(2, 3), groups=pixels.shape[1])


def jpeg(crops: Tensor, quality: int) -> Tensor:
    """What JPEG with halved colour resolution keeps, with a gradient.

    Rounding is that of Shin and Song (2017): exact up to a cube of what is rounded away.

    Args:
        crops: (N, 3, S, S) in -1..1; S a multiple of 16.
        quality: 1..100 as in libjpeg.

    Returns:
        (N, 3, S, S), about -1..1.
    """
    matrix = torch.tensor(YCC, device=crops.device, dtype=crops.dtype)
    planes = torch.einsum("yc,nchw->nyhw", matrix, crops * 127.5)
    chroma = torch.full((8, 8), 99.0)
    chroma[:4, :4] = torch.tensor(CHROMA)
    bright = _quantised(planes[:, :1], torch.tensor(LUMA), quality)
    colour = _quantised(F.avg_pool2d(planes[:, 1:], 2), chroma, quality)
    colour = F.interpolate(colour, scale_factor=2.0, mode="bilinear", align_corners=False)
    planes = torch.cat([bright, colour], 1)
    return torch.einsum("cy,nyhw->nchw", torch.linalg.inv(matrix), planes) / 127.5


def _quantised(planes: Tensor, table: Tensor, quality: int) -> Tensor:
    """(N, C, H, W) after the discrete cosine transform of 8 x 8 blocks, rounding, and back."""
    count, channels, high, wide = planes.shape
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    steps = ((table * scale + 50) / 100).floor().clamp(1, 255).to(planes).reshape(1, 64, 1, 1)
    k, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    wave = torch.cos((2 * x + 1) * k * math.pi / 16) / 2
    wave[0] /= 2**0.5
    basis = torch.einsum("ux,vy->uvxy", wave, wave).reshape(64, 1, 8, 8).to(planes)
    values = F.conv2d(planes.reshape(-1, 1, high, wide), basis, stride=8) / steps
    whole = values.detach().round()
    kept = (whole + (values - whole) ** 3) * steps
    return F.conv_transpose2d(kept, basis, stride=8).reshape(count, channels, high, wide)


def views(crops: Tensor, landmarks: Tensor, rng: torch.Generator) -> Tensor:
    """Chips of crops as somebody else might cut them out of a recoded copy.

    Random scale, shift and tilt of the chip by moved landmarks, then at random reduction, blur and
    JPEG (input diversity, Xie et al. 2019).

    Args:
        crops: (N, 3, S, S) in -1..1; S a multiple of 16.
        landmarks: (N, 5, 2) crop pixels.
        rng: on the CPU, the source of all randomness.

    Returns:
        (N, 3, 150, 150) in 0..255, for dlib's recognisers.
    """
    side, count = crops.shape[-1], len(crops)
    reduce, blur, store, how = torch.rand(4, generator=rng).tolist()
    if reduce < 0.3:
        small = round(side * (0.5 + 0.4 * how))
        crops = F.interpolate(crops, (small, small), mode="bilinear", antialias=True)
        crops = F.interpolate(crops, (side, side), mode="bilinear")
    if blur < 0.35:
        crops = blurred(crops, 0.4 + 1.4 * how)
    if store < 0.35:
        crops = jpeg(crops, int(45 + 50 * how))
    moved = torch.randn(count, 5, 2, generator=rng) * 0.01 * side
    zoom = torch.exp(0.06 * torch.randn(count, 1, 1, generator=rng))
    middle = landmarks.mean(1, keepdim=True)
    return chips(crops, (landmarks - middle) * zoom.to(landmarks) + middle + moved.to(landmarks))
