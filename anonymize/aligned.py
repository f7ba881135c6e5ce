"""Faces of crops that were aligned already: data sets that come without their context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anonymize.detectors import MTCNN
from anonymize.errors import ConfigError
from anonymize.record import Face, Floats, Pixels

ARCFACE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    np.float32,
)
"""(5, 2) landmarks in crops of 112 x 112 pixels, as InsightFace aligns them (Deng et al. 2019)."""

SIDE = 112


class Aligned:
    """One face in every crop, without looking for it: where its data set's alignment put it.

    `arcface` crops are similarity warps to a published template. How MS-Celeb-1M's aligned crops
    were made was not published, so `mscelab` looks for the landmarks and takes the template where
    none are found. Crops of another size or shape than 112 x 112 are taken as scaled.

    Attributes:
        finder: the detector that finds faces in outputs, where nothing is taken for granted.

    Args:
        template: `arcface` or `mscelab`.
        device: a torch device type.
    """

    def __init__(self, template: str = "arcface", device: str = "cpu") -> None:
        if template not in ("arcface", "mscelab"):
            raise ConfigError(f"aligned: got {template!r}, expected arcface or mscelab")
        self.template, self.finder = template, MTCNN(device=device)

    def __call__(self, images: Sequence[Pixels]) -> list[tuple[Face, ...]]:
        expected: list[tuple[Face, ...]] = [(usual(image.shape),) for image in images]
        if self.template == "arcface":
            return expected
        found = self.finder(images)
        return [one or other for one, other in zip(found, expected, strict=True)]


def usual(shape: Sequence[int]) -> Face:
    """The face of an aligned crop of (height, width)."""
    scale = np.array([shape[1] / SIDE, shape[0] / SIDE], np.float32)
    corner = np.array([shape[1] - 1, shape[0] - 1], np.float32)
    box: Floats = np.concatenate([np.zeros(2, np.float32), corner])
    return Face(box, 1.0, (ARCFACE + 0.5) * scale - 0.5)
