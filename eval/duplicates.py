"""Pictures that occur twice: the same pixels, or the same picture encoded or resized again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from anonymize.eval.stats import Array
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anonymize.record import Floats, Pixels

RADIUS = 3
"""Bits by which the hashes of two versions of a picture may differ."""

BANDS, BAND = 4, 16
"""More bands than `RADIUS`, so that at least one of them is equal (Norouzi et al. 2012)."""

ALIKE = 0.98
"""Least correlation of two thumbnails that show one picture: re-encoding at quality 20 and halving
leave more than 0.999, and other pictures with near hashes have less than 0.96."""

FLAT = 2.0
"""Grey levels of contrast below which a picture has no structure to be hashed."""

BLOCK = 1024


def digest(image: Pixels) -> bytes:
    """16 bytes of SHA-256 over a picture's size and pixels: equal for lossless copies only."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()[:16]


def thumbnail(image: Pixels, side: int) -> Floats:
    """(side, side) float32 grey levels, each the mean of what it covers."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(cv2.resize(grey, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def perceptual(image: Pixels) -> int | None:
    """The 64-bit DCT hash of a picture (pHash, Zauner 2010); None for one without structure.

    Bit i says whether the i-th of the 8 x 8 lowest frequencies of the 32 x 32 thumbnail is above
    their median.
    """
    small = thumbnail(image, 32)
    if small.std() < FLAT:
        return None
    low = cv2.dct(small)[:8, :8].ravel()
    bits = low > np.median(low[1:])
    return int(np.packbits(bits).view(">u8")[0])


def same(digests: Array) -> Array:
    """(K, 2) links between pictures of equal digest, each to the first of its kind.

    Args:
        digests: (N, 16) uint8.
    """
    if not len(digests):
        return np.zeros((0, 2), np.int64)
    rows = np.ascontiguousarray(digests).view(np.dtype((np.void, digests.shape[1])))[:, 0]
    return _to_first(rows)


def _to_first(values: Array) -> Array:
    _, first, back = np.unique(values, return_index=True, return_inverse=True)
    rows = np.arange(len(values))
    links = np.stack([first[back.ravel()], rows], 1)
    return np.asarray(links[links[:, 0] != links[:, 1]])


def near(hashes: Array) -> Array:
    """(K, 2) links between pictures whose hashes differ by at most `RADIUS` bits, smaller first.

    Hashes are put into buckets by each of four bands of 16 bits and compared within these, so the
    work grows with the fullness of buckets and not with the square of N.

    Args:
        hashes: (N,) uint64.
    """
    links = [_to_first(hashes)]
    values, first = np.unique(hashes, return_index=True)
    for band in range(BANDS):
        keys = (values >> np.uint64(BAND * band)).astype(np.uint16)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        buckets = (bucket for bucket in np.split(order, edges) if len(bucket) > 1)
        links += [np.sort(first[_close(values, bucket)], axis=1) for bucket in buckets]
    return np.unique(np.concatenate(links), axis=0)


def _close(values: Array, bucket: Array) -> Array:
    """(K, 2) members of one bucket that are near each other."""
    found = []
    for start in range(0, len(bucket), BLOCK):
        block = bucket[start : start + BLOCK]
        gaps = np.bitwise_count(values[block][:, None] ^ values[bucket][None])
        left, right = np.nonzero(gaps <= RADIUS)
        later = left + start < right
        found.append(np.stack([block[left[later]], bucket[right[later]]], 1))
    return np.concatenate(found)


def alike(links: Array, thumbnails: Mapping[int, Floats]) -> Array:
    """Those of the (K, 2) links whose two thumbnails correlate by at least `ALIKE`."""

    def flat(number: int) -> Floats:
        small = thumbnails[number].ravel() - thumbnails[number].mean()
        return np.asarray(small / max(float(np.linalg.norm(small)), 1e-9))

    kept = [
        a in thumbnails and b in thumbnails and float(flat(a) @ flat(b)) >= ALIKE
        for a, b in links.tolist()
    ]
    return np.asarray(links[np.array(kept, bool)])


@dataclass(frozen=True, slots=True)
class Group:
    """Pictures that are one: whether their pixels are equal, and whether people share them."""

    pictures: tuple[int, ...]
    exact: bool
    across: bool


def groups(links: Iterable[Array], exact: Array, people: Array) -> list[Group]:
    """Pictures joined by links, in order of the first of each group.

    Args:
        links: arrays (K, 2) of picture numbers.
        exact: those (K, 2) of them that say that pixels are equal.
        people: (N,) whose picture each is, -1 where nobody says.
    """
    joined = np.concatenate([np.zeros((0, 2), np.int64), *links])
    alone = _component(exact, len(people))
    parts = _component(joined, len(people))
    members: dict[int, list[int]] = {}
    for number in np.unique(joined).tolist():
        members.setdefault(int(parts[number]), []).append(number)
    return [
        Group(
            tuple(numbers),
            exact=len(set(alone[numbers].tolist())) == 1,
            across=len(set(people[numbers].tolist()) - {-1}) > 1,
        )
        for numbers in members.values()
    ]


def _component(links: Array, count: int) -> Array:
    """(count,) the component that each picture belongs to."""
    ones = np.ones(len(links), bool)
    graph = coo_array((ones, (links[:, 0], links[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])
