"""Face recognisers: aligned face chips in, embeddings out.

`dlib` is dlib's face recognition ResNet and `dlib-densenet:FILE` the DenseNet of dlib's model
collection, both rebuilt in torch from dlib's own files: batched, differentiable, on any device.
`deepface:NAME` runs any recogniser that deepface knows; deepface is imported only when asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anonymize.aligners import similarity, warp
from anonymize.devices import invariant, tuned
from anonymize.dlib_format import Layer, layers
from anonymize.errors import ConfigError, WeightsError
from anonymize.packages import package_file
from anonymize.record import Floats, Pixels

DLIB_RESNET = "models/dlib_face_recognition_resnet_model_v1.dat"
CHIP_SIZE = 150
CHIP = np.array(
    [[47.4, 46.8], [100.8, 46.6], [73.6, 75.9], [49.7, 101.4], [99.4, 100.8]], np.float32
)
"""(5, 2) where dlib's 150 px chips have the eyes, nose tip and mouth corners: x, y in pixels.

dlib aligns by its own 5 (or 68) points; these are the means that five-point detectors find there.
"""


class Embedder(Protocol):
    """Maps face chips to embeddings whose Euclidean distance tells persons apart.

    Attributes:
        name: what reports call it.
    """

    name: str

    def __call__(self, chips: Sequence[Pixels]) -> Floats:
        """(N) chips of (150, 150, 3) uint8 RGB to (N, D) float32."""
        ...


def chip(image: Pixels, landmarks: Floats) -> Pixels:
    """Cuts the (150, 150, 3) chip that dlib's recognisers were trained on out of an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        landmarks: (5, 2) pixels.
    """
    return warp(image, similarity(landmarks, CHIP), CHIP_SIZE, cv2.BORDER_REPLICATE)


def chips(crops: Tensor, landmarks: Tensor) -> Tensor:
    """Differentiable `chip` of crops: (N, 3, S, S) in -1..1 to (N, 3, 150, 150) in 0..255."""
    target = torch.as_tensor(CHIP, device=crops.device).expand(len(crops), 5, 2)
    a = target - target.mean(1, keepdim=True)
    b = landmarks - landmarks.mean(1, keepdim=True)
    spread = (a * a).sum((1, 2))
    cos = (a * b).sum((1, 2)) / spread
    sin = (a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]).sum(1) / spread
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    shift = landmarks.mean(1) - (turn @ target.mean(1)[:, :, None])[:, :, 0]
    axis = torch.arange(float(CHIP_SIZE), device=crops.device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(1, -1, 2)
    points = (grid @ turn.transpose(1, 2) + shift[:, None] + 0.5) * 2 / crops.shape[-1] - 1
    points = points.reshape(-1, CHIP_SIZE, CHIP_SIZE, 2)
    out = F.grid_sample(crops, points, padding_mode="border", align_corners=False)
    return (out + 1) * 127.5


def _tensor(array: Floats | None) -> Tensor:
    if array is None:
        raise WeightsError("a layer without the parameters that the architecture needs")
    return torch.from_numpy(array.copy())


def _conv(layer: Layer, affine: Layer | None = None) -> nn.Conv2d:
    """A convolution; `affine`, the frozen batch norm behind it, is folded into its weights."""
    weight = _tensor(layer.weight)
    bias = None if layer.bias is None else _tensor(layer.bias)
    if affine is not None:
        scale, shift = _tensor(affine.weight), _tensor(affine.bias)
        weight = weight * scale[:, None, None, None]
        bias = shift if bias is None else bias * scale + shift
    out, inp, rows, columns = weight.shape
    conv = nn.Conv2d(inp, out, (rows, columns), layer.stride, layer.pad, bias=bias is not None)
    conv.weight.data = weight
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv


class _Residual(nn.Module):
    def __init__(self, inner: nn.Sequential, down: bool) -> None:
        super().__init__()
        self.inner, self.down = inner, down

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        x = F.avg_pool2d(x, 2, 2) if self.down else x
        # dlib adds maps of different shape: the larger one wins, the smaller counts as zeros there
        channels, rows, columns = (max(a, b) for a, b in zip(x.shape[1:], y.shape[1:], strict=True))
        return F.relu(_padded(x, channels, rows, columns) + _padded(y, channels, rows, columns))


def _padded(x: Tensor, channels: int, rows: int, columns: int) -> Tensor:
    missing = (columns - x.shape[3], rows - x.shape[2], channels - x.shape[1])
    return F.pad(x, (0, missing[0], 0, missing[1], 0, missing[2])) if any(missing) else x


LEVELS = 64, 128, 256
"""Channels of the feature maps that `DlibResNet.levels` returns."""


class DlibResNet(nn.Module):
    """dlib's `dlib_face_recognition_resnet_model_v1` (King 2017): 29 convolutions, 128 numbers.

    Convention: input (N, 3, 150, 150) float RGB in 0..255; output (N, 128), not normalised, made
    for Euclidean distance. dlib counts two faces as one person below 0.6.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        stored = layers(path)
        if [layer.kind for layer in stored].count("con") != 29:
            raise WeightsError(f"{path} is not dlib's face recognition ResNet (29 convolutions)")
        self.mean: Tensor
        self.register_buffer("mean", _tensor(stored[0].weight)[None, :, None, None])
        convs = [
            _conv(layer, stored[index + 1])
            for index, layer in enumerate(stored)
            if layer.kind == "con"
        ]
        self.stem = convs[0]
        self.blocks = nn.Sequential(
            *(
                _Residual(nn.Sequential(first, nn.ReLU(), second), first.stride == (2, 2))
                for first, second in zip(convs[1::2], convs[2::2], strict=True)
            )
        )
        self.head = nn.Parameter(_tensor(stored[-1].weight))
        self.eval().requires_grad_(False)

    def forward(self, chips: Tensor) -> Tensor:
        out: Tensor = self.levels(chips)[-1].float().mean((2, 3)) @ self.head.float()
        return out

    def levels(self, chips: Tensor) -> list[Tensor]:
        """Feature maps (N, C, H, W) after the 6th, the 10th and the last of the 14 blocks."""
        x, maps = ((chips - self.mean) / 256).to(self.head.dtype), []
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        for count, block in enumerate(self.blocks, 1):
            x = block(x)
            if count in (6, 10, len(self.blocks)):
                maps.append(x)
        return maps


def _norm(layer: Layer) -> nn.BatchNorm2d:
    weight = _tensor(layer.weight)
    norm = nn.BatchNorm2d(len(weight), eps=1e-4)
    norm.weight.data, norm.bias.data = weight, _tensor(layer.bias)
    norm.running_mean, norm.running_var = _tensor(layer.mean), _tensor(layer.var)
    return norm


class _Dense(nn.Module):
    def __init__(self, norm1: Layer, conv1: Layer, norm2: Layer, conv2: Layer) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            _norm(norm1), nn.ReLU(), _conv(conv1), _norm(norm2), nn.ReLU(), _conv(conv2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.inner(x)], 1)


class DlibDenseNet(nn.Module):
    """`face_recognition_densenet_model_v1` of dlib's model collection: growth 16, 128 numbers.

    Convention: as `DlibResNet`. Its authors count two faces as one person below 0.55.
    """

    BLOCKS = (3, 6, 12, 8)

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        stored = layers(path)
        start = [layer.kind for layer in stored].index("input")
        parts = [layer for layer in stored if layer.kind in ("con", "bn")]
        inner = sum(layer.kind in ("con", "bn") for layer in stored[:start])
        if inner != 4 * sum(self.BLOCKS):
            raise WeightsError(f"{path} is not dlib's face recognition DenseNet")
        self.mean: Tensor
        self.register_buffer("mean", _tensor(stored[start].weight)[None, :, None, None])
        # dlib's `repeat` stores its layers outermost first, so each block, and the list of
        # blocks, is found back to front, ahead of the stem and the transitions.
        dense, self.blocks = [parts[i : i + 4] for i in range(0, inner, 4)], nn.ModuleList()
        for count in self.BLOCKS:
            block = [_Dense(*dense.pop()) for _ in range(count)]
            self.blocks.append(nn.Sequential(*block))
        rest = parts[inner:]
        self.stem = nn.Sequential(_conv(rest[0]), _norm(rest[1]), nn.ReLU())
        self.transitions = nn.ModuleList(
            nn.Sequential(_norm(rest[i]), nn.ReLU(), _conv(rest[i + 1]), nn.AvgPool2d(2, 2))
            for i in (2, 4, 6)
        )
        self.norm = _norm(rest[8])
        self.head = nn.Parameter(_tensor(stored[-1].weight))
        self.eval().requires_grad_(False)

    def forward(self, chips: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem((chips - self.mean) / 256), 3, 2, 1)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < len(self.transitions):
                x = self.transitions[index](x)
        return F.relu(self.norm(x)).mean((2, 3)) @ self.head


class _DlibEmbedder:
    def __init__(self, name: str, network: nn.Module, device: str, bf16: bool = False) -> None:
        self.name, self.device = name, device
        self.network = network.to(device)
        self._fast = tuned(deepcopy(network), device, bf16)  # `network` keeps its gradients

    def __call__(self, chips: Sequence[Pixels], batch: int = 1) -> Floats:
        """See `Embedder`; `batch` is that of `devices.invariant`."""
        if not chips:
            return np.zeros((0, 128), np.float32)
        pixels = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float()
        out = invariant(self._fast, pixels, device=self.device, batch=batch)
        return np.asarray(out.numpy(), np.float32)


class DlibEmbedder(_DlibEmbedder):
    """dlib's ResNet with the weights of the `face_recognition_models` wheel.

    `FMR` maps a false match rate to the Euclidean distance below which two faces count as one
    person, `TEMPLATE_FMR` to that of a face and a template, the mean of a person's embeddings. Both
    were measured on the non-mated pairs of a set of press photographs by
    `eval/bench/thresholds.py`.

    Args:
        device: a torch device.
        bf16: compute in bfloat16 where the CPU can, which moves distances by less than 0.01.
    """

    FMR: Mapping[float, float] = {1e-2: 0.616, 1e-3: 0.550, 1e-4: 0.496}
    TEMPLATE_FMR: Mapping[float, float] = {5e-2: 0.630, 1e-2: 0.574, 1e-3: 0.513}

    def __init__(self, device: str = "cpu", bf16: bool = False) -> None:
        path = package_file("face_recognition_models", DLIB_RESNET)
        super().__init__("dlib", DlibResNet(path), device, bf16)


class DenseNetEmbedder(_DlibEmbedder):
    """dlib's DenseNet from a file that the user has: `dlib-densenet:FILE`."""

    def __init__(self, path: str, device: str = "cpu") -> None:
        super().__init__("dlib-densenet", DlibDenseNet(path), device)
        self.fingerprint = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


class DeepFaceEmbedder:
    """Any recogniser of the deepface package: `deepface:ArcFace`, `deepface:Facenet512`, ...

    deepface fetches weights on first use and caches them itself. Chips go in as dlib's alignment
    gives them, resized by deepface to what its model takes.
    """

    def __init__(self, model: str, device: str = "cpu") -> None:
        try:
            from deepface import DeepFace
        except ImportError as error:
            raise ConfigError(
                f"deepface is not installed: pip install deepface ({error})"
            ) from None
        self.name, self._model, self._represent = f"deepface:{model}", model, DeepFace.represent
        try:
            DeepFace.build_model(model)
        except Exception as error:  # deepface raises whatever its downloaders and backends raise
            raise WeightsError(f"deepface cannot load {model!r}: {error}") from error

    def __call__(self, chips: Sequence[Pixels]) -> Floats:
        found = [
            self._represent(
                chip[..., ::-1], self._model, detector_backend="skip", enforce_detection=False
            )[0]["embedding"]
            for chip in chips
        ]
        return np.asarray(found, np.float32)
