"""Puts a generated head crop back into the photograph, at the photograph's own resolution."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

from anonymize.aligners import move, shrink, then
from anonymize.errors import Withhold
from anonymize.record import Face, Floats, Pixels

FEATHER = 0.14
"""Width of the transition, inside the region, as a share of the region's radius."""

SKIN = np.array([(26, 135, 80), (255, 180, 130)])
"""Least and greatest Y, Cr and Cb (0..255) of what counts as skin."""

FEW_SKIN = 0.005
"""Share of the crop up to which visible skin tells nothing; from twice of it on it is trusted."""

TONE, MOST_TONE = 0.4, 10.0
"""How far a* and b* (CIELAB) of the face go towards those of the visible skin: which share of the
gap, and at most."""

USUAL, LIGHTER, DARKER, MOST_USUAL = 54.0, 0.1, 0.3, 8.0
"""The L* of faces that cameras aim at; which share of the way there darker and lighter ones go, and
how far at most."""

SPOT = 0.08
"""Side of the square of which pixels of cheeks and jaw get the median, as a share of the crop's."""

NEARBY, STRAY = 0.1, 3.0
"""How near, as a share of the crop's side, a colour has to be visible to be believed in the outer
part of the region; and how far a* and b* may go beyond those that are."""

MOST_GRAIN, GRAIN_SIZE, SMOOTHEST = 6.0, 0.6, 0.05
"""Greatest standard deviation of added grain, in grey levels; its size in pixels; and the quantile
of the surroundings' local deviations that counts as their grain."""


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
        match: shift the new face's colours so that they continue the context's at the border.
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
        crop = _unspotted(_tamed(crop, face.crop, distance), distance, marks)
        crop = _toned(crop, face.crop, distance, marks)
        crop = _matched(crop, face.crop, distance)
    part, shifted, far = _placed(image, face, distance)
    old, share = image[part], _share(far)
    for other in front:
        nearer = _seen_from(part, other, _distance(other))[1]
        share *= 1 - _share(nearer + FEATHER)  # beyond its feather, which lets this face through
    new = _pulled(crop, shifted, old.shape[1::-1])
    if match:
        new = _grained(new, old, far)
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
    scale, bound = float(np.hypot(shifted[0, 0], shifted[1, 0])), np.abs(change).max()
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


def _toned(crop: Pixels, context: Pixels, distance: Floats, landmarks: Floats) -> Pixels:
    """Draws the middle of the face part of the way to the skin that is visible around it.

    Necks and ears are in shadow, so only hue follows them. Lightness goes part of the way to one
    value, from which exposure keeps faces in photographs less far than the generator, who sees no
    more than their surroundings, draws them; less if they are darker, as dark skin is. What counts
    as skin is a box of Cr and Cb (Chai and Ngan 1999), not above the eyes, where hair is.

    Args:
        crop: (S, S, 3) uint8 RGB, the generated crop.
        context: (S, S, 3) the crop as it was, of which only what lies outside the region is used.
        distance: (S, S), see `Face.away`.
        landmarks: (5, 2) crop pixels.
    """
    seen = cv2.cvtColor(context, cv2.COLOR_RGB2YCrCb)
    skin = (seen >= SKIN[0]).all(2) & (seen <= SKIN[1]).all(2) & (distance > 1) & (distance < 1.2)
    skin &= _below(landmarks, len(crop)) > -0.04
    if not (middle := distance < 0.6).any():
        return crop
    trust = np.clip((skin.mean() - FEW_SKIN) / FEW_SKIN, 0, 1)
    new, old = _lab(crop), _lab(context)
    tone, shift = np.median(new[middle], 0), np.zeros(3)
    if trust:
        gap = np.median(old[skin], 0)[1:] - tone[1:]
        shift[1:] = trust * np.clip(TONE * gap, -MOST_TONE, MOST_TONE)
    away = USUAL - tone[0]
    shift[0] = np.clip((LIGHTER if away > 0 else DARKER) * away, -MOST_USUAL, MOST_USUAL)
    share = np.clip((1 - distance) / 0.35, 0, 1)
    weight = np.asarray(share * share * (3 - 2 * share), np.float32)[..., None]
    return _rgb(new + weight * np.float32(shift))


def _unspotted(crop: Pixels, distance: Floats, landmarks: Floats) -> Pixels:
    """Takes spots and short lines away from cheeks and jaw, where the generator hides identity.

    A median (Tukey 1977) keeps edges, such as that of the jaw. Eyes, brows, nose and mouth, which
    lie nearer to the middle, and foreheads, where hair may be, stay as they were drawn.

    Args:
        crop: (S, S, 3) uint8 RGB, the generated crop.
        distance: (S, S), see `Face.away`.
        landmarks: (5, 2) crop pixels.
    """
    size = len(crop)
    plain = cv2.medianBlur(crop, 2 * round(SPOT * size / 2) + 1)
    share = np.clip((distance - 0.55) / 0.12, 0, 1) * (distance < 1)
    share *= np.clip((_below(landmarks, size) + 0.016) / 0.047, 0, 1)
    return np.asarray(
        np.rint(crop + share[..., None] * (plain - crop.astype(np.float32))), np.uint8
    )


def _below(landmarks: Floats, size: int) -> Floats:
    """How far crop pixels (S, S) lie below the eyes along the face, in sides of the crop."""
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    down = (mouth - eyes) / max(float(np.linalg.norm(mouth - eyes)), 1.0) / size
    axis = np.arange(size, dtype=np.float32)
    return np.asarray((axis - eyes[0]) * down[0] + (axis[:, None] - eyes[1]) * down[1])


def _tamed(crop: Pixels, context: Pixels, distance: Floats) -> Pixels:
    """Takes away stray colours around the face, such as a blue shimmer on grey hair.

    Towards the border a* and b* stay within the range of what is visible nearby and of the new
    face's middle; lightness stays.

    Args:
        crop: (S, S, 3) uint8 RGB, the generated crop.
        context: (S, S, 3) the crop as it was, of which only what lies outside the region is used.
        distance: (S, S), see `Face.away`.
    """
    outside, middle = distance >= 1, distance < 0.5
    if not outside.any() or not middle.any():
        return crop
    new, old = _lab(crop), _lab(context)
    old, reach = cv2.GaussianBlur(old, (0, 0), 1), round(NEARBY * len(crop))
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    share = np.clip((distance - 0.5) / 0.2, 0, 1) * ~outside
    for part in (1, 2):
        values, seen = new[..., part], old[..., part]
        low, high = np.quantile(values[middle], [0.05, 0.95])
        most = cv2.dilate(np.where(outside, seen, np.float32(high)), near)
        least = cv2.erode(np.where(outside, seen, np.float32(low)), near)
        most = cv2.GaussianBlur(np.maximum(most, np.float32(high)), (0, 0), 2) + STRAY
        least = cv2.GaussianBlur(np.minimum(least, np.float32(low)), (0, 0), 2) - STRAY
        values += share * (np.clip(values, least, most) - values)
    return _rgb(new)


def _lab(image: Pixels) -> Floats:
    """RGB to CIELAB (H, W, 3), float32."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))


def _rgb(lab: Floats) -> Pixels:
    """The way back."""
    image = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return np.asarray((image.clip(0, 1) * 255).round(), np.uint8)


def _matched(crop: Pixels, context: Pixels, distance: Floats) -> Pixels:
    """Adds the smooth field by which the crop misses the context just outside the region.

    A broad estimate reaches the middle of the face, a narrow one follows the border.
    """
    size = len(crop)
    ring = ((distance >= 1.0) & (distance < 1.2)).astype(np.float32)
    if not ring.any():
        return crop
    gap = np.clip(context.astype(np.float32) - crop, -48, 48) * ring[..., None]
    broad = _spread(gap, ring, 0.25 * size, 1e-4)
    narrow = _spread(gap - broad * ring[..., None], ring, 0.06 * size, 0.05)
    return np.asarray(np.clip(crop + broad + narrow, 0, 255).round(), np.uint8)


def _spread(values: Floats, weights: Floats, sigma: float, least: float) -> Floats:
    """Gaussian average of (S, S, 3) values by weight; it fades where there is less than `least`.

    So smooth a field is computed on a coarser grid, of at least three pixels to `sigma`.
    """
    both, step = np.dstack([values, weights]), 2 ** int(np.log2(max(sigma / 3, 1)))
    side = max(len(values) // step, 1)
    small = cv2.resize(both, (side, side), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma * side / len(values))
    field = small[..., :3] / (small[..., 3:] + least)
    return np.asarray(cv2.resize(field, values.shape[1::-1], interpolation=cv2.INTER_CUBIC))


def _grained(new: Floats, old: Pixels, far: Floats) -> Floats:
    """Adds the photograph's grain, as it is just outside the region, where the new face lacks it.

    The level is that of the smoothest parts, of what is near and of what is as light as the face if
    that is less, so that hair, cloth and edges do not count as grain. The pattern depends on the
    face's pixels only.
    """
    around, inside = (far >= 1) & (far < 1.5), far < 1
    if around.sum() < 64 or inside.sum() < 64:
        return new
    grey = _mean(new)
    before = _mean(old)
    alike = np.abs(cv2.GaussianBlur(before, (0, 0), 3) - np.median(grey[inside])) < 50
    grain, alike = _grain(before), alike & (far >= 1)
    wanted = float(np.quantile(grain[around], SMOOTHEST))
    if alike.sum() >= 64:
        wanted = min(wanted, float(np.quantile(grain[alike], SMOOTHEST)))
    had = float(np.quantile(_grain(grey)[inside], SMOOTHEST))
    missing = min(max(wanted**2 - had**2, 0.0) ** 0.5, MOST_GRAIN)
    if not missing:
        return new
    seed = hashlib.sha256(np.rint(grey).astype(np.uint8).tobytes()).digest()
    random = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    noise = random.standard_normal(grey.shape, np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), GRAIN_SIZE)  # grain spans pixels, unlike white noise
    noise *= missing / max(float(np.quantile(_grain(noise), SMOOTHEST)), 1e-6)
    return np.asarray(np.clip(new + noise[..., None], 0, 255), np.float32)


def _mean(image: Floats | Pixels) -> Floats:
    """(H, W, 3) to the mean of the channels (H, W), float32."""
    return np.asarray(cv2.transform(np.float32(image), np.full((1, 3), 1 / 3, np.float32)))


def _grain(grey: Floats) -> Floats:
    """Local standard deviation of what a small blur removes from (H, W) values."""
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 1.5)
    return np.asarray(np.sqrt(cv2.GaussianBlur(fine * fine, (0, 0), 3)))


def _bounds(image: Pixels, matrix: Floats, size: int) -> tuple[int, int, int, int]:
    """The crop's bounding box in the image, cut at its borders."""
    back = cv2.invertAffineTransform(matrix)
    corners = move(np.array([[0, 0], [size, 0], [0, size], [size, size]], np.float32), back)
    low = np.maximum(np.floor(corners.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, image.shape[1::-1])
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _pulled(crop: Pixels, matrix: Floats, shape: tuple[int, int]) -> Floats:
    """The crop resampled to (columns, rows) image pixels, smooth when enlarged, never aliased."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))  # crop pixels per image pixel
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
