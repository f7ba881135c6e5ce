"""The context attack: what hair, ears, clothes and background say once the new face is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from anonymize.eval.attacks import Gallery, nonmated, searched
from anonymize.eval.cache import fingerprint
from anonymize.eval.risk import Search
from anonymize.eval.stats import Array
from anonymize.eval.trial import Shots, Trial, label, unit

from anonymize.aligners import align, move
from anonymize.embedders import CHIP_SIZE, Embedder, chip
from anonymize.outlines import extent
from anonymize.record import Face, Floats, Pixels

GREY = 128

THUMBNAIL = 16
"""Side of the thumbnail that stands for plain image features."""


def context(trial: Trial, embedder: Embedder) -> list[Search]:
    """Context: the synthesised face is cut out, on outputs and gallery alike, and ignored.

    The attacker compares what the publisher left in place, by the recogniser on the face chip and
    on the whole head, and by a plain colour thumbnail, each less its mean over masked pictures of
    the attacker's split, which removes what all masked pictures share. Every source picture is
    absent from the gallery: whoever holds the very same file can match its background anyway.

    The part cut out is the region `face` of this package, by landmarks detected in the output.
    """
    view = trial.view(embedder)
    name = f"masked {label(embedder)}"
    o, a = (_features(trial, shots, embedder, name) for shots in (trial.o, trial.a))
    searches, dims = [], view.raw_o.shape[1]
    parts = {
        "face chip": slice(0, dims),
        "head": slice(dims, 2 * dims),
        "thumbnail": slice(2 * dims, None),
    }
    for name, part in parts.items():
        mine = trial.rows("a", attacker=True)
        left = unit(o[:, part] - o[trial.rows("o", attacker=True)][:, part].mean(0))
        right = unit(a[:, part] - a[mine][:, part].mean(0))
        enrolled = {who: _gallery(trial, left, who) for who in (True, False)}
        others = trial.rows("a", attacker=True, enrolled=False)
        rows = trial.rows("a", attacker=False, enrolled=False)
        searches.append(
            searched(
                view,
                "context",
                enrolled[False],
                right[rows],
                trial.a.people[rows],
                variant=name,
                thresholds=nonmated(enrolled[True], right[others], trial.a.people[others]),
            )
        )
    return searches


def _gallery(trial: Trial, vectors: Floats, attacker: bool) -> Gallery:
    rows = trial.rows("o", attacker=attacker, enrolled=True)
    everywhere = np.ones(len(rows), bool)  # where no face was found, one is expected
    return Gallery(vectors[rows], trial.o.people[rows], everywhere)


def _features(trial: Trial, shots: Shots, embedder: Embedder, kind: str) -> Floats:
    """(N, 2 D + 768) of masked pictures: embeddings of chip and head, thumbnail."""

    def one(row: int) -> Array:
        marks = shots.landmarks[row].astype(np.float32)
        name = fingerprint(shots.digests[row].encode(), marks.tobytes())
        return trial.cache.get(f"{kind} {name}", lambda: _look(shots, row, embedder))

    with ThreadPoolExecutor() as pool:
        found = []
        for done, vector in enumerate(pool.map(one, range(len(shots.paths))), 1):
            found.append(vector)
            trial.progress(f"look around faces ({embedder.name})", done, len(shots.paths))
    return np.stack(found).astype(np.float32)


def _look(shots: Shots, row: int, embedder: Embedder) -> Array:
    image, marks = shots.image(row), shots.landmarks[row]
    face = align(image, Face(np.zeros(4, np.float32), 1.0, marks))
    assert face.crop is not None
    assert face.crop_from_image is not None
    inside = extent(face.crop, move(marks, face.crop_from_image)) < 1
    head = np.where(inside[..., None], np.uint8(GREY), face.crop)
    head = np.asarray(cv2.resize(head, (CHIP_SIZE, CHIP_SIZE)), np.uint8)
    masked = chip(_blanked(image, face, inside), marks)
    small = cv2.resize(head, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    plain = small.astype(np.float32).ravel() / 255
    return np.concatenate([*(embedder([picture])[0] for picture in (masked, head)), plain])


def _blanked(image: Pixels, face: Face, inside: Array) -> Pixels:
    """The picture with the region grey."""
    size = (image.shape[1], image.shape[0])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    share = cv2.warpAffine(inside.astype(np.float32), face.crop_from_image, size, flags=flags)
    return np.where(share[..., None] > 0.5, np.uint8(GREY), image)
