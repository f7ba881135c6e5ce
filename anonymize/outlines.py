"""Where the region of a face ends early, because hair, a cap or a collar covers the skin.

And where it reaches further, along the temples of glasses, of which stubs would stay at the ears.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from anonymize.aligners import align, frame, move, radius, upright
from anonymize.record import Face, Floats, Pixels

CORE = (0.5, 0.85, 1.28)
"""What is replaced whatever covers it, in the units of `aligners.REGIONS`: brows to chin, and as
far to the sides as ever, so that cheeks and jaws stay hidden."""

ANGLES, RADII, INNER = 96, 40, 0.35
"""How many rays from the middle of the region are looked at, at how many places, from where on."""

SKIN_LIGHTER, SKIN_DARKER = np.array([24.0, 7.0, 8.0]), np.array([20.0, 7.0, 8.0])
"""How much lighter or darker, redder and yellower (CIELAB) than cheeks and nose skin may be."""

ALIKE, DOUBT, STIFF = 1.35, 0.25, 0.6
"""At which distance, in those units, a colour speaks as much for as against skin; what speaks for
skin where nothing is known; and what it costs the border to move by a place from ray to ray."""

BEYOND = 0.067
"""How far the region reaches into what covers the skin, so that no edge of the old skin is left."""

TEMPLES = (-0.32, 0.3, 1.45)
"""Between which heights, from the eyes down in distances to the mouth, and how far from the middle
of the region temples of glasses are looked for."""

THIN, DARK, LONG = 0.04, 9.0, 0.03
"""How thick they are at most, and how long at least both within the region and beyond, in sides of
the crop; and by how much darker than what is above and below (L*)."""

SMOOTH = (0.1, 0.2, 0.4, 0.2, 0.1)
"""Weights by which neighbouring rays are averaged."""


def outline(image: Pixels, face: Face, size: int, region: str) -> Face:
    """`aligners.align`, and what is to be replaced of the head as it is in this picture.

    Args:
        image: (H, W, 3) uint8 RGB, the source: where a face has been replaced already, its region
            would end elsewhere.
        face: with landmarks.
        size: side of the crop in pixels.
        region: a key of `aligners.REGIONS`.

    Returns:
        The face with `crop`, `crop_from_image` and `away` set.
    """
    face = align(image, face, size)
    assert face.crop is not None
    assert face.crop_from_image is not None
    marks = move(face.landmarks, face.crop_from_image)
    return face.but(away=extent(face.crop, marks, region))


def extent(crop: Pixels, landmarks: Floats, region: str = "face") -> Floats:
    """`aligners.radius`, but for `face` the region ends where hair, a cap or a collar begins.

    What lies there is published, and so the new face continues it instead of making it up. The
    border is the best path around the face between brows and chin within and the full region
    without, by how much colours on either side are like those of cheeks and nose. Where hair is as
    light as skin the region stays as large as it was.

    Args:
        crop: (S, S, 3) uint8 RGB head crop.
        landmarks: (5, 2) crop pixels.
        region: a key of `aligners.REGIONS`, or `all`.

    Returns:
        (S, S) float32: below 1 inside, and less than `radius` along temples of glasses only.
    """
    size = len(crop)
    distance = radius(landmarks, size, region)
    if region != "face":
        return distance
    whole = frame(landmarks, size, region)
    turns = np.arange(ANGLES) * (2 * np.pi / ANGLES)  # an ear, the chin, the other ear, the top
    rays = np.cos(turns)[:, None] * whole.across + np.sin(turns)[:, None] * whole.along
    ends = 1 / whole.distance(*(whole.middle + rays).T)
    places = np.linspace(INNER, 1, RADII)
    at = np.moveaxis(whole.middle + (ends[:, None] * places)[..., None] * rays[:, None], -1, 0)
    core = frame(landmarks, size, region, CORE).distance(*at) < 1
    path = _path(_skin(crop, at.astype(np.float32), landmarks) + DOUBT, core)
    border = np.minimum(np.append(places, 1)[path] + BEYOND, 1)
    border = np.convolve(np.r_[border[-2:], border, border[:2]], SMOOTH, "valid")
    axis = np.arange(size, dtype=np.float32)
    turn = whole.turn(axis, axis[:, None])
    short = 1 - np.interp(turn, np.append(turns, 2 * np.pi), np.append(border, border[0]))
    return _with_temples(crop, landmarks, np.asarray(distance + short, np.float32))


def _with_temples(crop: Pixels, landmarks: Floats, away: Floats) -> Floats:
    """A region that also reaches along thin dark lines which leave it beside the eyes."""
    size, (_, high) = len(crop), upright(landmarks, len(crop))
    grey = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[..., 0]
    thick = 2 * round(0.7 * THIN * size) + 1
    dark = cv2.morphologyEx(grey, cv2.MORPH_BLACKHAT, np.ones((thick, 1), np.uint8)) > DARK
    upper, lower, far = TEMPLES
    dark &= (-high > upper) & (-high < lower) & (away > 0.5) & (away < far)
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(dark.astype(np.uint8))
    columns, lengths = np.broadcast_to(np.arange(size), labels.shape), []
    for part in (away < 1, away >= 1):
        across = np.zeros((count, size), bool)
        across[labels[part], columns[part]] = True
        lengths.append(across.sum(1))
    slim = boxes[:, cv2.CC_STAT_AREA] < THIN * size * boxes[:, cv2.CC_STAT_WIDTH]
    kept = slim & (np.minimum(*lengths) >= LONG * size)
    kept[0] = False  # what is no line
    lines = kept[labels].astype(np.float32)
    wide = 2 * round(0.016 * size) + 1
    lines = cv2.dilate(lines, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (wide, wide)))
    lines = cv2.GaussianBlur(lines, (0, 0), size / 128)
    return np.asarray(np.where(lines > 0.1, np.minimum(away, 1.15 - 0.4 * lines), away))


def _skin(crop: Pixels, at: Floats, landmarks: Floats) -> Floats:
    """How much colours at points x, y (2, ...) are like those of cheeks and nose: 1 to -1."""
    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), len(crop) / 128)
    seen = cv2.remap(lab, at[0], at[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    eyes, nose, mouth = landmarks[:2], landmarks[2], landmarks[3:]
    reach = max(1, round(0.022 * len(crop)))
    least = np.full(seen.shape[:-1], np.inf)
    for spot in (*(0.45 * eyes + 0.55 * mouth), 0.55 * eyes.mean(0) + 0.45 * nose):
        x, y = np.clip(np.rint(spot).astype(int), 0, len(crop) - 1)
        patch = lab[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
        apart = seen - np.median(patch.reshape(-1, 3), 0)
        apart /= np.where(apart > 0, SKIN_LIGHTER, SKIN_DARKER)
        least = np.minimum(least, np.sqrt(np.square(apart).sum(-1)))
    return np.clip(1 - least / ALIKE, -1, 1)


def _path(gain: Floats, core: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """How many places of each ray to replace: the closed path of most gain (dynamic programming).

    Args:
        gain: (ANGLES, RADII) of replacing a place.
        core: (ANGLES, RADII), places that have to be replaced.
    """
    count = gain.shape[1] + 1
    total = np.pad(np.cumsum(gain, 1), ((0, 0), (1, 0)))
    needed = np.where(core, np.arange(1, count), 0).max(1)
    total[np.arange(count) < needed[:, None]] = -np.inf
    moves = STIFF * np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    best = np.where(np.arange(count) == count - 1, 0.0, -np.inf)  # it begins and ends at an ear,
    back = []  # where the core reaches as far as the region
    for here in total:
        options = best - moves
        back.append(options.argmax(1))
        best = options.max(1) + here
    path = [int((best - moves[-1]).argmax())]
    for options in back[:0:-1]:
        path.append(int(options[path[-1]]))
    return np.array(path[::-1])
