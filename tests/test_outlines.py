"""Where regions end: at hair, caps and collars, never within the face, seldom beyond the region."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymize.aligners import CROP_SIZE, TEMPLATE, frame, radius
from anonymize.outlines import CORE, extent, outline
from anonymize.record import Face, Floats, Pixels

SKIN, DARK_SKIN = (205, 160, 135), (110, 75, 60)
EYES, MOUTH = TEMPLATE[:2].mean(0), TEMPLATE[3:].mean(0)
LENGTH = float(MOUTH[1] - EYES[1])


def head(skin: tuple[int, ...] = SKIN, size: int = CROP_SIZE) -> Pixels:
    """Nothing but skin."""
    return np.full((size, size, 3), skin, np.uint8)


def core(size: int = CROP_SIZE) -> np.ndarray:
    axis = np.arange(size, dtype=np.float32)
    marks = TEMPLATE * (size / CROP_SIZE)
    return frame(marks, size, "face", CORE).distance(axis, axis[:, None]) < 0.98


def top(mask: np.ndarray) -> float:
    """How far a mask reaches above the eyes in the middle, in eye-to-mouth distances."""
    return float(EYES[1] - np.flatnonzero(mask[:, round(float(EYES[0]))])[0]) / LENGTH


def bottom(mask: np.ndarray) -> float:
    """How far it reaches below the mouth."""
    return float(np.flatnonzero(mask[:, round(float(MOUTH[0]))])[-1] - MOUTH[1]) / LENGTH


@pytest.mark.parametrize("skin", [SKIN, DARK_SKIN])
def test_a_region_of_skin_is_whole(skin: tuple[int, ...]) -> None:
    assert np.allclose(extent(head(skin), TEMPLATE), radius(TEMPLATE, CROP_SIZE), atol=1e-6)


@pytest.mark.parametrize("skin", [SKIN, DARK_SKIN])
@pytest.mark.parametrize("cloth", [(30, 60, 120), (240, 240, 240), (15, 12, 10), (120, 120, 125)])
@pytest.mark.parametrize("brim", [0.55, 0.75, 0.95])
def test_it_ends_at_a_cap(skin: tuple[int, ...], cloth: tuple[int, ...], brim: float) -> None:
    image = head(skin)
    image[: round(float(EYES[1]) - brim * LENGTH)] = cloth
    found = top(extent(image, TEMPLATE) < 1)
    assert brim < found < brim + 0.2  # nothing of the old forehead is left below the brim


def test_it_ends_at_a_collar() -> None:
    image = head()
    image[round(float(MOUTH[1]) + 0.85 * LENGTH) :] = (20, 30, 60)
    assert 0.85 < bottom(extent(image, TEMPLATE) < 1) < 1


def test_hair_that_falls_into_the_forehead_stays_where_it_is() -> None:
    image = head()
    edge = round(float(EYES[1]) - 0.5 * LENGTH)
    image[:edge, :60] = (40, 25, 20)
    short = extent(image, TEMPLATE) - radius(TEMPLATE, CROP_SIZE)
    assert short[edge - 16, 50] > 0.2
    assert short[edge - 16, 80] < 0.02


@pytest.mark.parametrize("what", ["beard", "glasses", "mask"])
def test_what_covers_the_face_itself_is_replaced_all_the_same(what: str) -> None:
    image = head()
    y = np.arange(CROP_SIZE)[:, None] * np.ones(CROP_SIZE)
    covered = {
        "beard": y > MOUTH[1] - 0.2 * LENGTH,
        "glasses": np.abs(y - EYES[1]) < 0.2 * LENGTH,
        "mask": y > EYES[1] + 0.3 * LENGTH,
    }[what]
    image[covered] = (20, 20, 25)
    assert (extent(image, TEMPLATE) < 1)[core()].all()


@pytest.mark.parametrize("skin", [SKIN, DARK_SKIN])
@pytest.mark.parametrize("scale", [1, 2])
def test_it_follows_temples_of_glasses_to_the_ear(skin: tuple[int, ...], scale: int) -> None:
    marks, size = TEMPLATE * scale, CROP_SIZE * scale
    plain = head(skin, size)
    worn = plain.copy()
    ear, y = round(12 * scale), round(float(EYES[1]) * scale)
    worn[y : y + 2 * scale, ear : round(float(marks[0, 0]))] = (15, 12, 10)
    new = (extent(worn, marks) < 1) & (extent(plain, marks) >= 1)
    beyond = worn.min(2) < 20
    beyond &= (radius(marks, size) >= 1) & (radius(marks, size) < 1.4)
    assert beyond.sum() > 10 * scale
    assert new[beyond].all()
    assert new.sum() < 6 * beyond.sum()
    thick = plain.copy()  # hair, or a strap
    thick[y - 6 * scale : y + 6 * scale, ear : round(float(marks[0, 0]))] = (15, 12, 10)
    assert not ((extent(thick, marks) < 1) & (radius(marks, size) >= 1)).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 16), st.floats(0, 3))
def test_it_lies_between_core_and_whole_region_whatever_the_picture(
    seed: int, coarse: int, jitter: float
) -> None:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (coarse, coarse, 3)).astype(np.uint8)
    image = cv2.resize(small, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_NEAREST)
    marks = (TEMPLATE + rng.normal(0, jitter, (5, 2))).astype(np.float32)
    distance, whole = extent(image, marks), radius(marks, CROP_SIZE)
    assert distance.dtype == np.float32
    axis = np.arange(CROP_SIZE, dtype=np.float32)
    eyes, mouth = marks[:2].mean(0), marks[3:].mean(0)
    along = (axis - eyes[0]) * (mouth - eyes)[0] + (axis[:, None] - eyes[1]) * (mouth - eyes)[1]
    beside_eyes = np.abs(along / np.square(mouth - eyes).sum()) < 0.5
    assert (distance >= whole - 1e-6)[~beside_eyes].all()
    assert (distance > 0.7)[whole >= 1].all()
    inner = frame(marks, CROP_SIZE, "face", CORE).distance(axis, axis[:, None])
    assert (distance[inner < 0.95] < 1).all()
    assert (extent(image, marks) == distance).all()


def test_other_regions_are_what_they_are() -> None:
    image = np.random.default_rng(0).integers(0, 256, (CROP_SIZE, CROP_SIZE, 3)).astype(np.uint8)
    for region in ("head", "all"):
        assert (extent(image, TEMPLATE, region) == radius(TEMPLATE, CROP_SIZE, region)).all()


def test_large_crops_end_at_the_same_place() -> None:
    image = head()
    image[: round(float(EYES[1]) - 0.6 * LENGTH)] = (30, 60, 120)
    large = cv2.resize(image, (256, 256), interpolation=cv2.INTER_NEAREST)
    found = extent(large, TEMPLATE * 2)[::2, ::2]
    assert np.abs(found - extent(image, TEMPLATE)).max() < 0.08


def photograph() -> tuple[Pixels, Face]:
    image = cv2.resize(head(), (200, 200))
    image[:50] = (30, 60, 120)
    marks: Floats = (TEMPLATE + 36).astype(np.float32)
    return image, Face(np.zeros(4, np.float32), 1.0, marks)


def test_a_face_is_outlined_by_what_is_seen_in_its_own_picture() -> None:
    image, face = photograph()
    found = outline(image, face, CROP_SIZE, "face")
    assert found.crop is not None
    assert found.crop.shape == (CROP_SIZE, CROP_SIZE, 3)
    assert found.away is not None
    assert (found.away >= radius(TEMPLATE, CROP_SIZE) - 1e-4).all()
