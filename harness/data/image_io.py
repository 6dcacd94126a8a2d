"""Decode an image file of any supported format as RGB."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from harness.utils.errors import DataError
from harness.utils.text import escape_unprintable

MAX_PIXELS = 50_000_000
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
    ".avif", ".jp2",
)  # fmt: skip
# Only formats that Pillow decodes itself: EPS, for example, would start Ghostscript on an untrusted file.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag
# What Pillow's decoders raise on damaged files; these errors have no common base class.
_DECODE_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
    NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip

# Pillow warns from 89 million pixels on; MAX_PIXELS is lower and is an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of an image format."""
    return name.lower().endswith(SUFFIXES)


def image_files(paths: Path | str | Sequence[Path | str]) -> Iterator[Path]:
    """Yield picture files: each file as given, each folder's pictures at any depth, sorted.

    Raises:
        DataError: a path does not exist, or a folder holds no pictures.
    """
    for path in (Path(one).expanduser() for one in ([paths] if isinstance(paths, Path | str) else paths)):
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and is_image_name(file.name))
            if not files:
                raise DataError(f"{path} holds no pictures")
            yield from files
        elif path.is_file():
            yield path
        else:
            raise DataError(f"no such picture: {path}")


def read_image(file: str | Path | bytes | BinaryIO, name: str = "") -> np.ndarray:
    """Return an image as uint8 [H, W, 3], RGB.

    The EXIF orientation is applied, transparent areas become white, 16 bits are scaled to 8, and grey, palette and
    CMYK images are converted. Of an animation the first frame is returned.

    Args:
        file: a path, the contents of a file, or an open binary file.
        name: the name that error messages use; the path by default.

    Raises:
        DataError: the file is missing, not an image, damaged, truncated, or has over 50 million pixels.
    """
    name = escape_unprintable(name or (str(file) if isinstance(file, str | Path) else "image"))
    try:
        with _open_image(BytesIO(file) if isinstance(file, bytes) else file, name) as image:
            return np.array(to_rgb(image))
    except _DECODE_ERRORS as error:
        raise DataError(f"{name}: {_reason(error)}") from None


def check_header(file: str | Path | bytes, name: str = "") -> None:
    """Check the header of an image without decoding its pixels.

    Raises:
        DataError: the file is missing, not an image, or has over 50 million pixels.
    """
    name = escape_unprintable(name or (str(file) if isinstance(file, str | Path) else "image"))
    try:
        _open_image(BytesIO(file) if isinstance(file, bytes) else file, name).close()
    except _DECODE_ERRORS as error:
        raise DataError(f"{name}: {_reason(error)}") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the image upright and in mode RGB, by the rules of `read_image`.

    Raises:
        ValueError: the pixels are floats or wider than 16 bits, for which there is no standard scale.
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise ValueError("pixels wider than 16 bits; save it with 8 or 16")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("float pixels; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _open_image(file: str | Path | BinaryIO, name: str) -> Image.Image:
    image = Image.open(file, formats=_formats())
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise DataError(f"{name}: {width} x {height} pixels, more than {MAX_PIXELS:,}; make it smaller")
    return image


@cache
def _formats() -> tuple[str, ...]:
    """Return the supported formats that this build of Pillow has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_PIXELS:,} pixels; make it smaller"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or one of an unsupported format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return f"damaged image ({escape_unprintable(lines[0]) if lines else type(error).__name__})"
