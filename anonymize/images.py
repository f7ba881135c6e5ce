"""Picture files to upright RGB arrays and back: the only place that decodes and encodes."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    ImageOps,
    IptcImagePlugin,
    UnidentifiedImageError,
)

from anonymize.errors import Withhold
from anonymize.record import Pixels

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
MAX_PIXELS = 100_000_000
MAX_BYTES = 1 << 28
FORMATS = {"jpg": ".jpg", "png": ".png"}

# The limit is checked here, from the header and with a reason; Pillow's own would come first.
Image.MAX_IMAGE_PIXELS = None


def read(path: Path, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decodes a picture file.

    EXIF orientation is applied; grey, palette and CMYK become RGB; 16 bits per channel become 8;
    transparency is laid on white, so that what it hid stays hidden.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        Withhold: the file cannot be read, is no picture, is cut short, too large or animated.
    """
    return decode(read_file(path), max_pixels)


def read_file(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        Withhold: not a file that can be read.
    """
    try:
        if not path.is_file():  # a pipe would block for ever, a link in a loop never ends
            raise Withhold("not a readable file")
        limited(path.stat().st_size)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise Withhold("not a readable file") from error


def read_part(path: Path, start: int, length: int) -> bytes:
    """So many bytes of a file from an offset on.

    Raises:
        Withhold: more than a picture may have, not a file that can be read, or it ends before.
    """
    limited(length)
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(length)
    except OSError as error:
        raise Withhold("not a readable file") from error
    if len(data) < length:
        raise Withhold("file is cut short")
    return data


def limited(size: int) -> None:
    """Refuses to read pictures of more than `MAX_BYTES`.

    Raises:
        Withhold: `size` is greater.
    """
    if size > MAX_BYTES:
        raise Withhold("file is too large")


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """As `read`, from the bytes of a file."""
    if not data:
        raise Withhold("file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                _check(picture, max_pixels)
                return _rgb(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:
        raise Withhold("file is not a picture") from error
    except (OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise Withhold("picture is damaged or cut short") from error


def _check(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise Withhold("picture is too large")
    # phones put a preview or depth map behind the picture (MPO); those are not animations
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        raise Withhold("picture is animated or has several pages")


def _rgb(picture: Image.Image) -> Pixels:
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow would clip instead of scale
        grey = np.clip(np.asarray(picture).astype(np.int64) // 257, 0, 255)
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if "A" in picture.getbands() or "transparency" in picture.info:
        layers = picture.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        picture = Image.alpha_composite(white, layers)
    return np.array(picture.convert("RGB"), np.uint8)


DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, AttributeError),
    *(struct.error, MemoryError, OverflowError),
)
"""What Pillow raises over files that are not what they should be."""


def metadata(data: bytes) -> dict[str, str]:
    """What a picture file holds beside its pixels: texts by the name of their tag.

    Names are EXIF's own (`GPSLatitude`, `Artist`, `BodySerialNumber`, ...), `Thumbnail` for the
    small picture within EXIF, `AttachedPictures` for those behind the first (MPO), `IPTC 2:80` and
    the like for IPTC's data sets, and `xmp`, `icc_profile`, `comment` or a PNG's own keys.
    `damaged` stands for a part that cannot be read.

    Raises:
        Withhold: the file is no picture, or damaged as a whole.
    """
    found: dict[str, str] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as picture:
                _check(picture, MAX_PIXELS)
                if picture.format == "PNG":
                    picture.load()  # a PNG's texts may stand behind its pixels
                for part in (_info, _iptc, _exif):
                    try:
                        found |= part(picture)
                    except DAMAGE as error:
                        found["damaged"] = str(error)
    except UnidentifiedImageError as error:
        raise Withhold("file is not a picture") from error
    except DAMAGE as error:
        raise Withhold("picture is damaged or cut short") from error
    return found


STRUCTURE = frozenset({"exif", "dpi", "gamma", "jfif", "progressive", "adobe", "transparency"})
"""What Pillow reports of a file beside texts; prefixes of such names."""


def _info(picture: ImageFile.ImageFile) -> dict[str, str]:
    """What Pillow finds on opening: XMP, ICC, comments, a PNG's keys, further pictures."""
    names = {"XML:com.adobe.xmp": "xmp", "Raw profile type xmp": "xmp"}
    behind = getattr(picture, "n_frames", 1) - 1 if picture.format == "MPO" else 0
    attached = {"AttachedPictures": str(behind)} if behind else {}
    return attached | {
        names.get(str(name), str(name)): _text(value)
        for name, value in picture.info.items()
        if isinstance(value, str | bytes) and not str(name).startswith(tuple(STRUCTURE))
    }


def _iptc(picture: ImageFile.ImageFile) -> dict[str, str]:
    sets = IptcImagePlugin.getiptcinfo(picture) or {}
    return {f"IPTC {record}:{number}": _text(value) for (record, number), value in sets.items()}


def _exif(picture: ImageFile.ImageFile) -> dict[str, str]:
    """Tags of the main, the Exif and the GPS directory, and whether there is a thumbnail."""
    exif = picture.getexif()
    tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    found = {ExifTags.TAGS.get(tag, f"tag {tag}"): _text(value) for tag, value in tags.items()}
    places = exif.get_ifd(ExifTags.IFD.GPSInfo)
    found |= {ExifTags.GPSTAGS.get(tag, f"GPS {tag}"): _text(v) for tag, v in places.items()}
    small = exif.get_ifd(ExifTags.IFD.IFD1)
    if ExifTags.Base.JpegIFOffset in small or ExifTags.Base.StripOffsets in small:
        found["Thumbnail"] = f"{small.get(ExifTags.Base.JpegIFByteCount, '?')} bytes"
    return found


def _text(value: object) -> str:
    if not isinstance(value, bytes):
        return str(value).strip("\0 ")
    wide = len(value) > 3 and not value[1] and not value[3]  # Windows' tags are UTF-16
    return value.decode("utf-16-le" if wide else "utf-8", "replace").replace("\0", "").strip()


def encode(image: Pixels, kind: str = "jpg", quality: int = 95) -> bytes:
    """Encodes (H, W, 3) uint8 RGB as a file that holds pixels and nothing else.

    Args:
        image: the pixels.
        kind: `jpg` or `png`.
        quality: of JPEG, 1..100.
    """
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if kind == "jpg" else []
    done, data = cv2.imencode(FORMATS[kind], np.ascontiguousarray(image[..., ::-1]), options)
    if not done:
        raise ValueError(f"cannot encode an array of shape {image.shape} as {kind}")
    return data.tobytes()


def padded(data: bytes, kind: str = "jpg") -> bytes:
    """An encoded picture filled up to a power of two, so that its size hardly tells it apart.

    JPEG may have any number of fill bytes before a marker (ITU-T T.81, B.1.1.2); PNG gets a private
    chunk that decoders pass over (ISO/IEC 15948, 14).
    """
    least = 0 if kind == "jpg" else 12
    missing = (1 << (len(data) + least - 1).bit_length()) - len(data)
    if kind == "jpg":
        return data[:-2] + b"\xff" * missing + data[-2:]
    body = b"paDd" + bytes(missing - 12)
    chunk = (missing - 12).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:-12] + chunk + data[-12:]
