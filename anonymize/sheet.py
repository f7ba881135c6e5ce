"""A contact sheet of originals beside what became of them. It shows originals: keep it private."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from anonymize.errors import ReleaseError
from anonymize.images import decode, encode
from anonymize.readers import open_source
from anonymize.record import Pixels
from anonymize.release import opened
from anonymize.state import read_links


def draw(source: Path, release: Path, count: int = 24, columns: int = 4, side: int = 160) -> bytes:
    """A PNG of `count` before/after pairs, spread evenly over the release.

    Args:
        source: SRC of the run.
        release: DST, not sealed yet.
        count: pairs.
        columns: pairs per row.
        side: of each picture, in pixels.

    Raises:
        ReleaseError: sealed, or nothing was written.
    """
    pairs = read_links(release)
    if not pairs:
        raise ReleaseError(f"{release}: nothing was written, so there is nothing to show")
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(count, len(pairs))).astype(int)]
    load, published = open_source(source).load, opened(release).load
    tiles = [
        np.hstack([_tile(decode(load(before)), side), _tile(decode(published(after)), side)])
        for before, after in chosen
    ]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return encode(np.vstack(rows), "png")


def _tile(image: Pixels, side: int) -> Pixels:
    """The picture fitted into a white square with a rim."""
    inner = side - 4
    scale = inner / max(image.shape[:2])
    shape = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    tile = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - shape[1]) // 2, (side - shape[0]) // 2
    tile[top : top + shape[1], left : left + shape[0]] = cv2.resize(
        image, shape, interpolation=method
    )
    return tile
