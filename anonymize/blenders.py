"""Puts a generated head crop back into the photograph, at the photograph's own resolution."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from anonymize.aligners import CROP_SIZE, move, scale_of, shrink, then
from anonymize.errors import Withhold
from anonymize.record import Face, Floats, Pixels
from anonymize.retouch import fitted, textured

FEATHER = 0.14
"""Width of the transition, inside the region, as a share of the region's radius."""


def blend(
    image: Pixels,
    crop: Pixels,
    face: Face,
    *,
    match: bool = True,
    front: Sequence[Face] = (),
) -> Pixels:
    """Replaces the region of one face; every pixel outside the region stays as it is.

    Args:
        image: (H, W, 3) uint8 RGB.
        crop: (S, S, 3) the generated crop; outside the region it repeats the context.
        face: with landmarks, `crop` as it was cut, `crop_from_image` and `away`.
        match: give the new face the colours, edges and grain of its surroundings (`retouch`).
        front: outlined faces of heads in front of this one, which have been replaced and stay.

    Returns:
        A new (H, W, 3) image.
    """
    if face.crop is None:
        raise AssertionError("blend needs an outlined face")
    distance = _distance(face)
    if match:
        assert face.crop_from_image is not None
        marks = move(face.landmarks, face.crop_from_image)
        crop = fitted(crop, face.crop, distance, marks)
    part, shifted, far = _placed(image, face, distance)
    old, share = image[part], _share(far)
    for other in front:
        nearer = _seen_from(part, other, _distance(other))[1]
        share *= 1 - _share(nearer + FEATHER)  # beyond its feather, which lets this face through
    new = _pulled(crop, shifted, old.shape[1::-1])
    if match:
        new = textured(new, old, far, len(crop) / CROP_SIZE / scale_of(shifted))
    out = image.copy()
    new -= old
    new *= share  # nothing is added where the share is 0
    new += old
    out[part] = np.rint(new, out=new)
    return out


def overlay(image: Pixels, crop: Pixels, face: Face) -> Pixels:
    """Adds what was changed in the crop to the region of one face, at the image's resolution.

    The photograph keeps its detail, which a crop resampled back would not have, and no value moves
    by more than the greatest change in the crop.

    Args:
        image: (H, W, 3) uint8 RGB.
        crop: (S, S, 3) the changed crop.
        face: with landmarks, `crop` as it was cut, `crop_from_image` and `away`.

    Returns:
        A new (H, W, 3) image.
    """
    if face.crop is None:
        raise AssertionError("overlay needs an outlined face")
    part, shifted, far = _placed(image, face, _distance(face))
    change = crop.astype(np.float32) - face.crop
    scale, bound = scale_of(shifted), np.abs(change).max()
    if scale > 1.7:  # as many crop pixels fall on one of the image
        change = cv2.GaussianBlur(change, (0, 0), 0.4 * scale)
    old = image[part]
    # linear: it stays between its neighbours, where cubic interpolation overshoots
    change = _share(far) * _pull(change, shifted, old.shape[1::-1], cv2.INTER_LINEAR, 0.0)
    out = image.copy()
    out[part] = np.clip(old + np.clip(np.rint(change), -bound, bound), 0, 255)
    return out


def _placed(
    image: Pixels, face: Face, distance: Floats
) -> tuple[tuple[slice, slice], Floats, Floats]:
    """Where a crop lies: rows and columns, the matrix from there to the crop, `distance` there.

    Raises:
        Withhold: outside the picture.
    """
    if face.crop_from_image is None:
        raise AssertionError("an aligned face has a matrix")
    x1, y1, x2, y2 = _bounds(image, face.crop_from_image, len(distance))
    if x1 >= x2 or y1 >= y2:
        raise Withhold("face lies outside the picture")
    part = (slice(y1, y2), slice(x1, x2))
    return part, *_seen_from(part, face, distance)


def _seen_from(part: tuple[slice, slice], face: Face, distance: Floats) -> tuple[Floats, Floats]:
    """For a part of an image, the matrix from there to a face's crop, and `distance` there."""
    assert face.crop_from_image is not None
    y, x = part
    shift = np.array([[1, 0, x.start], [0, 1, y.start]], np.float32)
    shifted = then(shift, face.crop_from_image)
    size = (x.stop - x.start, y.stop - y.start)
    return shifted, _pull(distance, shifted, size, cv2.INTER_LINEAR, 2.0)


def _share(far: Floats) -> Floats:
    """How much of the new pixels to take, (H, W, 1) in 0..1: a smooth step inside the region."""
    share = np.clip((1 - far) / FEATHER, 0, 1)
    return np.asarray((share * share * (3 - 2 * share))[..., None], np.float32)


def _distance(face: Face) -> Floats:
    """`face.away`, with a rim of the crop counted as outside."""
    assert face.away is not None
    edge = np.arange(len(face.away), dtype=np.float32)
    edge = np.minimum(edge, edge[::-1])
    rim = 1 - np.minimum.outer(edge, edge) / (0.3 * len(edge))  # 1 at the border, falling inwards
    return np.asarray(np.maximum(face.away, rim), np.float32)


def _bounds(image: Pixels, matrix: Floats, size: int) -> tuple[int, int, int, int]:
    """The crop's bounding box in the image, cut at its borders."""
    back = cv2.invertAffineTransform(matrix)
    corners = move(np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float32), back)
    low = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, image.shape[1::-1])
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _pulled(crop: Pixels, matrix: Floats, shape: tuple[int, int]) -> Floats:
    """The crop resampled to (columns, rows) image pixels, smooth when enlarged, never aliased."""
    scale = scale_of(matrix)
    if scale > 1.7:
        crop, back = shrink(crop, 1.25 / scale)
        matrix = then(matrix, cv2.invertAffineTransform(back))
    pulled = _pull(crop.astype(np.float32), matrix, shape, cv2.INTER_CUBIC, None)
    return np.asarray(np.clip(pulled, 0, 255), np.float32)


def _pull(
    field: Floats, matrix: Floats, shape: tuple[int, int], method: int, outside: float | None
) -> Floats:
    border = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    flags = method | cv2.WARP_INVERSE_MAP
    value = (outside or 0.0,) * 4
    pulled = cv2.warpAffine(field, matrix, shape, flags=flags, borderMode=border, borderValue=value)
    return np.asarray(pulled, np.float32)
