"""Augmentation: clean training portraits made to look like photographs taken anywhere."""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

from anonymize.aligners import similarity, then, upright
from anonymize.record import Floats, Pixels

KINDS = {
    "shape": "small turns, shears, shifts and sizes",
    "turn": "heads turned to the side",
    "wall": "plain backgrounds repainted",
    "cover": "caps, bands and collars",
    "skin": "darker, lighter, redder or yellower skin, the rest as it is",
    "light": "exposure, contrast, casts, saturation, light from one side, low light",
    "capture": "blur, low resolution, noise, JPEG",
}
"""Kinds of augmentation that can be left out, to see what each is good for."""

SKIN_SPREAD = np.array([45.0, 16.0, 18.0], np.float32)
"""How far L*, a* and b* (CIELAB) of skin lie from those of the cheeks by light and blood."""

MIRRORED = [1, 0, 2, 4, 3]
"""Order of the five landmarks after a left-right flip."""


def augment(
    padded: Pixels,
    landmarks: Floats,
    size: int,
    rng: np.random.Generator,
    without: Collection[str] = (),
) -> tuple[Pixels, Floats]:
    """A random view of a training face.

    Args:
        padded: (P, P, 3) uint8 RGB head crop with a border.
        landmarks: (5, 2) pixels of it.
        size: side of the crop to return, at most P.
        rng: source of all randomness.
        without: those of `KINDS` to leave out.

    Returns:
        The crop (size, size, 3) and its landmarks (5, 2).
    """

    def now(kind: str, chance: float) -> bool:
        return rng.random() < chance and kind not in without

    matrix = _jitter(len(padded), size, rng, 0 if "shape" in without else 1)
    if now("turn", 0.5):
        angle = float(np.clip(rng.normal(0, 0.3), -0.55, 0.55))
        padded, turned = yaw(padded, landmarks, angle)
        # photographs are aligned by the landmarks they show: a turned face comes out larger
        matrix = then(similarity(turned, landmarks), matrix)
        landmarks = turned
    border = cv2.BORDER_REFLECT_101
    crop = cv2.warpAffine(padded, matrix, (size, size), borderMode=border)
    points = landmarks @ matrix[:, :2].T + matrix[:, 2]
    points = points + rng.normal(0, 0.005 * size, points.shape)
    if rng.random() < 0.5:
        crop, points = crop[:, ::-1], np.array([size - 1, 0]) + points[MIRRORED] * (-1, 1)
    if now("wall", 0.4):
        crop = backdrop(crop, rng)
    if now("skin", 0.4):
        crop = skin(crop, points, rng)
    if now("cover", 0.25):
        crop = cap(crop, points, rng)
    if now("cover", 0.3):
        crop = collar(crop, points, rng)
    if rng.random() < 0.8:
        image = crop.astype(np.float32) / 255
        if "light" not in without:
            image = _light(image, rng)
        crop = _pixels(image) if "capture" in without else _capture(image, rng)
    return np.ascontiguousarray(crop, np.uint8), points.astype(np.float32)


def yaw(image: Pixels, landmarks: Floats, angle: float) -> tuple[Pixels, Floats]:
    """Turns a frontal head as if its surface were a round column, wide at the eyes.

    Portraits lack turned heads; the far cheek disappears and the near side stretches, as in one.

    Args:
        image: (P, P, 3) uint8 RGB, the face upright.
        landmarks: (5, 2) pixels.
        angle: radians, believable up to about 0.55; positive moves the face to the right.

    Returns:
        The picture and where its landmarks went.
    """
    eyes, mouth = landmarks[:2].mean(0), landmarks[3:].mean(0)
    middle = (eyes + mouth) / 2
    wide = 1.3 * float(np.linalg.norm(landmarks[1] - landmarks[0]))
    high = 2.6 * float(np.linalg.norm(mouth - eyes))

    def reach(y: Floats) -> Floats:
        return np.asarray(wide * np.sqrt(np.maximum(1 - ((y - middle[1]) / high) ** 2, 1e-6)))

    y, x = np.mgrid[: len(image), : len(image)].astype(np.float32)
    column, offset = reach(y), x - middle[0]
    inside = np.abs(offset) < column
    across = np.arcsin(np.clip(offset / column, -1, 1)) - angle
    source = middle[0] + column * np.sin(np.clip(across, -1.45, 1.45))
    source = np.where(inside, source, x).astype(np.float32)
    out = cv2.remap(image, source, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    column = reach(landmarks[:, 1])
    across = np.arcsin(np.clip((landmarks[:, 0] - middle[0]) / column, -1, 1)) + angle
    moved = np.stack([middle[0] + column * np.sin(across), landmarks[:, 1]], 1)
    return np.asarray(out, np.uint8), moved.astype(np.float32)


def backdrop(crop: Pixels, rng: np.random.Generator) -> Pixels:
    """Repaints the plain background of a studio portrait, and half the time its brightness first.

    Else a generator learns that skin is as light and as red as the wall behind it. Pictures with
    no plain background in their upper corners are returned as they are.

    Args:
        crop: (S, S, 3) uint8 RGB.
        rng: source of all randomness.
    """
    size = len(crop)
    even, flooded = cv2.GaussianBlur(crop, (0, 0), 1), np.zeros((size + 2, size + 2), np.uint8)
    for corner in ((1, 1), (size - 2, 1)):
        how = cv2.FLOODFILL_MASK_ONLY | 1 << 8
        cv2.floodFill(even, flooded, corner, 0, (4,) * 3, (4,) * 3, how)
    flat = flooded[1:-1, 1:-1].astype(np.float32)
    if not 0.08 < flat.mean() < 0.6 or flat[size // 3 : -size // 3, size // 3 : -size // 3].any():
        return crop
    image = crop.astype(np.float32) / 255
    if rng.random() < 0.5:
        image = image ** np.float32(np.exp(rng.normal(0.2, 0.4)))
    coarse = rng.uniform(0, 1, (1, 1, 3)) + rng.normal(0, 0.2, (rng.integers(1, 6),) * 2 + (3,))
    wall = cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(0, 12) if rng.random() < 0.5 else 0):  # boards, letters, people
        ends, colour = rng.integers(0, size, (2, 2)).tolist(), rng.uniform(0, 1, 3).tolist()
        cv2.line(wall, ends[0], ends[1], colour, int(rng.integers(1, size // 4)))
    return _covered(image, wall, flat, 1)


def skin(crop: Pixels, landmarks: Floats, rng: np.random.Generator) -> Pixels:
    """Makes skin darker, lighter, redder or yellower, and leaves hair, clothes and walls.

    Else all skin is as light as that of portraits, or as a code says; this way a generator learns
    to look for it at ears and neck.

    Args:
        crop: (S, S, 3) uint8 RGB.
        landmarks: (5, 2) pixels.
        rng: source of all randomness.
    """
    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    wide, high = upright(landmarks, len(crop))
    cheeks = (np.abs(wide) < 0.7) & (np.abs(high + 0.5) < 0.3)
    if not cheeks.any():
        return crop
    far = (lab - np.median(lab[cheeks], 0)) / SKIN_SPREAD
    weight = np.exp(-np.square(far).sum(-1)).astype(np.float32)
    weight = cv2.GaussianBlur(weight, (0, 0), 0.008 * len(crop))[..., None]
    power = np.exp(np.clip(rng.normal(0.3, 0.4), -0.3, 0.9))
    changed = lab * np.float32(power**-0.2)
    changed[..., 1:] += rng.normal(0, 3, 2).astype(np.float32)
    changed[..., 0] = 100 * (lab[..., 0] / 100) ** np.float32(power)
    mixed = cv2.cvtColor(lab + weight * (changed - lab), cv2.COLOR_LAB2RGB)
    return _pixels(mixed)


def cap(crop: Pixels, landmarks: Floats, rng: np.random.Generator) -> Pixels:
    """Draws something opaque over hair and the upper forehead: a cap, a scarf, or only a band.

    Args:
        crop: (S, S, 3) uint8 RGB.
        landmarks: (5, 2) pixels.
        rng: source of all randomness.
    """
    wide, high = upright(landmarks, len(crop))
    brim = rng.uniform(0.4, 0.95) + rng.normal(0, 0.15) * wide**2 + rng.normal(0, 0.08) * wide
    brim = np.maximum(brim, 0.4)
    shape = (wide / rng.uniform(1.1, 1.6)) ** 4 + (high / rng.uniform(1.5, 2.4)) ** 2 < 1
    shape &= high > brim
    if rng.random() < 0.3:
        shape &= high < brim + rng.uniform(0.15, 0.5)
    shade = 1 - rng.uniform(0, 0.4) * np.exp(
        -((high - brim) ** 2) / rng.uniform(0.01, 0.08) - wide**4
    )
    cloth = _cloth(0.8 + 0.3 * np.tanh(high - 1), rng) * shade[..., None]
    if rng.random() < 0.4:  # the peak of a cap, seen from the front
        peak = _cloth(0.9 - 0.3 * np.tanh(4 * (high - brim)), rng)
        cloth = np.where((high < brim + rng.uniform(0.1, 0.35))[..., None], peak, cloth)
    below = crop / np.float32(255) * (1 - (1 - shade) * (high < brim))[..., None]
    return _covered(below, cloth, shape.astype(np.float32), 0.7)


def collar(crop: Pixels, landmarks: Floats, rng: np.random.Generator) -> Pixels:
    """Draws clothes over the neck, up to the chin or the jaw: scarves, ruffs, shirts, jackets.

    Args:
        crop: (S, S, 3) uint8 RGB.
        landmarks: (5, 2) pixels.
        rng: source of all randomness.
    """
    wide, high = upright(landmarks, len(crop))
    rise, tilt = rng.normal(0.25, 0.15), rng.normal(0, 0.1)
    edge = -rng.uniform(1.72, 2.02) + rise * wide**2 + tilt * wide
    shape = (high < edge) & (np.abs(wide) < rng.uniform(0.9, 3))
    fold = 1 - rng.uniform(0, 0.4) * np.exp(-((high - edge) ** 2) / rng.uniform(0.01, 0.1))
    cloth = _cloth(1 + 0.1 * np.sin(wide * rng.uniform(0, 12)), rng) * fold[..., None]
    if rng.random() < 0.6:  # a shirt, open or with a tie, and a jacket over it
        aside, below = np.abs(wide - rng.normal(0, 0.15)), edge - high
        if rng.random() < 0.4:
            cloth = np.float32(rng.uniform(0.8, 1)) * fold[..., None] * np.ones_like(cloth)
        if rng.random() < 0.5:
            shape &= aside > rng.uniform(0.3, 0.9) * (1 - below / rng.uniform(0.2, 1))
        else:
            tie = (aside < rng.uniform(0.1, 0.2) + 0.05 * below) & (below > rng.uniform(0, 0.2))
            cloth = np.where(tie[..., None], _cloth(fold, rng), cloth)
        jacket = _cloth(fold, rng) * (rng.uniform(0.1, 0.4) if rng.random() < 0.5 else 1)
        lapel = aside > rng.uniform(0.4, 1) * (high + rng.uniform(2.6, 4))
        cloth = np.where(lapel[..., None], jacket, cloth)
    return _covered(crop / np.float32(255), cloth, shape.astype(np.float32), 0.7)


def _cloth(shade: Floats, rng: np.random.Generator) -> Floats:
    """Cloth (S, S, 3) of one colour, about 0..1, by its light (S, S)."""
    colour = rng.uniform(0, 1) + rng.uniform(0, 0.6) * (rng.uniform(0, 1, 3) - 0.5)
    weave = rng.uniform(0, 0.02) * rng.standard_normal((*shade.shape, 1))
    cloth = colour * shade[..., None] + weave
    return np.asarray(cloth, np.float32)


def _covered(image: Floats, cover: Floats, shape: Floats, sigma: float) -> Pixels:
    """An image (S, S, 3) in 0..1 with a cover where a shape (S, S) is 1, edges blurred."""
    soft = cv2.GaussianBlur(shape, (0, 0), sigma)[..., None]
    mixed = image * (1 - soft) + np.clip(cover, 0, 1) * soft
    return _pixels(mixed)


def _pixels(image: Floats) -> Pixels:
    """0..1 to 0..255."""
    return np.asarray((np.clip(image, 0, 1) * 255).round(), np.uint8)


def _jitter(padded: int, size: int, rng: np.random.Generator, much: float) -> Floats:
    """A small random affine map from the padded crop's pixels to the crop's; at `much` 0 a cut."""
    angle, scale = np.deg2rad(rng.normal(0, 5 * much)), np.exp(rng.normal(0, 0.06 * much))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    # foreshortening of one axis and shear stand in for the yaw that portraits lack
    narrow, slant = np.exp(-abs(rng.normal(0, 0.08 * much))), rng.normal(0, 0.06 * much)
    shape = np.array([[narrow, slant], [0, 1]])
    linear = scale * turn @ shape
    shift = (size - 1) / 2 - linear @ np.full(2, (padded - 1) / 2)
    shift = shift + rng.normal(0, 0.02 * size * much, 2)
    return np.hstack([linear, shift[:, None]]).astype(np.float32)


def _light(image: Floats, rng: np.random.Generator) -> Floats:
    """Exposure, contrast, colour cast, saturation and light from one side."""
    size = len(image)
    image = image ** np.float32(np.exp(rng.normal(0, 0.2)))
    middle = image.mean()
    image = np.clip(middle + (image - middle) * np.exp(rng.normal(0, 0.15)), 0, None)
    image = image * np.exp(rng.normal(0, 0.06, 3))
    ramp = np.linspace(-1, 1, size)
    side, above = rng.normal(0, 0.15), rng.normal(0, 0.08)
    image = image * np.exp(side * ramp[None, :, None] + above * ramp[:, None, None])
    grey = image.mean(-1, keepdims=True)
    saturation = 0.0 if rng.random() < 0.08 else np.exp(rng.normal(0, 0.2))
    image = grey + (image - grey) * saturation
    if rng.random() < 0.1:  # low light
        image = image * rng.uniform(0.25, 0.7)
    return np.asarray(np.clip(image, 0, 1), np.float32)


def _capture(image: Floats, rng: np.random.Generator) -> Pixels:
    """What a camera and a file do: blur or low resolution, noise, JPEG."""
    size = len(image)
    if rng.random() < 0.35:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.3))
    elif rng.random() < 0.3:
        small = round(size * rng.uniform(0.45, 0.9))
        image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.3:
        image = image + rng.normal(0, rng.uniform(0.004, 0.03), image.shape)
    pixels = _pixels(image)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 95))]
        stored = cv2.imencode(".jpg", pixels, quality)[1]
        return np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR), np.uint8)
    return pixels
