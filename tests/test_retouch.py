"""Generated faces get the colours, edges, detail and grain of the photograph around them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from anonymize.aligners import TEMPLATE, radius
from anonymize.record import Floats, Pixels
from anonymize.retouch import (
    COLOUR,
    COLOURLESS,
    DARKER,
    HALO,
    HUE,
    LEAST_GRAIN,
    LIGHTER,
    MOST_USUAL,
    USUAL,
    USUALLY,
    _crisp,
    _detail,
    fitted,
    textured,
)

AWAY = radius(TEMPLATE, 128)
INSIDE = AWAY < 1
ROWS, COLUMNS = np.mgrid[:128, :128]


def fit(crop: Pixels, context: Pixels) -> Floats:
    return fitted(crop, context, AWAY, TEMPLATE).astype(np.float32)


def lab(colour: Floats | Pixels | tuple[int, ...]) -> Floats:
    pixel = np.float32(colour).reshape(1, 1, 3) / 255
    return np.asarray(cv2.cvtColor(pixel, cv2.COLOR_RGB2LAB)[0, 0])


def plain(*colour: int) -> Pixels:
    return np.full((128, 128, 3), colour, np.uint8)


def test_only_the_surroundings_of_the_context_are_looked_at() -> None:
    rng = np.random.default_rng(0)
    crop, context = rng.integers(0, 256, (2, 128, 128, 3)).astype(np.uint8)
    other = np.where(INSIDE[..., None], rng.integers(0, 256, crop.shape), context).astype(np.uint8)
    assert np.array_equal(fit(crop, context), fit(crop, other))
    assert not np.array_equal(fit(crop, context), fit(crop, np.rot90(context).copy()))


@pytest.mark.parametrize("tint", [(60, 130, 70), (150, 60, 60)])
def test_eyes_and_lips_are_not_far_from_their_usual_colours(tint: tuple[int, int, int]) -> None:
    """Green and red is taken from eyes, less of it from lips; brown eyes stay brown."""
    context, mouth = plain(190, 150, 130), TEMPLATE[3:].mean(0)
    marked, brown = context.copy(), context.copy()
    places = [(round(float(x)), round(float(y))) for x, y in (*TEMPLATE[:2], mouth)]
    for place in places:
        cv2.circle(marked, place, 3, tint, -1)
        cv2.circle(brown, place, 3, (90, 68, 58), -1)

    def hues(crop: Pixels) -> list[float]:
        out = fit(crop, context)
        return [float(lab(out[y, x])[1] - lab(out[50, 64])[1]) for x, y in places]

    was = float(lab(tint)[1] - lab(context[0, 0])[1])
    left, right, lips = hues(marked)
    for eye in (left, right):
        assert abs(eye) < 0.4 * abs(was)
    assert 0.3 * abs(was) < abs(lips) < 0.8 * abs(was)
    assert all(abs(hue) < 5 for hue in hues(brown)[:2])


def test_spots_of_another_colour_are_taken_from_skin_but_not_from_lips() -> None:
    context = plain(190, 150, 130)
    spotted = context.copy()
    places = [(64, 60), (45, 75), tuple(np.rint(TEMPLATE[3:].mean(0)).astype(int))]
    for x, y in places:
        cv2.circle(spotted, (int(x), int(y)), 4, (200, 110, 120), -1)
    out = fit(spotted, context)
    nose, cheek, mouth = (lab(out[y, x])[1] - lab(out[50, 64])[1] for x, y in places)
    assert mouth > 10
    assert abs(nose) < 4 > abs(cheek)
    dark = cv2.circle(context.copy(), (64, 60), 4, (120, 95, 82), -1)
    assert lab(fit(dark, context)[60, 64])[0] < lab(fit(dark, context)[50, 64])[0] - 15


def test_colours_that_are_neither_in_the_face_nor_nearby_are_taken_from_around_it() -> None:
    context = plain(120, 120, 120)
    crop = np.where(INSIDE[..., None], (190, 150, 130), context).astype(np.uint8)
    top = (AWAY > 0.75) & (AWAY < 0.9) & (ROWS < 40)
    crop[top] = (90, 120, 220)
    out = fit(crop, context)
    assert crop[top].astype(int)[:, 2].mean() - crop[top][:, 0].mean() > 100
    assert np.abs(out[top][:, 2] - out[top][:, 0]).mean() < 30
    hidden = np.where(INSIDE[..., None], crop[top][0], context).astype(np.uint8)
    assert np.array_equal(fit(crop, hidden), out)  # what was replaced does not show, nor at its rim
    context[:30] = (90, 120, 220)  # a blue cap
    crop[:30][AWAY[:30] > 1] = context[0, 0]
    out = fit(crop, context)
    assert (out[top][:, 2] - out[top][:, 0]).mean() > 80


def test_spots_are_taken_from_cheeks_and_jaw_but_not_from_features_or_foreheads() -> None:
    skin = plain(190, 150, 130)
    places = {"cheek": (92, 40), "jaw": (112, 64), "nose": (73, 64), "forehead": (32, 64)}
    left = {}
    for name, (y, x) in places.items():
        crop = skin.copy()
        crop[y - 1 : y + 2, x - 1 : x + 2] = (60, 40, 30)
        left[name] = np.abs(fit(crop, skin) - fit(skin, skin))[y, x].mean()
    assert left["cheek"] < 5
    assert left["jaw"] < 5
    assert left["nose"] > 60
    assert left["forehead"] > 20
    crop = skin.copy()
    crop[:, :36] = (60, 40, 30)  # an edge stays where it is
    edge = fit(crop, skin)[92, :, 0]
    assert edge[36] - edge[35] > 80


def test_colours_are_matched_to_the_context() -> None:
    context, crop = plain(200, 120, 60), plain(180, 130, 70)
    near = (AWAY > 0.85) & INSIDE
    out, crop = np.abs(fit(crop, context) - context), np.abs(crop.astype(np.float32) - context)
    assert out[near].mean() < 0.5 * crop[near].mean()


@pytest.mark.parametrize(
    ("around", "drawn", "moves"),
    [
        ((150, 105, 85), (235, 205, 190), True),  # pale among tanned skin
        ((190, 140, 115), (110, 75, 60), True),
        ((60, 90, 160), (235, 205, 190), False),  # a blue wall says nothing of skin
        ((90, 90, 90), (235, 205, 190), False),
        ((90, 90, 90), (70, 45, 36), False),
        ((90, 90, 90), (158, 120, 105), False),
    ],
)
def test_a_face_goes_part_of_the_way_to_visible_skin_and_to_what_is_usual(
    around: tuple[int, ...], drawn: tuple[int, ...], moves: bool
) -> None:
    crop = np.where(INSIDE[..., None], np.array(drawn), np.array(around)).astype(np.uint8)
    y, x = np.rint(TEMPLATE[2]).astype(int)[::-1]
    was, there, now = map(lab, (drawn, around, fit(crop, plain(*around))[y, x]))
    share = USUALLY * min(float(np.hypot(*there[1:])) / COLOURLESS, 1)  # none in grey pictures
    now[1:] = (now[1:] - share * HUE) / (1 - share) - (COLOUR - 1) * was[1:]
    light, share = now[0] - was[0], LIGHTER if was[0] < USUAL else DARKER
    usual = np.clip(share * (USUAL - was[0]), -MOST_USUAL, MOST_USUAL)
    if moves:
        gone = (now - was)[1:] / (there - was)[1:]
        assert (gone > 0.1).all()
        assert (gone < 0.8).all()
    else:
        assert np.abs(now - was)[1:].max() < 1.5
    if moves and there[0] > was[0]:  # faces are no darker than the necks that they shade
        assert light == pytest.approx(MOST_USUAL, abs=0.5)
    else:
        assert light == pytest.approx(usual, abs=0.5)


def test_colours_become_stronger_and_grey_and_contrast_stay() -> None:
    wall = plain(90, 90, 90)  # nearly grey pictures stay so
    half = np.where((COLUMNS < 64)[..., None], (150, 120, 110), (190, 160, 150)).astype(np.uint8)
    for crop in (half, np.repeat(half[..., :1], 3, 2)):
        out = fit(np.where(INSIDE[..., None], crop, wall).astype(np.uint8), wall)
        was, now = (np.array([lab(x[70, c]) for c in (50, 78)]) for x in (crop, out))
        assert np.ptp(now[:, 0]) == pytest.approx(np.ptp(was[:, 0]), rel=0.03)
        assert now[:, 1:] == pytest.approx(COLOUR * was[:, 1:], abs=1)


def steepness(values: Floats | Pixels) -> float:
    return float(np.abs(np.diff(values.astype(np.float32))).max())


def haze(width: float) -> tuple[Pixels, Pixels]:
    """A face that fades into a blue wall, as wide as given, within the lower part of the region."""
    wall = plain(40, 60, 140)
    share = np.clip((0.85 - AWAY) / width + 0.5, 0, 1)[..., None]
    return (share * (190, 150, 130) + (1 - share) * wall).astype(np.uint8), wall


def test_haze_between_jaw_and_background_becomes_an_edge_at_the_same_place() -> None:
    crop, wall = haze(0.24)
    out = fit(crop, wall)
    jaw = slice(int(TEMPLATE[4, 1]) + 4, 126)  # down from below the mouth
    before, after = (x[jaw, 64, 0].astype(np.float32) for x in (crop, out))
    assert steepness(after) > 1.5 * steepness(before)
    middle = (before.max() + before.min()) / 2
    places = [np.abs(red - middle).argmin() for red in (before, after)]
    assert abs(int(places[0]) - int(places[1])) <= 1
    above = fit(np.where((ROWS > 45)[..., None], wall, crop), wall)  # foreheads go on in hair
    rows = slice(8, 40)
    assert steepness(above[rows, 64, 0]) < 1.3 * steepness(crop[rows, 64, 0])


def test_a_jaw_before_something_as_light_as_skin_stays_as_it_was_drawn() -> None:
    crop = np.where((AWAY < 0.85)[..., None], (190, 150, 130), (186, 148, 128)).astype(np.uint8)
    out = fit(crop, plain(186, 148, 128))
    assert steepness(out[95:, 64, 0]) <= 5


def scene(blur: float, noise: float = 0.0) -> tuple[Floats, Pixels, Floats]:
    """A sharp face, a photograph that is out of focus by `blur`, and where the face is."""
    rng = np.random.default_rng(0)
    old = rng.normal(120, 60, (128, 128, 3)) if blur else np.full((128, 128, 3), 120.0)
    if blur:
        old = cv2.GaussianBlur(old, (0, 0), blur)
    old = old + noise * rng.normal(size=(128, 128, 1))
    checks = np.where((ROWS // 6 + COLUMNS // 6) % 2, 105.0, 135.0)
    new = np.repeat(checks[..., None], 3, 2) if blur else np.full((128, 128, 3), 120.0)
    return new.astype(np.float32), np.clip(old, 0, 255).astype(np.uint8), AWAY


def test_a_face_out_of_focus_is_no_sharper_than_what_surrounds_it() -> None:
    sharp, soft = (textured(*scene(blur))[64, 40:88, 0] for blur in (0.6, 4.0))
    assert steepness(sharp) > 28
    assert steepness(soft) < 14


def test_a_face_softer_than_what_surrounds_it_is_made_crisp_but_not_at_its_border() -> None:
    new, old, far = scene(0.6)
    soft = cv2.GaussianBlur(new, (0, 0), 1.2)
    crisp = _crisp(soft, far, _detail(old, (far >= 1) & (far < 1.5)), 1)
    middle = far < 0.7
    assert _detail(crisp, middle) > 1.15 * _detail(soft, middle)
    assert np.abs(crisp - soft).max() <= HALO
    assert np.array_equal(crisp[far > 0.95], soft[far > 0.95])
    assert np.array_equal(_crisp(soft, far, _detail(soft, middle), 1), soft)  # as sharp as all else
    large = [np.repeat(np.repeat(x, 2, 0), 2, 1) for x in (soft, far)]
    twice = _crisp(large[0], large[1], _detail(old, (far >= 1) & (far < 1.5)), 2)
    assert np.abs(twice[::2, ::2] - crisp)[middle].mean() < 1  # whatever the photograph's size
    rim = np.maximum(far, 0.9)  # all that a picture shows of a head at its edge
    assert np.array_equal(_crisp(soft, rim, 99.0, 1), soft)


@pytest.mark.parametrize("level", [0.0, 3.0, 6.0])
def test_a_new_face_has_the_grain_of_its_photograph(level: float) -> None:
    new, old, far = scene(0, level)
    out = textured(new, old, far)
    assert np.array_equal(out, textured(new, old, far))

    def grain(image: Floats | Pixels, where: Floats) -> float:
        grey = image[..., 0].astype(np.float32)
        return float((grey - cv2.GaussianBlur(grey, (0, 0), 1.5))[where > 0].std())

    wanted = max(grain(old, np.float32(far > 1)), LEAST_GRAIN)
    assert grain(out, np.float32(far < 0.8)) == pytest.approx(wanted, abs=0.5)
