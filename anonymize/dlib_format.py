"""Reads the layers out of a network file that dlib's `serialize` wrote, without dlib.

dlib writes a network as a stream that carries no layer tree: the C++ type is the tree. Every layer
that owns parameters opens with its own name as a string, so this reader looks for those names and
decodes what follows each. Layout after dlib's `serialize.h`, `dnn/layers.h` and `cuda/tensor.cpp`
(dlib 19):

* integer: a control byte (low nibble = number of bytes, bit 7 = sign), then little-endian bytes
* string: integer length, then the bytes
* float: two integers, value = mantissa * 2 ** exponent
* tensor: integer version 2, integers (samples, channels, rows, columns), then float32 values
* alias tensor: integer version 1 and the same four integers, a view into the layer's parameters
"""

from __future__ import annotations

import bz2
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anonymize.errors import WeightsError

Array = npt.NDArray[np.float32]

_NAMES = rb"con_[45]|affine_|bn_con2|fc_[23]|input_rgb_image(?:_sized)?|add_prev_|avg_pool_2"
_OPENING = re.compile(rb"\x01([\x04-\x16])(" + _NAMES + rb")", re.S)


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer as stored.

    Attributes:
        kind: `con`, `affine`, `bn`, `fc`, `input`, `add_prev` or `avg_pool`.
        weight: con (out, in, rows, columns); fc (in, out); affine and bn (channels,) the scale;
            input (3,) the RGB mean, 0..255.
        bias: con, affine and bn (channels,), or None where the layer has none.
        mean, var: bn only, (channels,) running statistics.
        stride, pad: con only, (vertical, horizontal).
    """

    kind: str
    weight: Array | None = None
    bias: Array | None = None
    mean: Array | None = None
    var: Array | None = None
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)


class _Cursor:
    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def integer(self) -> int:
        control = self.data[self.at]
        count = control & 0x0F
        if control & 0x70 or not 1 <= count <= 8:
            raise WeightsError(f"not an integer at byte {self.at}: is this dlib's file format?")
        value = int.from_bytes(self.data[self.at + 1 : self.at + 1 + count], "little")
        self.at += 1 + count
        return -value if control & 0x80 else value

    def integers(self, count: int) -> list[int]:
        return [self.integer() for _ in range(count)]

    def float(self) -> float:
        mantissa, exponent = self.integers(2)
        return float(mantissa) * 2.0**exponent

    def tensor(self) -> Array:
        if (version := self.integer()) != 2:
            raise WeightsError(f"tensor version {version} at byte {self.at}, expected 2")
        shape = self.integers(4)
        size = int(np.prod(shape))
        values = np.frombuffer(self.data, "<f4", size, self.at).astype(np.float32)
        self.at += 4 * size
        return values.reshape(shape)

    def alias(self) -> tuple[int, ...]:
        self.integer()
        return tuple(self.integers(4))


def _con(cursor: _Cursor) -> Layer:
    flat = cursor.tensor().ravel()
    _, _, _, *stride_pad = cursor.integers(7)
    filters, biases = cursor.alias(), cursor.alias()
    size, channels = int(np.prod(filters)), int(np.prod(biases))
    return Layer(
        "con",
        flat[:size].reshape(filters),
        flat[size : size + channels] if channels else None,
        stride=(stride_pad[0], stride_pad[1]),
        pad=(stride_pad[2], stride_pad[3]),
    )


def _affine(cursor: _Cursor) -> Layer:
    flat = cursor.tensor().ravel()
    half = len(flat) // 2
    return Layer("affine", flat[:half], flat[half:])


def _bn(cursor: _Cursor) -> Layer:
    flat = cursor.tensor().ravel()
    cursor.alias()
    cursor.alias()
    _means, _inverse_deviations, mean, var = (cursor.tensor().ravel() for _ in range(4))
    half = len(flat) // 2
    return Layer("bn", flat[:half], flat[half:], mean, var)


def _fc(cursor: _Cursor) -> Layer:
    outputs, _ = cursor.integers(2)
    weight = cursor.tensor()
    return Layer("fc", weight.reshape(-1, outputs))


def _input(cursor: _Cursor) -> Layer:
    return Layer("input", np.array([cursor.float() for _ in range(3)], np.float32))


_DECODERS = {"con": _con, "affine": _affine, "bn": _bn, "fc": _fc, "input": _input}


def layers(path: str | Path) -> list[Layer]:
    """All parameter-owning layers (and the joins between them), in file order.

    Args:
        path: a `.dat` file, or `.dat.bz2` as dlib's own model collection ships it.

    Raises:
        WeightsError: the file is absent, cut short, or holds no dlib layers.
    """
    try:
        data = Path(path).read_bytes()
        data = bz2.decompress(data) if Path(path).suffix == ".bz2" else data
        found = list(_scan(data))
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise WeightsError(f"cannot read dlib network {path}: {error}") from error
    if not found:
        raise WeightsError(f"{path} holds no dlib layers: expected a file written by dlib")
    return found


def _scan(data: bytes) -> Iterator[Layer]:
    at = 0
    while match := _OPENING.search(data, at):
        at = match.start() + 1
        if match[1][0] != len(match[2]):
            continue
        kind = re.sub(r"(_rgb_image.*|_|_[2345]|_con2)$", "", match[2].decode())
        if kind in _DECODERS:
            cursor = _Cursor(data, match.end())
            yield _DECODERS[kind](cursor)
            at = cursor.at
        else:
            yield Layer(kind)
