"""Crops that were aligned before: no detection on the way in, all of it on the way out."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import save

from anonymize.aligned import ARCFACE, Aligned, usual
from anonymize.aligners import similarity, warp
from anonymize.cli import main
from anonymize.detectors import MTCNN
from anonymize.embedders import DlibEmbedder, chip
from anonymize.errors import ConfigError
from anonymize.images import read
from anonymize.recipe import Recipe
from anonymize.record import Pixels
from anonymize.run import run
from anonymize.state import read_links


def aligned(image: Pixels, side: int = 112) -> Pixels:
    """The (side, side, 3) crop of the largest face, as ArcFace's training data have it."""
    face = MTCNN()([image])[0][0]
    target = (ARCFACE + 0.5) * side / 112 - 0.5
    return warp(image, similarity(face.landmarks, target), side)


@pytest.fixture
def crops(people: Path, tmp_path: Path) -> Path:
    """Two aligned crops each of three sample people."""
    for person in sorted(people.iterdir())[:3]:
        for picture in sorted(person.glob("*.jpg"))[:2]:
            save(tmp_path / "crops" / person.name / f"{picture.stem}.png", aligned(read(picture)))
    return tmp_path / "crops"


@pytest.mark.parametrize("template", ["arcface", "mscelab"])
def test_crops_are_anonymised_without_detection(template: str, crops: Path, tmp_path: Path) -> None:
    release = tmp_path / "release"
    summary = run(crops, release, Recipe(detector=f"aligned:{template}"), key=bytes(32))
    assert summary.read == 6
    assert summary.written >= 4
    embedder, finder = DlibEmbedder(), MTCNN()
    for source, output in read_links(release):
        pair = [read(crops / source), read(release / output)]
        assert pair[1].shape == (112, 112, 3)
        found = finder([pair[1]])[0]
        marks = (usual(pair[0].shape).landmarks, found[0].landmarks)
        old, new = embedder([chip(*both) for both in zip(pair, marks, strict=True)])
        assert np.linalg.norm(old - new) > embedder.FMR[1e-3]


@pytest.mark.parametrize("side", [112, 224])
def test_the_template_is_where_the_detector_looks_too(side: int, portrait: Pixels) -> None:
    crop = aligned(portrait, side)
    found, expected = MTCNN()([crop])[0][0], usual(crop.shape)
    eyes = np.linalg.norm(expected.landmarks[1] - expected.landmarks[0])
    assert np.linalg.norm(found.landmarks - expected.landmarks, axis=1).max() < 0.15 * eyes


def test_unknown_crops_are_searched_and_else_expected(portrait: Pixels) -> None:
    blank = np.full((112, 112, 3), 90, np.uint8)
    crop = cv2.copyMakeBorder(aligned(portrait), 0, 20, 0, 20, cv2.BORDER_REPLICATE)
    found, expected = Aligned("mscelab")([crop, blank])
    assert (found[0].landmarks == MTCNN()([crop])[0][0].landmarks).all()
    assert (expected[0].landmarks == ARCFACE).all()
    with pytest.raises(ConfigError, match="expected arcface or mscelab"):
        Aligned("112")


def test_the_option(crops: Path, tmp_path: Path) -> None:
    arguments = ["run", str(crops), str(tmp_path / "release"), "--generator", "mask"]
    both = CliRunner().invoke(main, [*arguments, "--aligned", "arcface", "--detector", "mtcnn"])
    assert both.exit_code == 2
    done = CliRunner().invoke(main, [*arguments, "--aligned", "arcface"])
    assert done.exit_code == 0, done.stderr
    assert '"detector": "aligned:arcface"' in (tmp_path / "release" / "run.json").read_text()
