"""Geometry of the head crop: where the face sits in it, and which part of it is replaced."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from anonymize.errors import ConfigError, Withhold
from anonymize.record import Face, Floats, Pixels

ARCFACE = np.array(
    [[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]], np.float32
)
"""(5, 2) the 112 px template of ArcFace (Deng et al. 2019): eyes, nose tip, mouth corners."""

CROP_SIZE = 128
"""Side of the head crop in pixels that templates below speak of."""

TEMPLATE = ((ARCFACE - ARCFACE.mean(0)) * (0.68 * 128 / 112) + (64, 72)).astype(np.float32)
"""(5, 2) landmarks in the 128 px head crop: smaller than ArcFace's so that hair, ears and chin
fit in, because what is replaced reaches that far."""

REGIONS = {"face": (1.2, 1.1, 1.28), "head": (1.72, 1.25, 1.75)}
"""How far the replaced region reaches: up from the eyes and down from the mouth in units of the
eye-to-mouth distance, and to each side in units of the eye distance. Where something covers the
skin, `face` ends earlier (`outlines`)."""

NEAR, FAR = 0.6, 1.0
"""How much further the region reaches on the cheek that a turned head shows, and how much less far
on the other, in units of the nose tip's way from the middle of the face."""

SIGHT, WALL = 0.06, 190
"""How far beyond the region a generator looks, as a share of the crop's side, and the grey level of
the wall that it sees from half as far again on."""


def similarity(source: Floats, target: Floats) -> Floats:
    """Least-squares similarity (rotation, one scale, shift) between point sets (Umeyama 1991).

    Args:
        source: (K, 2) points.
        target: (K, 2) where they should go.

    Returns:
        (2, 3) float32 matrix that takes source points to target points.

    Raises:
        Withhold: all source points coincide.
    """
    a, b = source - source.mean(0), target - target.mean(0)
    spread = float((a * a).sum())
    if spread < 1e-6:
        raise Withhold("landmarks coincide")
    cos = float((a * b).sum()) / spread
    sin = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / spread
    turn = np.array([[cos, -sin], [sin, cos]])
    return np.hstack([turn, (target.mean(0) - turn @ source.mean(0))[:, None]]).astype(np.float32)


def scale_of(matrix: Floats) -> float:
    """By how much a (2, 3) similarity enlarges."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))


def move(points: Floats, matrix: Floats) -> Floats:
    """Applies a (2, 3) affine matrix to (K, 2) points."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def upright(landmarks: Floats, size: int) -> tuple[Floats, Floats]:
    """How far crop pixels lie aside of the eyes, and above them along the face.

    Args:
        landmarks: (5, 2) crop pixels.
        size: side of the crop.

    Returns:
        Two (size, size) float32, in units of the way from eyes to mouth: at the mouth the second
        is -1.
    """
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    length = max(float(np.linalg.norm(mouth - eyes)), 1.0)
    up = (eyes - mouth) / length
    axis = np.arange(size, dtype=np.float32)
    x, y = axis - eyes[0], axis[:, None] - eyes[1]
    wide, high = y * up[0] - x * up[1], x * up[0] + y * up[1]
    return np.asarray(wide / length, np.float32), np.asarray(high / length, np.float32)


def align(image: Pixels, face: Face, size: int = CROP_SIZE) -> Face:
    """Cuts the upright head crop of a face, edges mirrored where it leaves the image.

    Args:
        image: (H, W, 3) uint8 RGB.
        face: with landmarks.
        size: side of the crop in pixels.

    Returns:
        The face with `crop` (size, size, 3) and `crop_from_image` set.
    """
    matrix = similarity(face.landmarks, TEMPLATE * (size / CROP_SIZE))
    return face.but(crop=warp(image, matrix, size), crop_from_image=matrix)


def warp(image: Pixels, matrix: Floats, size: int, border: int = cv2.BORDER_REFLECT_101) -> Pixels:
    """Resamples an image into a (size, size) crop without aliasing.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3) image pixels to crop pixels.
        size: side of the crop.
        border: one of OpenCV's, for what lies beyond the image.
    """
    scale = scale_of(matrix)
    if scale < 0.6:  # bilinear sampling reads 2 x 2 pixels: shrink by area first
        image, shrunk = shrink(image, 1.25 * scale)
        matrix = then(shrunk, matrix)
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), borderMode=border), np.uint8)


def shrink(image: Pixels, scale: float) -> tuple[Pixels, Floats]:
    """Shrinks by area averaging; returns the image and the (2, 3) matrix back to the original."""
    height, width = image.shape[:2]
    new = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(cv2.resize(image, new, interpolation=cv2.INTER_AREA), np.uint8)
    ratio = np.array([width / new[0], height / new[1]])
    return small, np.hstack([np.diag(ratio), (ratio[:, None] - 1) / 2]).astype(np.float32)


def then(first: Floats, second: Floats) -> Floats:
    """The (2, 3) matrix of applying `first`, then `second`."""
    shift = second[:, :2] @ first[:, 2:] + second[:, 2:]
    return np.hstack([second[:, :2] @ first[:, :2], shift]).astype(np.float32)


def radius(landmarks: Floats, size: int, region: str = "face") -> Floats:
    """Distance of every crop pixel from the middle of the region: below 1 inside, 0 in the middle.

    The region is a superellipse along the eye-mouth axis. As the head turns, it reaches further on
    the side away from the nose tip, where a cheek comes into view, and less far on the other, where
    a cheek goes out of it: what lies behind the head would have to be made up there.

    Args:
        landmarks: (5, 2) crop pixels.
        size: side of the crop.
        region: a key of `REGIONS`, or `all` for the whole crop.

    Returns:
        (size, size) float32.
    """
    axis = np.arange(size, dtype=np.float32)
    distance = reach(axis, axis[:, None], landmarks, size, region)
    return np.asarray(np.broadcast_to(distance, (size, size)), np.float32)


def secluded(crop: Pixels, mask: npt.NDArray[np.bool_]) -> Pixels:
    """The crop with a plain wall in place of what is not next to the region.

    A generator that learnt from portraits takes other surroundings than theirs for light, hair or
    headgear, and draws patches of it.

    Args:
        crop: (S, S, 3) uint8 RGB.
        mask: (S, S), True in the region; a region that is everything changes nothing.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    if mask.all():
        return crop
    away = cv2.distanceTransform(np.uint8(~mask), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    share = np.clip(2 * away / (SIGHT * len(crop)) - 2, 0, 1)[..., None]
    return np.asarray(np.rint(crop + share * (WALL - crop.astype(np.float32))), np.uint8)


def reach(x: Floats, y: Floats, landmarks: Floats, size: int, region: str = "face") -> Floats:
    """As `radius`, at crop pixels of one's own choice: `x` and `y` of shapes that broadcast."""
    if region == "all":
        return np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)
    return frame(landmarks, size, region).distance(x, y)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A superellipse on a head crop.

    Attributes:
        middle: (2,) crop pixels.
        across, along: (2,) its axes: unit vectors to one ear and to the chin.
        wide, high: its half axes in pixels.
    """

    middle: Floats
    across: Floats
    along: Floats
    wide: float
    high: float

    def distance(self, x: Floats, y: Floats) -> Floats:
        """From the middle (0) to the border (1) and beyond, float32, at crop pixels."""
        aside, down = self._upright(x, y)
        wide, high = np.abs(aside) / self.wide, np.abs(down) / self.high
        return np.asarray((wide**2.4 + high**2.4) ** (1 / 2.4), np.float32)

    def turn(self, x: Floats, y: Floats) -> Floats:
        """Angle of crop pixels about the middle, 0 to 2 pi: from `across` by way of `along`."""
        aside, down = self._upright(x, y)
        return np.asarray(np.arctan2(down, aside) % (2 * np.pi), np.float32)

    def _upright(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        right, below = x - self.middle[0], y - self.middle[1]
        aside = right * self.across[0] + below * self.across[1]
        return aside, right * self.along[0] + below * self.along[1]


def frame(
    landmarks: Floats, size: int, region: str, reaches: tuple[float, float, float] | None = None
) -> Frame:
    """The superellipse of a region, about the face's middle and turned with the head.

    Args:
        landmarks: (5, 2) crop pixels.
        size: side of the crop.
        region: a key of `REGIONS`.
        reaches: how far it reaches, in their units, instead of what they say.
    """
    if region not in REGIONS:
        raise ConfigError(f"unknown region {region!r}: expected one of {', '.join(REGIONS)}, all")
    up, down, side = reaches or REGIONS[region]
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    length = max(float(np.linalg.norm(mouth - eyes)), size * 0.14)
    along = (mouth - eyes) / max(float(np.linalg.norm(mouth - eyes)), 1e-3)
    across = np.array([along[1], -along[0]])
    width = max(float(np.linalg.norm(landmarks[1] - landmarks[0])), 0.87 * length)
    turn = float(np.clip((landmarks[2] - (eyes + mouth) / 2) @ across, -width, width))
    middle = eyes + along * length * (1 + down - up) / 2 - across * (NEAR + FAR) / 2 * turn
    half = width * side + (NEAR - FAR) / 2 * abs(turn)
    return Frame(middle, across, along, half, length * (1 + up + down) / 2)


def heat(landmarks: Floats, size: int) -> Floats:
    """Landmark maps: eyes, nose tip, mouth corners.

    Args:
        landmarks: (5, 2) crop pixels.
        size: side of the crop.

    Returns:
        (3, size, size) float32 in 0..1: Gaussians of 3 px per 128 px around the points.
    """
    axis = np.arange(size, dtype=np.float32)
    spread = 2 * (3 * size / CROP_SIZE) ** 2
    x = np.exp(-((axis[None] - landmarks[:, :1]) ** 2) / spread)
    y = np.exp(-((axis[None] - landmarks[:, 1:]) ** 2) / spread)
    maps = y[:, :, None] * x[:, None, :]
    return np.stack([maps[:2].max(0), maps[2], maps[3:].max(0)]).astype(np.float32)
