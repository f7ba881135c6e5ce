"""Detectors, alignment, recognisers and blending, on generated people and on real photographs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anonymize import dlib_format, registry
from anonymize.aligners import REGIONS, TEMPLATE, heat, move, radius, similarity, then, warp
from anonymize.blenders import blend
from anonymize.detectors import MTCNN, CenterFace, overlap, suppress
from anonymize.embedders import DLIB_RESNET, DlibEmbedder, DlibResNet, chip
from anonymize.errors import ConfigError, WeightsError, Withhold
from anonymize.images import read
from anonymize.outlines import outline
from anonymize.packages import package_file
from anonymize.record import Face, Floats, Pixels
from anonymize.stages import in_front

FIVE_POINTS = "models/shape_predictor_5_face_landmarks.dat"


def photographs(folder: Path, count: int) -> list[Pixels]:
    paths = sorted(folder.glob("*/*.jpg"))
    return [read(path) for path in paths[:: max(1, len(paths) // count)][:count]]


def dlib_faces(image: Pixels) -> list[tuple[np.ndarray, np.ndarray]]:
    """dlib's own boxes (4,) and the mid-points of the eyes with the nose's base (3, 2)."""
    dlib = pytest.importorskip("dlib")
    shape = dlib.shape_predictor(str(package_file("face_recognition_models", FIVE_POINTS)))
    found = []
    for box in dlib.get_frontal_face_detector()(image, 1):
        marks = np.array([(p.x, p.y) for p in shape(image, box).parts()], float)
        points = np.stack([marks[2:4].mean(0), marks[:2].mean(0), marks[4]])
        found.append((np.array([box.left(), box.top(), box.right(), box.bottom()]), points))
    return found


def agreement(images: list[Pixels], detector: MTCNN | CenterFace) -> tuple[float, float]:
    """Share of dlib's faces that are found, and the median error of the eyes in eye widths."""
    hits, errors, total = 0, [], 0
    for image in images:
        faces = detector([image])[0]
        for box, marks in dlib_faces(image):
            total += 1
            if not faces:
                continue
            best = max(faces, key=lambda f: overlap(f.box[None], box.astype(np.float32))[0])
            hits += bool(overlap(best.box[None], box.astype(np.float32))[0] > 0.3)
            wide = np.linalg.norm(marks[1] - marks[0])
            errors.append(np.linalg.norm(best.landmarks[:2] - marks[:2], axis=1).mean() / wide)
    return hits / total, float(np.median(errors))


@pytest.mark.parametrize(("detector", "limit"), [(MTCNN, 0.06), (CenterFace, 0.10)])
def test_detectors_agree_with_dlib_on_generated_faces(
    people: Path, detector: type[MTCNN | CenterFace], limit: float
) -> None:
    found, error = agreement(photographs(people, 12), detector())
    assert found == 1
    assert error < limit


@pytest.mark.parametrize(("detector", "limit"), [(MTCNN, 0.06), (CenterFace, 0.10)])
def test_detectors_agree_with_dlib_on_photographs(
    lfw: Path, detector: type[MTCNN | CenterFace], limit: float
) -> None:
    found, error = agreement(photographs(lfw, 40), detector())
    assert found >= 0.97
    assert error < limit


@pytest.mark.parametrize("name", ["mtcnn", "centerface"])
def test_a_face_moves_with_its_picture_and_comes_in_several_sizes(
    portrait: Pixels, name: str
) -> None:
    detector = registry.load("detector", name)
    (face,) = detector([portrait])[0]
    moved = np.roll(portrait, (8, 16), (0, 1))
    assert np.abs(detector([moved])[0][0].landmarks - face.landmarks - (16, 8)).max() < 3
    for factor in (0.5, 2.0):
        size = (round(portrait.shape[1] * factor), round(portrait.shape[0] * factor))
        method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        scaled = np.asarray(cv2.resize(portrait, size, interpolation=method), np.uint8)
        marks = detector([scaled])[0][0].landmarks / factor
        assert np.abs(marks - face.landmarks).max() < 6


@pytest.mark.parametrize("name", ["mtcnn", "centerface"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (11, 11), (50, 50)])
def test_pictures_without_faces(name: str, shape: tuple[int, int]) -> None:
    assert registry.load("detector", name)([np.full((*shape, 3), 99, np.uint8)]) == [()]


def test_large_pictures_are_searched_in_a_smaller_copy(portrait: Pixels) -> None:
    (face,) = MTCNN()([portrait])[0]
    large = np.asarray(cv2.resize(portrait, None, fx=4, fy=4), np.uint8)
    (found,) = MTCNN(max_side=300)([large])[0]
    assert np.abs((found.landmarks + 0.5) / 4 - 0.5 - face.landmarks).max() < 2


def test_landmarks_have_no_side(people: Path) -> None:
    """In pixel centres, on average, those of a mirrored or enlarged picture are where they were."""
    mirrored, enlarged = [], []
    for image in photographs(people, 24):
        (face,) = MTCNN()([image])[0]
        (other,) = MTCNN()([np.ascontiguousarray(image[:, ::-1])])[0]
        across = image.shape[1] - 1 - other.landmarks[[1, 0, 2, 4, 3], 0]
        mirrored.append(face.landmarks[:, 0] - across)
        twice = np.asarray(cv2.resize(image, None, fx=2, fy=2), np.uint8)
        (large,) = MTCNN()([twice])[0]
        enlarged.append((large.landmarks + 0.5) / 2 - 0.5 - face.landmarks)
    assert abs(np.mean(mirrored)) < 0.6
    assert np.abs(np.mean(enlarged, (0, 1))).max() < 0.15


def test_suppression_keeps_the_best_of_each_cluster() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
    assert suppress(boxes, np.array([0.5, 0.9, 0.3], np.float32), 0.5) == [1, 2]
    assert overlap(boxes, boxes[0]).tolist() == pytest.approx([1, 90 / 110, 0])


def test_a_missing_weight_package_is_named() -> None:
    with pytest.raises(WeightsError, match="no_such_package"):
        package_file("no_such_package", "x")


points = arrays.arrays(np.float32, (5, 2), elements=st.floats(-100, 100, width=32))


@settings(deadline=None)
@given(points, st.floats(0.2, 5), st.floats(-3, 3), st.floats(-50, 50))
def test_similarity_is_recovered(source: np.ndarray, scale: float, angle: float, dx: float) -> None:
    if np.ptp(source, 0).max() < 1:
        return
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.hstack([turn, [[dx], [1.0]]]).astype(np.float32)
    found = similarity(source, move(source, matrix))
    assert np.abs(move(source, found) - move(source, matrix)).max() < 0.05 * scale + 0.05


def test_coinciding_landmarks_have_no_alignment() -> None:
    with pytest.raises(Withhold, match="coincide"):
        similarity(np.zeros((5, 2), np.float32), TEMPLATE)


def test_warp_keeps_positions_at_every_scale() -> None:
    """A bright disc lands where the matrix says, whether the picture is shrunk first or not."""
    image = np.zeros((600, 600, 3), np.uint8)
    cv2.circle(image, (400, 300), 40, (255, 255, 255), -1)
    for scale in (0.2, 0.4, 0.59, 0.61, 1.0):
        matrix = np.array([[scale, 0, 5], [0, scale, 3]], np.float32)
        crop = warp(image, matrix, round(600 * scale) + 10).astype(float)[..., 0]
        rows, columns = np.indices(crop.shape)
        centre = (columns * crop).sum() / crop.sum(), (rows * crop).sum() / crop.sum()
        assert np.allclose(centre, (400 * scale + 5, 300 * scale + 3), atol=0.3)


def test_then_is_application_in_order() -> None:
    a = np.array([[2, 0, 1], [0, 2, 0]], np.float32)
    b = np.array([[0, -1, 3], [1, 0, 0]], np.float32)
    assert np.allclose(move(move(TEMPLATE, a), b), move(TEMPLATE, then(a, b)), atol=1e-4)


@pytest.mark.parametrize("region", REGIONS)
def test_regions_cover_all_landmarks_and_stay_in_the_crop(region: str) -> None:
    distance = radius(TEMPLATE, 128, region)
    for x, y in TEMPLATE.round().astype(int):
        assert distance[y, x] < 0.75
    assert (distance[[0, -1]] >= 0.95).mean() > 0.5
    assert (radius(TEMPLATE * 2, 256, region)[::2, ::2] - distance).max() < 0.1


def test_head_contains_face_and_unknown_regions_are_refused() -> None:
    assert ((radius(TEMPLATE, 128, "face") < 1) <= (radius(TEMPLATE, 128, "head") < 1)).all()
    assert (radius(TEMPLATE, 128, "all") == 0).all()
    with pytest.raises(ConfigError, match="face, head"):
        radius(TEMPLATE, 128, "foot")


def test_region_of_a_turned_head_has_the_near_cheek_and_less_of_what_is_behind_the_far_one() -> (
    None
):
    turned = TEMPLATE.copy()
    turned[2, 0] += 8

    def reaches(landmarks: Floats) -> tuple[int, int]:
        columns = np.flatnonzero((radius(landmarks, 128) < 1).any(0))
        return int(columns[0]), int(columns[-1])

    (left, right), (near, far) = reaches(TEMPLATE), reaches(turned)
    assert near < left
    eyes = turned[1, 0] - turned[0, 0]
    assert turned[1, 0] + 0.35 * eyes < far < right - 4


def test_landmark_maps_peak_at_the_landmarks() -> None:
    maps = heat(TEMPLATE, 128)
    assert maps.shape == (3, 128, 128)
    x, y = TEMPLATE[2].round().astype(int)
    assert np.unravel_index(maps[1].argmax(), (128, 128)) == (y, x)


def test_torch_resnet_equals_dlib(people: Path) -> None:
    equal_to_dlib([chip(i, MTCNN()([i])[0][0].landmarks) for i in photographs(people, 6)])


def test_torch_resnet_equals_dlib_on_photographs(lfw: Path) -> None:
    equal_to_dlib([chip(i, MTCNN()([i])[0][0].landmarks) for i in photographs(lfw, 12)])


def equal_to_dlib(chips: list[Pixels]) -> None:
    dlib = pytest.importorskip("dlib")
    theirs = dlib.face_recognition_model_v1(
        str(package_file("face_recognition_models", DLIB_RESNET))
    )
    expected = np.array(theirs.compute_face_descriptor(chips))
    assert np.abs(DlibEmbedder()(chips) - expected).max() < 1e-4


def test_resnet_is_differentiable() -> None:
    network = DlibResNet(package_file("face_recognition_models", DLIB_RESNET))
    chips = torch.full((1, 3, 150, 150), 90.0, requires_grad=True)
    network(chips).square().sum().backward()
    assert chips.grad is not None
    assert float(chips.grad.abs().max()) > 0


def test_embeddings_do_not_depend_on_the_batch(people: Path) -> None:
    chips = [chip(i, MTCNN()([i])[0][0].landmarks) for i in photographs(people, 5)]
    embedder = DlibEmbedder()
    together, alone = embedder(chips), np.concatenate([embedder([c]) for c in chips])
    assert together.tobytes() == alone.tobytes()
    assert embedder([]).shape == (0, 128)


def test_bfloat16_hardly_moves_distances(people: Path) -> None:
    chips = [chip(i, MTCNN()([i])[0][0].landmarks) for i in photographs(people, 12)]
    exact, quick = DlibEmbedder()(chips), DlibEmbedder(bf16=True)(chips)
    apart = [np.linalg.norm(e[:, None] - e[None], axis=2) for e in (exact, quick)]
    assert np.abs(apart[0] - apart[1]).max() < 0.01


def test_deepface_dlib_gives_dlibs_embeddings(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepface")
    weights = tmp_path / ".deepface" / "weights"
    weights.mkdir(parents=True)
    source = package_file("face_recognition_models", DLIB_RESNET)
    shutil.copy(source, weights / source.name)
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.setenv("DEEPFACE_BACKEND_ENGINE", "pytorch")
    chips = [chip(i, MTCNN()([i])[0][0].landmarks) for i in photographs(people, 3)]
    found = registry.load("embedder", "deepface:Dlib")(chips)
    assert np.abs(found - DlibEmbedder()(chips)).max() < 1e-4


def test_deepface_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepface")
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="deepface cannot load 'NoSuchModel'"):
        registry.load("embedder", "deepface:NoSuchModel")


@pytest.mark.parametrize("content", [b"", b"not a network", os.urandom(5000)])
def test_files_that_are_no_dlib_networks_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.dat").write_bytes(content)
    with pytest.raises(WeightsError):
        DlibResNet(tmp_path / "x.dat")


def test_a_cut_dlib_file_is_refused(tmp_path: Path) -> None:
    data = package_file("face_recognition_models", DLIB_RESNET).read_bytes()
    (tmp_path / "x.dat").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError):
        dlib_format.layers(tmp_path / "x.dat")


def outlined(image: Pixels, scale: float, angle: float, region: str = "face") -> Face:
    """A face of the template's shape in the middle of a picture, turned and scaled."""
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    centre = np.array([image.shape[1] / 2, image.shape[0] / 2])
    marks = ((TEMPLATE - 64) @ turn.T + centre).astype(np.float32)
    box = np.hstack([marks.min(0), marks.max(0)]).astype(np.float32)
    return outline(image, Face(box, 1.0, marks), 128, region)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.15, 3), st.floats(-1, 1), st.sampled_from(sorted(REGIONS)), st.booleans())
def test_every_pixel_outside_the_region_stays(
    scale: float, angle: float, region: str, match: bool
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (160, 200, 3)).astype(np.uint8)
    face = outlined(image, scale, angle, region)
    crop = np.full((128, 128, 3), 255, np.uint8)
    out = blend(image, crop, face, match=match)
    assert out.shape == image.shape
    assert not np.shares_memory(out, image)
    matrix = face.crop_from_image
    assert matrix is not None
    distance = face.away
    assert distance is not None
    rows, columns = np.nonzero((out != image).any(2))
    at = move(np.stack([columns, rows], 1).astype(np.float32), matrix)
    near = cv2.remap(distance, at[None].astype(np.float32), None, cv2.INTER_LINEAR)
    assert len(rows) > 0
    assert near.max() < 1.02


def test_the_middle_of_the_region_is_the_new_face_only() -> None:
    """No original pixel shines through inside the feather."""
    crop = np.full((128, 128, 3), 90, np.uint8)
    outputs = []
    for value in (0, 255):
        image = np.full((200, 200, 3), 50, np.uint8)
        face = outlined(image, 1.0, 0.2)
        matrix = face.crop_from_image
        assert matrix is not None
        distance = radius(move(face.landmarks, matrix), 128, "face")
        inside = cv2.warpAffine(distance, matrix, (200, 200), flags=cv2.WARP_INVERSE_MAP) < 0.8
        inside &= (
            cv2.warpAffine(np.ones((128, 128)), matrix, (200, 200), flags=cv2.WARP_INVERSE_MAP)
            > 0.5
        )
        image[inside] = value
        outputs.append(blend(image, crop, face, match=False)[inside])
    assert (outputs[0] == outputs[1]).all()
    assert (outputs[0] == 90).all()


def test_a_head_in_front_stays_and_nothing_of_the_one_behind_shines_through() -> None:
    size = (200, 260)
    outputs = []
    for value in (0, 255):
        image = np.full((*size, 3), 50, np.uint8)
        behind, front = (shifted(outlined(image, 1.0, 0), by) for by in (30, -30))
        far, near = (placed(face, size) for face in (behind, front))
        image[(far < 0.85) | (near < 0.85)] = value
        image = blend(image, np.full((128, 128, 3), 200, np.uint8), front, match=False)
        new = np.full((128, 128, 3), 90, np.uint8)
        outputs.append(blend(image, new, behind, match=False, front=[front]))
    inside = (far < 0.8) | (near < 0.8)
    assert (outputs[0] == outputs[1])[inside].all()
    assert (outputs[0][near < 0.7] == 200).all()
    assert (outputs[0][(far < 0.8) & (near > 1)] == 90).all()


def test_a_larger_head_close_by_is_in_front() -> None:
    image = np.zeros((300, 600, 3), np.uint8)
    face = outlined(image, 1.0, 0)

    def other(scale: float, by: float) -> Face:
        return shifted(outlined(image, scale, 0), by)

    assert in_front(other(1.3, 80), face, "face")
    assert not in_front(other(0.8, 80), face, "face")
    assert not in_front(other(1.3, 10), face, "face")  # the same face, found again
    assert not in_front(other(1.3, 290), face, "face")


def shifted(face: Face, by: float) -> Face:
    """The same further to the right in its picture, whose crop is of no account."""
    assert face.crop_from_image is not None
    there = np.array([[1, 0, -by], [0, 1, 0]], np.float32)
    return face.but(
        box=face.box + np.float32([by, 0, by, 0]),
        landmarks=face.landmarks + np.float32([by, 0]),
        crop_from_image=then(there, face.crop_from_image),
    )


def placed(face: Face, size: tuple[int, int]) -> Floats:
    """`radius` of a face's region at the picture's own pixels, 2 beyond the crop."""
    matrix = face.crop_from_image
    assert matrix is not None
    distance = radius(move(face.landmarks, matrix), 128)
    how = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderValue": 2.0}
    return np.asarray(cv2.warpAffine(distance, matrix, size[::-1], **how))
