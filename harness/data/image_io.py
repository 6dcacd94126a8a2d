"""One picture out of a file, whatever its kind, as plain RGB bytes."""

from __future__ import annotations

import struct
import warnings
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from harness.utils.errors import DataError

MAX_PIXELS = 50_000_000
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif", ".jp2",
)  # fmt: skip
# Only formats that Pillow decodes itself: EPS, for one, would start Ghostscript on a file that we do not trust.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag
# What Pillow's decoders were seen to raise on damaged files; it has no common class for them.
_DAMAGED = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

# Pillow warns from 89 million pixels on; our own bound is lower and is an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def plain_name(name: str) -> str:
    """`name` with everything that does not print (control characters, undecodable bytes) written as an escape."""
    if name.isprintable():
        return name
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def is_image_name(name: str) -> bool:
    """Whether a file name ends like a picture's."""
    return name.lower().endswith(SUFFIXES)


def read_image(file: str | Path | bytes | BinaryIO, name: str = "") -> np.ndarray:
    """The picture as uint8 [H, W, 3], RGB.

    EXIF orientation is applied, transparency is laid on white, 16 bits are scaled to 8, grey, palette and CMYK are
    converted, of an animation the first frame is taken.

    Args:
        file: a path, the bytes of a file, or an open binary file.
        name: what errors call it; by default the path.

    Raises:
        DataError: the file is missing, no picture, damaged, truncated, or has over 50 million pixels.
    """
    name = plain_name(name or (str(file) if isinstance(file, str | Path) else "picture"))
    try:
        with _opened(BytesIO(file) if isinstance(file, bytes) else file, name) as image:
            return np.array(to_rgb(image))
    except _DAMAGED as error:
        raise DataError(f"{name}: {_reason(error)}") from None


def check_header(file: str | Path | bytes, name: str = "") -> None:
    """Reads no more than the header of a picture.

    Raises:
        DataError: it is missing, no picture, or has over 50 million pixels.
    """
    name = plain_name(name or (str(file) if isinstance(file, str | Path) else "picture"))
    try:
        _opened(BytesIO(file) if isinstance(file, bytes) else file, name).close()
    except _DAMAGED as error:
        raise DataError(f"{name}: {_reason(error)}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in mode RGB, upright; see `read_image` for the rules.

    Raises:
        ValueError: its pixels are floats or wider than 16 bits, which have no agreed scale.
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.size and not 0 <= deep.min() <= deep.max() <= 65535:
            raise ValueError("pixels wider than 16 bits; save it with 8 or 16")
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("float pixels; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _opened(file: str | Path | BinaryIO, name: str) -> Image.Image:
    image = Image.open(file, formats=_formats())
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise DataError(f"{name}: {width} x {height} pixels, more than {MAX_PIXELS:,}; make it smaller")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Those formats that this build of Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_PIXELS:,} pixels; make it smaller"
    if isinstance(error, Image.UnidentifiedImageError):
        return "no picture, or one of an unknown kind"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return f"damaged picture ({plain_name(lines[0]) if lines else type(error).__name__})"
