"""What tests share: generated pictures, the sample people, and real photographs where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from anonymize.images import encode, read
from anonymize.record import Pixels

ROOT = Path(__file__).parent.parent
PEOPLE = ROOT / "samples" / "people"
PHOTOS = Path(os.environ.get("ANONYMIZE_PHOTOS", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """As the command line does: threads work on different pictures."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def people() -> Path:
    """A folder per person of faces that this project generated."""
    return PEOPLE


@pytest.fixture(scope="session")
def portrait() -> Pixels:
    """One generated face in the middle of a larger picture."""
    face = read(sorted(PEOPLE.glob("*/*.jpg"))[0])
    canvas = np.full((240, 300, 3), 120, np.uint8)
    canvas[50 : 50 + face.shape[0], 80 : 80 + face.shape[1]] = face
    return canvas


@pytest.fixture(scope="session")
def london() -> Path:
    """Studio portraits of consenting adults (CC BY 4.0); not part of the repository."""
    return _photos("london")


@pytest.fixture(scope="session")
def lfw() -> Path:
    """Press photographs, a folder per person; not part of the repository."""
    return _photos("lfw-dev")


def _photos(name: str) -> Path:
    folder = PHOTOS / name
    if not folder.is_dir():
        pytest.skip(f"real photographs are not here: {name}; set ANONYMIZE_PHOTOS")
    return folder


def save(path: Path, image: Pixels, kind: str = "png") -> Path:
    """Writes a picture file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image, kind))
    return path


@pytest.fixture
def dataset(tmp_path: Path, people: Path) -> Path:
    """Three sample people with three pictures each."""
    for person in sorted(people.iterdir())[:3]:
        for picture in sorted(person.glob("*.jpg"))[:3]:
            target = tmp_path / "people" / person.name / picture.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(picture.read_bytes())
    return tmp_path / "people"
