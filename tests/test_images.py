"""Decoding: every kind of picture file becomes upright RGB, or is withheld with a reason."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anonymize.errors import Withhold
from anonymize.images import decode, encode, metadata, padded, read

RED = np.full((20, 30, 3), (200, 40, 20), np.uint8)


def saved(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG"])
def test_rgb_survives_every_format(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(saved(Image.fromarray(RED), kind, **options))
    assert image.shape == RED.shape
    assert np.abs(image.astype(int) - RED).max() <= (8 if kind == "JPEG" else 0)


def test_exif_orientation_is_applied() -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[0, 0] = 255
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: the stored top left is the upright top right
    image = decode(saved(Image.fromarray(picture), "PNG", exif=exif))
    assert image.shape == (30, 20, 3)
    assert image[0, -1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("LA", (90, 255), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("I;16", 257 * 90, (90, 90, 90)),
    ],
)
def test_modes_become_rgb(mode: str, value: object, expected: tuple[int, int, int]) -> None:
    image = decode(saved(Image.new(mode, (8, 8), value)))  # type: ignore[arg-type]
    assert image.dtype == np.uint8
    assert image[4, 4].tolist() == list(expected)


def test_palette_and_cmyk_become_rgb() -> None:
    palette = Image.fromarray(RED).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.abs(decode(saved(palette)).astype(int) - RED).max() <= 2
    cmyk = Image.fromarray(RED).convert("CMYK")
    assert np.abs(decode(saved(cmyk, "TIFF")).astype(int) - RED).max() <= 2


def test_16_bit_rgb_png() -> None:
    row = b"\0" + struct.pack(">HHH", 65535, 257 * 90, 0) * 4
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 2, 16, 2, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(row * 2)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    image = decode(b"\x89PNG\r\n\x1a\n" + body)
    assert image[0, 0].tolist() == [255, 90, 0]


def huge_bmp() -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def animated() -> bytes:
    frames = [Image.new("RGB", (8, 8), (i * 90, 0, 0)) for i in range(3)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "file is empty"),
        (b"a shopping list", "file is not a picture"),
        (encode(RED)[:200], "damaged or cut short|not a picture"),
        (saved(Image.fromarray(RED))[:60], "damaged or cut short|not a picture"),
        (huge_bmp(), "^picture is too large$"),
        (animated(), "animated"),
    ],
)
def test_bad_files_are_withheld_with_their_reason(data: bytes, reason: str) -> None:
    with pytest.raises(Withhold, match=reason):
        decode(data)


def test_things_that_are_no_files_are_withheld(tmp_path: Path) -> None:
    os.symlink(tmp_path / "b.jpg", tmp_path / "a.jpg")
    os.symlink(tmp_path / "a.jpg", tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("a.jpg", "pipe.jpg", "folder.jpg", "absent.jpg"):
        with pytest.raises(Withhold, match="not a readable file"):
            read(tmp_path / name)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 600))
def test_random_damage_never_crashes_the_decoder(noise: bytes, where: int) -> None:
    data = bytearray(encode(RED))
    data[where : where + len(noise)] = noise
    with contextlib.suppress(Withhold):
        assert decode(bytes(data)).dtype == np.uint8


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_encoded_files_hold_nothing_but_pixels(kind: str) -> None:
    with Image.open(io.BytesIO(encode(RED, kind))) as picture:
        assert set(picture.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert not picture.getexif()


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_padding_changes_nothing_but_the_size(kind: str) -> None:
    rng = np.random.default_rng(0)
    for side in (8, 33, 100, 217):
        image = rng.integers(0, 256, (side, side, 3), np.uint8)
        data = encode(image, kind)
        filled = padded(data, kind)
        assert len(filled) >= len(data)
        assert len(filled).bit_count() == 1
        assert (decode(filled) == decode(data)).all()
        bgr = cv2.imdecode(np.frombuffer(filled, np.uint8), cv2.IMREAD_COLOR)
        assert (bgr[..., ::-1] == decode(data)).all()
        assert not (metadata(filled).keys() - metadata(data).keys())
        with Image.open(io.BytesIO(filled)) as picture:
            picture.verify()
