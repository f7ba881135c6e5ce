"""The one value that flows through a pipeline: an image, its faces and what may be written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3) uint8, RGB, rows from the top."""

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
"""float32 unless said otherwise; the shape stands where it is used."""


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """One face found in an image.

    Convention: (x, y) in pixels of the upright image, origin at the centre of the top-left pixel;
    left and right as seen in the image.

    Attributes:
        box: (4,) float32, x1, y1, x2, y2.
        score: the detector's confidence, 0..1.
        landmarks: (5, 2) float32: left eye, right eye, nose tip, left and right mouth corner.
        subject: True for the face that the image's identity label speaks of, False for bystanders.
        crop: (S, S, 3) aligned head crop, before `generate` the source's, after it the new face.
        crop_from_image: (2, 3) float32 similarity that takes image pixels to crop pixels.
        away: (S, S) float32 distance of crop pixels from the middle of the region that is replaced:
            below 1 inside.
        embedding: (128,) float32 of the source's face, against which outputs are verified. No
            generator ever gets it.
        logits: (cells,) float32, what a survey thinks the subject's visible context suggests.
    """

    box: Floats
    score: float
    landmarks: Floats
    subject: bool = True
    crop: Pixels | None = None
    crop_from_image: Floats | None = None
    away: Floats | None = None
    embedding: Floats | None = None
    logits: Floats | None = None

    def but(self, **changes: Any) -> Face:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image on its way through the pipeline.

    Attributes:
        key: opaque handle of the image within this run; never a path and never a name.
        identity: opaque handle of the person, or None where the source has no label.
        image: the source picture. No writer ever touches it.
        faces: what detection found, subject first.
        output: the only pixels that a writer may touch.
        encoded: `output` as the file that was verified, or None where nothing was encoded yet.
        withheld: why this image is not published; later stages pass such a record through.
    """

    key: str
    identity: str | None
    image: Pixels
    faces: tuple[Face, ...] = ()
    output: Pixels | None = None
    encoded: bytes | None = None
    withheld: str | None = None

    def but(self, **changes: Any) -> Record:
        """A copy with some fields replaced; a new output drops the file of the old one."""
        if "output" in changes:
            changes.setdefault("encoded", None)
        return replace(self, **changes)

    def withhold(self, reason: str) -> Record:
        """A copy that will not be published: the reason is set and the output is gone."""
        return replace(self, output=None, encoded=None, withheld=reason)
