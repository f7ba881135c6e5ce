"""Makes a generated face look as if the photograph's camera had seen it: colours, edges, grain.

Nothing here looks at what was replaced, only at the new face and at what surrounds it.
"""

from __future__ import annotations

import hashlib

import cv2
import numpy as np
import numpy.typing as npt

from anonymize.aligners import upright
from anonymize.record import Floats, Pixels

SPOT = 0.05
"""Side of the square of which pixels of cheeks, jaw and chin get the median, as a share of the
crop's."""

PATCH = 0.1
"""Side of the square of which colours of skin get the median, as a share of the crop's."""

NEARBY, STRAY = 0.1, 3.0
"""How near, as a share of the crop's side, a colour has to be visible to be believed in the outer
part of the region; and how far a* and b* may go beyond those that are."""

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

HUE, USUALLY, COLOURLESS = np.array([14.5, 20.0]), 0.3, 15.0
"""The a* and b* of faces in photographs; which share of the way there new ones go; and how much
colour there is in pictures that are not nearly grey, where they go less far."""

SHADED = 0.5
"""Which share of the gap a face goes that is darker than the visible skin, which shade is on."""

COLOUR = 1.12
"""By how much colours are made stronger: the generator draws them fainter than cameras see them."""

EYE, EYES, EYES_KEPT = (0.3, 0.2), ((-4.0, 0.0), (-2.9, 0.1)), 0.3
"""Half axes of the ellipses around eyes in eye distances; a* and b* in them, compared with the
face's, as a constant and a share of what they are lighter (fitted to 900 photographs); and how much
of the difference from that is kept."""

LIPS, MOUTH, MOUTH_KEPT = (0.75, 0.5), ((1.2, -0.1), (-3.1, 0.03)), 0.5
"""The same of the ellipse around the mouth, in widths of the mouth."""

NOSE = (0.36, 0.5)
"""Half axes of the ellipse around the nose in eye distances."""

EDGE, FAINT, CLEAR = 3.0, 20.0, 30.0
"""By how much the edge between jaw and background is made steeper; up to which difference in grey
levels there is none, and how much more makes it a clear one."""

CRISP, FAINTER, HALO = ((0.55, 2.0), (1.35, 1.5)), (0.9, 0.35), 8.0
"""By how much differences in lightness are made stronger at most, up to sizes given as standard
deviations in pixels of a crop of 128: a drawn face is a mean of what could be there, and so too
soft. Below which share of its surroundings' detail that begins, and how much further below it is
done in full; and the most that is added, in grey levels."""

BLURRED, DETAIL, SOFTER = 1.2, 0.95, (0.7, 1.0, 1.4, 2.0, 2.8)
"""How much more detail than its surroundings a face may have, which quantile of fine differences
counts as that, and by which blurs, standard deviations in pixels, more is taken away."""

LEAST_GRAIN, MOST_GRAIN, GRAIN_SIZE, SMOOTHEST = 1.0, 6.0, 0.6, 0.05
"""Least grain of a face, as of skin without noise, and most that is added, as standard deviations
in grey levels; its size in pixels; and the quantile of local deviations that counts as the grain of
a picture."""


def fitted(crop: Pixels, context: Pixels, distance: Floats, landmarks: Floats) -> Pixels:
    """A drawn face in the colours and with the edges of what surrounds it.

    Args:
        crop: (S, S, 3) uint8 RGB, as the generator drew it.
        context: (S, S, 3) the crop as it was, of which only what lies outside the region is used.
        distance: (S, S), below 1 within the region, see `Face.away`.
        landmarks: (5, 2) crop pixels.

    Returns:
        (S, S, 3) uint8 RGB.
    """
    below, lips = _below(landmarks, len(crop)), _lips(landmarks, len(crop))
    nose = _nose(landmarks, len(crop))
    lab, seen = _lab(_unspotted(crop, distance, below, lips, nose)), _lab(context)
    lab = _evened(_tamed(lab, seen, distance), lips, distance)
    lab = _untinted(lab, landmarks, lips, distance)
    lab = _toned(lab, seen, _skin(context, distance, below), distance)
    drawn = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB).clip(0, 1) * 255
    drawn = _edged(drawn, context, distance, below)
    return _matched(drawn, context, distance)


def textured(new: Floats, old: Pixels, far: Floats, scale: float = 1) -> Floats:
    """A new face with about as much detail, and grain, as the photograph has around it.

    Args:
        new: (H, W, 3) float32 RGB, 0..255, the fitted face at the photograph's resolution.
        old: (H, W, 3) uint8 RGB, that part of the photograph.
        far: (H, W), below 1 within the region.
        scale: how many pixels of the photograph there are to one of a crop of 128.
    """
    around, inside = (far >= 1) & (far < 1.5), far < 1
    if around.sum() < 64 or inside.sum() < 64:
        return new
    detail = _detail(old, around)
    new = _crisp(new, far, detail, scale)
    return _grained(_softened(new, detail, inside), old, far)


def _below(landmarks: Floats, size: int) -> Floats:
    """How far crop pixels (S, S) lie below the eyes along the face, in sides of the crop."""
    way = float(np.linalg.norm(landmarks[3:].mean(0) - landmarks[:2].mean(0)))
    return -upright(landmarks, size)[1] * np.float32(way / size)


def _unspotted(crop: Pixels, distance: Floats, below: Floats, lips: Floats, nose: Floats) -> Pixels:
    """Takes spots and short lines away from cheeks, jaw and chin, in which identity hides.

    A median (Tukey 1977) keeps edges, such as that of the jaw. Eyes, brows, nose and mouth stay as
    they were drawn, and so do foreheads, where hair may be.
    """
    plain = cv2.medianBlur(crop, 2 * round(SPOT * len(crop) / 2) + 1)
    outer = np.clip((distance - 0.55) / 0.12, 0, 1) * np.clip((below + 0.016) / 0.047, 0, 1)
    inner = np.clip((lips - 0.85) / 0.2, 0, 1) * np.clip((nose - 0.9) / 0.2, 0, 1)
    inner *= np.clip((below - 0.07) / 0.04, 0, 1)
    share = np.maximum(outer, inner) * (distance < 1)
    return np.asarray(
        np.rint(crop + share[..., None] * (plain - crop.astype(np.float32))), np.uint8
    )


def _tamed(new: Floats, seen: Floats, distance: Floats) -> Floats:
    """Takes away stray colours around the face, such as a blue shimmer on grey hair.

    Towards the border a* and b* stay within the range of what is visible nearby and of the new
    face's middle; lightness stays. Crop and context are CIELAB (S, S, 3).
    """
    outside, middle = distance >= 1, distance < 0.5
    if not outside.any() or not middle.any():
        return new
    new, reach, known = new.copy(), round(NEARBY * len(new)), outside[..., None].astype(np.float32)
    weight = cv2.GaussianBlur(known, (0, 0), 1)[..., None]  # nothing of the region gets in
    seen = cv2.GaussianBlur(seen * known, (0, 0), 1) / np.maximum(weight, 1e-6)
    near = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    share = np.clip((distance - 0.5) / 0.2, 0, 1) * ~outside
    for part in (1, 2):
        values, visible = new[..., part], seen[..., part]
        low, high = np.quantile(values[middle], [0.05, 0.95])
        most = cv2.dilate(np.where(outside, visible, np.float32(high)), near)
        least = cv2.erode(np.where(outside, visible, np.float32(low)), near)
        most = cv2.GaussianBlur(np.maximum(most, np.float32(high)), (0, 0), 2) + STRAY
        least = cv2.GaussianBlur(np.minimum(least, np.float32(low)), (0, 0), 2) - STRAY
        values += share * (np.clip(values, least, most) - values)
    return new


def _evened(new: Floats, lips: Floats, distance: Floats) -> Floats:
    """Takes red, green and yellow spots away: skin's colours vary slowly; crop in CIELAB."""
    size, side = len(new), 2 * round(PATCH * len(new) / 2) + 1
    share = np.clip((lips - 1) / 0.3, 0, 1)
    share *= np.clip((0.9 - distance) / 0.2, 0, 1)
    new = new.copy()
    for part in (1, 2):
        values = np.rint(new[..., part].clip(-128, 127) + 128)
        plain = cv2.medianBlur(np.asarray(values, np.uint8), side).astype(np.float32) - 128
        new[..., part] += share * (cv2.GaussianBlur(plain, (0, 0), size / 85) - new[..., part])
    return new


def _lips(landmarks: Floats, size: int) -> Floats:
    """(S, S), below 1 around the mouth, of which turned heads show little."""
    across = landmarks[4] - landmarks[3]
    width = max(float(np.linalg.norm(across)), 0.2 * size)
    return _around(landmarks[3:].mean(0), across, width, LIPS, size)


def _nose(landmarks: Floats, size: int) -> Floats:
    """(S, S), below 1 around the nose."""
    across = landmarks[1] - landmarks[0]
    middle = 0.75 * landmarks[2] + 0.25 * landmarks[:2].mean(0)
    return _around(middle, across, max(float(np.linalg.norm(across)), 0.2 * size), NOSE, size)


def _around(
    middle: Floats, across: Floats, unit: float, axes: tuple[float, float], size: int
) -> Floats:
    """(S, S), below 1 in the ellipse about a point whose half axes are so many units.

    The first axis lies along `across`.
    """
    right, down = across / max(float(np.linalg.norm(across)), 1e-3)
    axis = np.arange(size, dtype=np.float32)
    x, y = axis - middle[0], (axis - middle[1])[:, None]
    along, off = (x * right + y * down) / unit / axes[0], (y * right - x * down) / unit / axes[1]
    return np.asarray(np.hypot(along, off), np.float32)


def _untinted(new: Floats, landmarks: Floats, lips: Floats, distance: Floats) -> Floats:
    """Draws the colours of eyes and lips near to what they usually are; crop in CIELAB."""
    middle, across = distance < 0.6, landmarks[1] - landmarks[0]
    wide = float(np.linalg.norm(across))
    if not middle.any() or wide < 1:
        return new
    eyes = np.minimum(*(_around(eye, across, wide, EYE, len(new)) for eye in landmarks[:2]))
    skin, new = np.median(new[middle], 0), new.copy()
    for away, tint, kept in ((eyes, EYES, EYES_KEPT), (lips, MOUTH, MOUTH_KEPT)):
        share = (1 - kept) * np.clip(2 - 2 * away, 0, 1)
        for part, (constant, slope) in enumerate(tint, 1):
            usual = skin[part] + constant + slope * (new[..., 0] - skin[0])
            new[..., part] += share * (usual - new[..., part])
    return new


def _skin(context: Pixels, distance: Floats, below: Floats) -> npt.NDArray[np.bool_]:
    """Which pixels (S, S) near the region show skin, not above the eyes, where hair is.

    What counts as skin is a box of Cr and Cb (Chai and Ngan 1999).
    """
    colours = cv2.cvtColor(context, cv2.COLOR_RGB2YCrCb)
    skin = (colours >= SKIN[0]).all(2) & (colours <= SKIN[1]).all(2)
    return np.asarray(skin & (distance > 1) & (distance < 1.2) & (below > -0.04))


def _toned(new: Floats, seen: Floats, skin: npt.NDArray[np.bool_], distance: Floats) -> Floats:
    """Gives the middle of the face colour, and draws it part of the way to the visible skin.

    Necks and ears are in shadow, so hue follows them, and lightness only where the face would be
    the darker. Then the face goes part of the way to one lightness, from which exposure keeps faces
    in photographs less far than the generator, who sees no more than their surroundings, draws
    them, but less if it is darker, as dark skin is; and to one hue, unless the picture is grey.
    Crop and context are CIELAB (S, S, 3).
    """
    middle, outside = distance < 0.6, distance >= 1
    if not middle.any() or not outside.any():
        return new
    tone, shift = np.median(new[middle], 0), np.zeros(3)
    away = USUAL - tone[0]
    shift[0] = (LIGHTER if away > 0 else DARKER) * away
    if trust := np.clip((skin.mean() - FEW_SKIN) / FEW_SKIN, 0, 1):
        gap = np.median(seen[skin], 0) - tone
        shift[0] = max(shift[0], trust * SHADED * gap[0])
        shift[1:] = trust * np.clip(TONE * gap[1:], -MOST_TONE, MOST_TONE)
    shift[0] = np.clip(shift[0], -MOST_USUAL, MOST_USUAL)
    colour = float(np.quantile(np.hypot(seen[..., 1], seen[..., 2])[outside], 0.9))
    shift[1:] += min(colour / COLOURLESS, 1) * USUALLY * (HUE - COLOUR * tone[1:] - shift[1:])
    share = np.clip((1 - distance) / 0.35, 0, 1)
    weight = np.asarray(share * share * (3 - 2 * share), np.float32)[..., None]
    stronger = new * [0, COLOUR - 1, COLOUR - 1]
    return np.asarray(new + weight * (stronger + shift), np.float32)


def _edged(new: Floats, context: Pixels, distance: Floats, below: Floats) -> Floats:
    """Gives cheeks and jaw a clear edge where the generator left haze between face and background.

    Every pixel is taken for a mixture of the nearest colours of the face and of the surroundings
    (Porter and Duff 1984), and the share of the face made steeper about a half.
    """
    outside, middle, size = distance >= 1, distance < 0.7, len(new)
    if not outside.any() or not middle.any():
        return new
    face = _continued(new, middle, size)
    back = _continued(context.astype(np.float32), outside, size)
    gap = face - back
    square = np.square(gap).sum(2)
    mixed = cv2.GaussianBlur(new, (0, 0), size / 85) - back
    share = np.clip((mixed * gap).sum(2) / (square + 1e-3), 0, 1)
    steeper = np.clip((share - 0.5) * EDGE + 0.5, 0, 1)
    trust = np.clip((np.sqrt(square) - FAINT) / CLEAR, 0, 1) * np.clip(below / 0.06, 0, 1)
    trust *= np.clip((distance - 0.6) / 0.15, 0, 1) * ~outside
    return np.asarray(np.clip(new + (trust * (steeper - share))[..., None] * gap, 0, 255))


def _continued(values: Floats, known: npt.NDArray[np.bool_], size: int) -> Floats:
    """(S, S, 3) values, smoothed, and beyond those that are known the nearest that is."""
    weight = cv2.GaussianBlur(known.astype(np.float32), (0, 0), size / 50)[..., None]
    soft = cv2.GaussianBlur(values * known[..., None], (0, 0), size / 50) / (weight + 1e-3)
    unknown = (~known).astype(np.uint8)
    kind = cv2.DIST_LABEL_PIXEL
    nearest = cv2.distanceTransformWithLabels(unknown, cv2.DIST_L2, 5, labelType=kind)[1]
    colours = np.zeros((nearest.max() + 1, 3), np.float32)
    colours[nearest[known]] = soft[known]
    return np.asarray(cv2.GaussianBlur(colours[nearest], (0, 0), size / 25))


def _matched(crop: Floats, context: Pixels, distance: Floats) -> Pixels:
    """Adds the smooth field by which the crop misses the context just outside the region.

    A broad estimate reaches the middle of the face, a narrow one follows the border.
    """
    size, field = len(crop), np.zeros_like(crop)
    ring = ((distance >= 1.0) & (distance < 1.2)).astype(np.float32)
    if ring.any():
        gap = np.clip(context.astype(np.float32) - crop, -48, 48) * ring[..., None]
        broad = _spread(gap, ring, 0.25 * size, 1e-4)
        field = broad + _spread(gap - broad * ring[..., None], ring, 0.06 * size, 0.05)
    return np.asarray(np.clip(crop + field, 0, 255).round(), np.uint8)


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


def _crisp(new: Floats, far: Floats, detail: float, scale: float) -> Floats:
    """Brings out lashes, creases and texture of a face that is softer than what surrounds it."""
    middle, (least, full) = far < 0.85, FAINTER
    if not middle.any():
        return new
    missing = least * detail / max(_detail(new, middle), 1e-3) - 1
    share = np.clip(missing / full, 0, 1) * np.clip((0.95 - far) / 0.2, 0, 1)
    grey = finer = _mean(new)
    more = np.zeros_like(grey)
    for size, stronger in CRISP:
        coarser = cv2.GaussianBlur(grey, (0, 0), size * max(scale, 1.0))
        more += (stronger - 1) * (finer - coarser)
        finer = coarser
    more = share * HALO * np.tanh(more / HALO)
    return np.asarray(np.clip(new + more[..., None], 0, 255), np.float32)


def _softened(new: Floats, detail: float, inside: npt.NDArray[np.bool_]) -> Floats:
    """Blurs a new face that is sharper than what surrounds it, as of a head out of focus."""
    most, soft = BLURRED * detail, new
    for blur in SOFTER:
        if _detail(soft, inside) <= most:
            break
        soft = cv2.GaussianBlur(new, (0, 0), blur)
    return soft


def _detail(image: Floats | Pixels, where: npt.NDArray[np.bool_]) -> float:
    return float(np.quantile(np.abs(_fine(_mean(image)))[where], DETAIL))


def _grained(new: Floats, old: Pixels, far: Floats) -> Floats:
    """Adds the photograph's grain where the new face lacks it.

    The level is that of the smoothest parts, of all that is near and of what is as light as the
    face if that is less, so that hair, cloth and edges do not count as grain. The pattern depends
    on the face's pixels only.
    """
    outside, inside = far >= 1, far < 1
    grey, before = _mean(new), _mean(old)
    alike = np.abs(cv2.GaussianBlur(before, (0, 0), 3) - np.median(grey[inside])) < 50
    grain, alike = _grain(before), alike & outside
    wanted = float(np.quantile(grain[outside], SMOOTHEST))
    if alike.sum() >= 64:
        wanted = min(wanted, float(np.quantile(grain[alike], SMOOTHEST)))
    had = float(np.quantile(_grain(grey)[inside], SMOOTHEST))
    missing = min(max(max(wanted, LEAST_GRAIN) ** 2 - had**2, 0.0) ** 0.5, MOST_GRAIN)
    if not missing:
        return new
    seed = hashlib.sha256(np.rint(grey).astype(np.uint8).tobytes()).digest()
    random = np.random.default_rng(int.from_bytes(seed[:8], "big"))
    noise = random.standard_normal(grey.shape, np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), GRAIN_SIZE)  # grain spans pixels, unlike white noise
    noise *= missing / max(float(np.quantile(_grain(noise), SMOOTHEST)), 1e-6)
    return np.asarray(np.clip(new + noise[..., None], 0, 255), np.float32)


def _grain(grey: Floats) -> Floats:
    """Local standard deviation of the fine differences in (H, W) values."""
    return np.asarray(np.sqrt(cv2.GaussianBlur(np.square(_fine(grey)), (0, 0), 3)))


def _fine(grey: Floats) -> Floats:
    """What a small blur removes from (H, W) values."""
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), 1.5))


def _mean(image: Floats | Pixels) -> Floats:
    """(H, W, 3) to the mean of the channels (H, W), float32."""
    return np.asarray(cv2.transform(np.float32(image), np.full((1, 3), 1 / 3, np.float32)))


def _lab(image: Pixels) -> Floats:
    """RGB to CIELAB (H, W, 3), float32."""
    return np.asarray(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
