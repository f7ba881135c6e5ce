"""Networks made ready for inference compute what they computed before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from anonymize import cascade
from anonymize.cascade import pyramid
from anonymize.devices import PackedConv2d, tuned
from anonymize.errors import WeightsError
from anonymize.onnx_graph import Graph


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    "plain",
    [
        nn.Conv2d(5, 7, 3),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        nn.Conv2d(4, 6, 1, bias=False),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
    ],
)
def test_packed_convolutions_equal_plain_ones(plain: nn.Conv2d) -> None:
    tuned_pair = tuned(nn.Sequential(plain, nn.ReLU()), "cpu")
    for side in (9, 14):
        x = torch.randn(1, plain.in_channels, side, side)
        expected = F.conv2d(
            *(x, plain.weight, plain.bias, plain.stride),
            *(plain.padding, plain.dilation, plain.groups),
        ).relu()
        assert torch.allclose(tuned_pair(x), expected, atol=1e-5)


def test_bfloat16_stays_within_its_precision() -> None:
    plain, x = nn.Conv2d(64, 32, 3, padding=1), torch.randn(1, 64, 16, 16)
    expected = plain(x).detach()
    network = tuned(nn.Sequential(plain), "cpu", bf16=True)
    dtype = network[0].weight.dtype  # type: ignore[index, union-attr]
    found = network(x.to(dtype))
    assert found.dtype == dtype
    found = found.float()
    # factors and result of 8 bits each; errors of 576 products partly cancel
    assert torch.allclose(found, expected, atol=0.01 * float(expected.std()) + 1e-6, rtol=0.01)


def test_shapes_met_in_between_do_not_change_a_result() -> None:
    packed, x = PackedConv2d(nn.Conv2d(16, 64, 1)), torch.randn(1, 16, 10, 10)
    first = packed(x)
    for side in range(1, 2 * PackedConv2d.SHAPES):
        packed(torch.randn(1, 16, side, side))
    assert packed(x).numpy().tobytes() == first.numpy().tobytes()


def test_only_a_relu_behind_a_convolution_is_merged() -> None:
    parts, x = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Softplus(), nn.ReLU()), torch.randn(1, 2, 4, 4)
    expected = parts(x).detach()
    assert float(expected.min()) < np.log(2)  # what a ReLU before the softplus would not leave
    assert torch.allclose(tuned(parts, "cpu")(x), expected, atol=1e-6)


sizes = st.integers(1, 400)


@given(sizes, sizes, st.floats(0.2, 1))
def test_levels_of_the_pyramid_lie_apart_on_their_canvas(
    rows: int, columns: int, scale: float
) -> None:
    levels, shape = pyramid(rows, columns, scale)
    canvas = torch.zeros(shape, dtype=torch.int64)
    for level in levels:
        part = level.on(canvas)
        assert part.shape == (level.rows, level.columns)
        assert level.top % 2 == level.left % 2 == 0
        part += 1
    assert not (canvas > 1).any()
    assert bool(levels) == (min(rows, columns) * scale >= cascade.CELL)


def test_a_level_is_searched_as_if_it_were_alone() -> None:
    """Each level's answers on the shared canvas are those of the network on that level only."""
    stem, rest = cascade.proposer("cpu")
    levels, shape = pyramid(91, 77, 0.6)
    canvas = torch.randn(1, 3, *shape)
    assert {level.rows % 2 for level in levels} == {0, 1}
    x = stem(canvas)
    for level in levels:
        level.close(x)
    maps = rest(F.max_pool2d(x, 2))
    for level in levels:
        alone = rest(F.max_pool2d(stem(level.on(canvas)), 2, ceil_mode=True))
        top, left = level.top // 2, level.left // 2
        shared = maps[..., top : top + alone.shape[2], left : left + alone.shape[3]]
        assert torch.allclose(shared, alone, atol=1e-5)


def saved(path: Path, *nodes: onnx.NodeProto) -> Path:
    """A graph over (1, 2, 4, 4) whose last node makes `y`; weights w, scale, shift, mean, var."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((2, 2, 1, 1)), "scale": [2, 3], "shift": [0.5, 1]}
    arrays |= {"mean": [0.1, 0.2], "var": [1.5, 0.5]}
    weights = [
        onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
        for name, array in arrays.items()
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in ("x", "y")]
    graph = helper.make_graph(list(nodes), "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph), str(path))
    return path


def test_normalisation_is_folded_and_forks_are_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], kernel_shape=[1, 1]),
        helper.make_node(
            "BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], epsilon=0.1
        ),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Add", ["c", "x"], ["d"]),
        helper.make_node("Sigmoid", ["d"], ["y"]),
    ]
    x = torch.randn(1, 2, 4, 4)
    (y,) = tuned(Graph(saved(tmp_path / "g.onnx", *nodes)), "cpu")(x)
    weights = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy())
        for t in onnx.load(str(tmp_path / "g.onnx")).graph.initializer
    }
    a = F.conv2d(x, weights["w"])
    names = ("mean", "var", "scale", "shift")
    b = F.batch_norm(a, *(weights[name] for name in names), eps=0.1)
    assert torch.allclose(y, (b.relu() + x).sigmoid(), atol=1e-5)


@pytest.mark.parametrize("kind", ["Tanh", "Relu"])
def test_graphs_of_other_nodes_are_refused(tmp_path: Path, kind: str) -> None:
    """Also a ReLU that does not follow a convolution."""
    path = saved(tmp_path / "g.onnx", helper.make_node(kind, ["x"], ["y"]))
    with pytest.raises(WeightsError, match=kind):
        Graph(path)
