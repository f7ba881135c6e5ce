"""Runs small ONNX graphs in torch: on any device, for any picture size, normalisation folded in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from anonymize.errors import WeightsError


class Graph(nn.Module):
    """A graph of convolutions, batch normalisations, ReLUs, sums and sigmoids.

    What follows a convolution and is its only use becomes one step with it.

    Args:
        path: an ONNX file with one input.

    Raises:
        WeightsError: the graph has a node of another kind.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        graph = onnx.load(str(path)).graph
        self._weights = {
            t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer
        }
        self.input = next(i.name for i in graph.input if i.name not in self._weights)
        self.outputs = [output.name for output in graph.output]
        self.uses = [name for node in graph.node for name in node.input] + self.outputs
        self.layers = nn.ModuleList()
        self.wires: list[tuple[list[str], str]] = []
        for node in graph.node:
            self._add(node)
        del self._weights

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) to the graph's outputs."""
        values = {self.input: x}
        for (inputs, output), layer in zip(self.wires, self.layers, strict=True):
            values[output] = layer(*(values[name] for name in inputs))
        return [values[name] for name in self.outputs]

    def _add(self, node: Any) -> None:
        kind, output = node.op_type, node.output[0]
        inputs = [name for name in node.input if name not in self._weights]
        weights = [self._weights[name] for name in node.input if name in self._weights]
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if kind in ("Conv", "ConvTranspose"):
            layer: nn.Module = nn.Sequential(_convolution(kind, weights, options))
        elif kind in ("BatchNormalization", "Relu") and self._ends_with(inputs):
            layer = self.layers[-1]
            _extend(layer, kind, weights, options)
            self.wires[-1] = self.wires[-1][0], output
            return
        elif kind == "Add":
            layer = _Sum()
        elif kind == "Sigmoid":
            layer = nn.Sigmoid()
        else:
            raise WeightsError(f"a node {kind!r} after {inputs} is not known: another version?")
        self.layers.append(layer)
        self.wires.append((inputs, output))

    def _ends_with(self, inputs: list[str]) -> bool:
        """Whether the last step is a convolution whose result is used for `inputs` only."""
        last = self.wires[-1][1] if self.wires else None
        convolves = bool(self.layers) and isinstance(self.layers[-1], nn.Sequential)
        return convolves and inputs == [last] and self.uses.count(str(last)) == 1


class _Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


def _convolution(kind: str, weights: list[Tensor], options: dict[str, Any]) -> nn.Module:
    weight, groups = weights[0], options.get("group", 1)
    sides, padding = options["kernel_shape"], tuple(options.get("pads", [0, 0])[:2])
    stride, dilation = options.get("strides", (1, 1)), options.get("dilations", (1, 1))
    shape = {"kernel_size": sides, "stride": stride, "padding": padding, "dilation": dilation}
    layer: nn.Conv2d | nn.ConvTranspose2d
    if kind == "Conv":
        layer = nn.Conv2d(weight.shape[1] * groups, len(weight), groups=groups, **shape)
    else:
        layer = nn.ConvTranspose2d(len(weight), weight.shape[1] * groups, groups=groups, **shape)
    layer.weight.data = weight
    layer.bias = nn.Parameter(weights[1]) if len(weights) > 1 else None
    return layer


def _extend(layer: nn.Module, kind: str, weights: list[Tensor], options: dict[str, Any]) -> None:
    """Puts a batch normalisation into, or a ReLU behind, the convolution of a sequence."""
    assert isinstance(layer, nn.Sequential)
    if kind == "Relu":
        layer.append(nn.ReLU())
        return
    norm = nn.BatchNorm2d(len(weights[0]), eps=options.get("epsilon", 1e-5))
    norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var = weights
    convolution = layer[0].eval()
    assert isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d)
    transposed = isinstance(convolution, nn.ConvTranspose2d)
    layer[0] = fuse_conv_bn_eval(convolution, norm.eval(), transposed)
