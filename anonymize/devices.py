"""Runs networks so that a sample's result does not depend on what it is batched with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import TypeVar

import cv2
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from anonymize.errors import ConfigError

A = TypeVar("A")
B = TypeVar("B")
K = TypeVar("K", bound=Hashable)

CUDA_BATCH, CPU_BATCH = 32, 4
"""Samples in a call. On a CPU, that many of what every picture has; what few have goes alone."""


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


def single_threaded() -> None:
    """Lets torch, OpenCV and numpy's linear algebra use one thread each, for the whole process.

    A run's own threads work on different pictures; libraries that start more for a small matrix
    make them wait for each other.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpool_limits(1)


@torch.inference_mode()
def invariant(
    network: Callable[..., Tensor], *inputs: Tensor, device: str, batch: int = 1
) -> Tensor:
    """Applies a network to a batch with the same bytes whatever the batch.

    Convolution kernels choose their order of summation by shape, so the same sample differs in its
    last bits between batch sizes. Here every call has one shape: a batch that is filled up.

    Args:
        network: takes tensors (N, ...) and returns one (N, ...).
        inputs: tensors (N, ...) of equal N.
        device: a torch device type; on a GPU the batch is of `CUDA_BATCH`.
        batch: how many go together on a CPU. It may depend on a sample, never on the others.

    Returns:
        (N, ...) on the CPU.
    """
    size = CUDA_BATCH if device == "cuda" else batch
    parts = []
    for start in range(0, len(inputs[0]), size):
        group = [tensor[start : start + size].to(device) for tensor in inputs]
        count = len(group[0])
        full = [torch.cat([t, t[:1].expand(size - count, *t.shape[1:])]) for t in group]
        parts.append(network(*full)[:count].cpu())
    return torch.cat(parts)


def grouped(
    step: Callable[[list[A], K], Sequence[B]], items: Sequence[A], kinds: Sequence[K]
) -> list[B]:
    """What `step` makes of all items of a kind together, in the order of the items.

    Args:
        step: takes items of one kind and the kind, and returns as many results.
        items: to work on.
        kinds: one for each; what an item itself decides, so that its result does not depend on
            which others there are.
    """
    done = dict[int, B]()
    for kind in dict.fromkeys(kinds):
        which = [index for index, other in enumerate(kinds) if other == kind]
        done |= zip(which, step([items[index] for index in which], kind), strict=True)
    return [done[index] for index in range(len(items))]


def tuned(network: nn.Module, device: str, bf16: bool = False) -> nn.Module:
    """Makes a network ready for inference, in place: moved, frozen, its convolutions packed.

    Args:
        network: what it computes stays the same but for the last bits; gradients are lost on CPUs.
        device: a torch device type.
        bf16: compute in bfloat16 where the CPU can, and let the caller see that by the dtype of
            the weights: for networks that draw, not for those whose numbers are compared with
            thresholds.
    """
    network.to(device).eval().requires_grad_(False)
    if device == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        if bf16 and torch.cpu.get_capabilities().get("avx512_bf16", False):
            network.bfloat16()
        _pack(network)
    return network


def _pack(network: nn.Module) -> None:
    """Replaces convolutions, with the ReLU that follows them in a sequence, by packed ones."""
    before: nn.Module | None = None
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Conv2d):
            child = PackedConv2d(child)
            setattr(network, name, child)
        elif isinstance(before, PackedConv2d) and isinstance(child, nn.ReLU):
            before.after = "relu"
            setattr(network, name, nn.Identity())
        else:
            _pack(child)
        before = child if isinstance(network, nn.Sequential) else None


class PackedConv2d(nn.Module):
    """A convolution for inference on a CPU, its weights kept in the layout that oneDNN computes in.

    A plain convolution brings its weights into that layout at every call, which for one picture
    can take as long as the convolution itself, and torch keeps small ones from oneDNN altogether.
    The layout depends on the input's shape; those of the last few shapes are kept. Kernels are
    chosen by shape alone, so what was kept or forgotten never shows in a result.

    Args:
        plain: the convolution, padded with zeros; inputs have the dtype of its weights.
    """

    SHAPES = 8

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.after = plain.weight.detach(), "none"
        self.bias = None if plain.bias is None else plain.bias.detach()
        shape = (plain.padding, plain.stride, plain.dilation)
        self._options = (*(list(map(int, part)) for part in shape), plain.groups)
        self._packed = lru_cache(self.SHAPES)(self._pack)

    def _pack(self, shape: torch.Size) -> Tensor:
        reorder = torch.ops.mkldnn._reorder_convolution_weight
        packed: Tensor = reorder(self.weight, *self._options, list(shape))
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, D, H', W'), channels last in memory."""
        x = x.contiguous(memory_format=torch.channels_last)
        convolve = torch.ops.mkldnn._convolution_pointwise
        out: Tensor = convolve(
            x, self._packed(x.shape), self.bias, *self._options, self.after, [], ""
        )
        return out
