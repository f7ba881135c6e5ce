"""Runs networks so that a sample's result does not depend on what it is batched with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anonymize.errors import ConfigError

CUDA_BATCH = 32


def choose(name: str = "auto") -> str:
    """A torch device type: `auto` takes CUDA where there is one.

    Raises:
        ConfigError: CUDA is asked for and absent.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ConfigError(f"unknown device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for, but torch finds none: use --device cpu")
    return name


@torch.inference_mode()
def invariant(network: Callable[..., Tensor], *inputs: Tensor, device: str) -> Tensor:
    """Applies a network to a batch with the same bytes whatever the batch.

    Convolution kernels choose their order of summation by shape, so the same sample differs in its
    last bits between batch sizes. Here every call has one shape: a single sample on the CPU (where
    threads work on different images), a batch filled up to `CUDA_BATCH` on a GPU.

    Args:
        network: takes tensors (N, ...) and returns one (N, ...).
        inputs: tensors (N, ...) of equal N.
        device: a torch device type.

    Returns:
        (N, ...) on the CPU.
    """
    size = CUDA_BATCH if device == "cuda" else 1
    parts = []
    for start in range(0, len(inputs[0]), size):
        group = [tensor[start : start + size].to(device) for tensor in inputs]
        count = len(group[0])
        full = [torch.cat([t, t[:1].expand(size - count, *t.shape[1:])]) for t in group]
        parts.append(network(*full)[:count].cpu())
    return torch.cat(parts)
