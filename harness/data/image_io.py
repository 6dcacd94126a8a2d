"""Decode an image file of any supported format as RGB, as grey, or with the channels that it has."""

from __future__ import annotations

import hashlib
import math
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from harness.utils.errors import DataError
from harness.utils.text import counted, escape_unprintable

# An image of one or three channels is of Pillow, others are uint8 [H, W, C].
Picture: TypeAlias = Image.Image | np.ndarray
RGB, GREY = 3, 1  # numbers of channels
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


SKIP_REMEDY = "set --bad-images skip to leave such images out"


def is_image_name(name: str) -> bool:
    """Return whether a file name has the extension of an image format."""
    return name.lower().endswith(SUFFIXES)


def image_files(paths: Path | str | Sequence[Path | str]) -> Iterator[tuple[Path, Path]]:
    """Yield image files, each with its place among the results: each file as given, each folder's images at any depth, sorted.

    The place of a file is its name, that of a folder's image its path below the folder; where several paths are given, it
    begins with the name of the folder.

    Raises:
        DataError: a path does not exist, or a folder holds no images.
    """
    given = [Path(one).expanduser() for one in ([paths] if isinstance(paths, Path | str) else paths)]
    for path in given:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and is_image_name(file.name))
            if not files:
                raise DataError(f"{path} holds no images")
            start = Path(path.absolute().name) if len(given) > 1 else Path()
            yield from ((file, start / file.relative_to(path)) for file in files)
        elif path.is_file():
            yield path, Path(path.name)
        else:
            raise DataError(f"no such image: {path}")


class ChannelsError(ValueError):
    """An image has another number of channels than is needed."""


def read_image(
    file: str | Path | bytes | BinaryIO,
    name: str = "",
    grey_range: tuple[float, float] | None = None,
    channels: int = RGB,
) -> np.ndarray:
    """Return an image as uint8 [H, W, channels]: RGB by default, or by the rules of `to_channels`.

    The EXIF orientation is applied, transparent areas become white, grey values deeper than 8 bits are scaled to 8, and
    grey, palette and CMYK images are converted. Of an animation the first frame is returned.

    Args:
        file: a path, the contents of a file, or an open binary file.
        name: the name that error messages use; the path by default.
        grey_range: values deeper than 8 bits that become black and white; None: those that the file declares.

    Raises:
        DataError: the file is missing, not an image, damaged, truncated, has over 50 million pixels, deep grey values
            of no declared range, or another number of channels.
    """
    with _opened(file, name) as image:
        return np.array(as_pixels(to_channels(image, channels, grey_range)))


def check_header(
    file: str | Path | bytes, name: str = "", grey_range: tuple[float, float] | None = None, channels: int = RGB
) -> None:
    """Check the header of an image without decoding its pixels.

    Raises:
        DataError: the file is missing, not an image, has over 50 million pixels, deep grey values of no declared
            range, or another number of channels.
    """
    with _opened(file, name) as image:
        if channels not in (RGB, GREY):
            _check_bands(image, channels)
        elif _is_deep(image) and not (grey_range or _declared_range(image)):
            to_rgb(image)  # raises the error with the values


def stored_shape(file: str | Path | bytes, name: str = "") -> tuple[int, int]:
    """Return the height and width of an image from its header, before an EXIF orientation is applied.

    Raises:
        DataError: the file is missing, not an image, or has over 50 million pixels.
    """
    with _opened(file, name) as image:
        return image.height, image.width


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What an image file is, and what becomes of it.

    Attributes:
        format, mode: as Pillow names them; empty where the file is no image.
        width, height: pixels, as stored.
        is_deep: whether it is grey and deeper than 8 bits.
        is_grey: whether its channels are equal, or it has one.
        is_transparent: whether it has transparent areas, which become white.
        is_animated: whether it has more than one frame, of which the first is used.
        is_turned: whether its EXIF orientation turns or mirrors it.
        digest: of its pixels as they are used, mostly in RGB; empty where it cannot be read.
        error: why it cannot be read.
    """

    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    is_deep: bool = False
    is_grey: bool = False
    is_transparent: bool = False
    is_animated: bool = False
    is_turned: bool = False
    digest: bytes = b""
    error: str = ""


def inspect_image(
    file: str | Path | bytes, grey_range: tuple[float, float] | None = None, channels: int = RGB
) -> ImageFacts:
    """Decode an image and return what it is; an unreadable one is no error."""
    facts: dict[str, Any] = {}
    try:
        with _open_image(BytesIO(file) if isinstance(file, bytes) else file, "_") as image:
            facts = dict(
                format=image.format or "", mode=image.mode, width=image.width, height=image.height, is_deep=_is_deep(image),
                is_transparent=image.has_transparency_data, is_animated=bool(getattr(image, "is_animated", False)),
                is_turned=image.getexif().get(_ORIENTATION, 1) != 1,
            )  # fmt: skip
            pixels = as_pixels(to_channels(image, channels, grey_range))
            return ImageFacts(**facts, is_grey=is_grey(pixels), digest=pixel_digest(pixels))
    except DataError as error:
        return ImageFacts(**facts, error=str(error).removeprefix("_: "))
    except _DECODE_ERRORS as error:
        return ImageFacts(**facts, error=_reason(error))


def is_grey(pixels: np.ndarray) -> bool:
    """Return whether an image, uint8 [H, W, C], has one channel, or three equal ones."""
    first = pixels[..., :1]
    return pixels.shape[2] in (GREY, RGB) and bool((first[0] == pixels[0]).all() and (first == pixels).all())


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return a digest that two images share only if they have the same pixels, uint8 [H, W, C]."""
    return hashlib.blake2b(
        np.ascontiguousarray(pixels).data, digest_size=16, person=str(pixels.shape[:2]).encode()[:16]
    ).digest()


def to_rgb(image: Image.Image, grey_range: tuple[float, float] | None = None) -> Image.Image:
    """Return the image upright and in mode RGB, by the rules of `read_image`.

    Raises:
        ValueError: the grey values are deeper than 8 bits and have no declared range.
    """
    if image.mode == "RGB" and "transparency" not in image.info and image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    is_deep = _is_deep(image)
    limits = (grey_range or _declared_range(image)) if is_deep else None
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if is_deep:
        return _scale_grey(image, limits)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def to_channels(picture: Picture, channels: int, grey_range: tuple[float, float] | None = None) -> Picture:
    """Return an image upright, with `channels` channels.

    Three are those of `to_rgb`. One is the luma of these (ITU-R 601, as Pillow's mode L). Other numbers are those that the
    image has as it is stored: of an RGBA image four, of a grey one with transparency two.

    Args:
        picture: of Pillow, or uint8 [H, W, C].

    Raises:
        ChannelsError: the image has another number of channels.
        ValueError: the grey values are deeper than 8 bits and have no declared range.
    """
    image = as_picture(picture) if isinstance(picture, np.ndarray) else picture
    if isinstance(image, Image.Image) and channels == RGB:
        return to_rgb(image, grey_range)
    if isinstance(image, Image.Image) and channels == GREY:
        is_plain = image.mode == "L" and "transparency" not in image.info and image.getexif().get(_ORIENTATION, 1) == 1
        return image if is_plain else to_rgb(image, grey_range).convert("L")
    _check_bands(image, channels)
    return image if isinstance(image, np.ndarray) else np.asarray(ImageOps.exif_transpose(image))


def as_picture(pixels: np.ndarray) -> Picture:
    """Return pixels, uint8 [H, W, C], as a source of images gives them: as an image of Pillow where C is 1 or 3."""
    if pixels.shape[2] == GREY:
        return Image.fromarray(pixels[..., 0])
    return Image.fromarray(pixels) if pixels.shape[2] == RGB else pixels


def as_pixels(picture: Picture) -> np.ndarray:
    """Return the pixels of an image, uint8 [H, W, C]."""
    pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def shown_as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Return how an image, uint8 [H, W, C], is shown, uint8 [H, W, 3].

    One channel is grey, and three or more show the first three as red, green and blue; of two, blue is black.
    """
    channels = pixels.shape[2]
    if channels == GREY:
        return np.repeat(pixels, RGB, 2)
    return pixels[..., :RGB] if channels >= RGB else np.pad(pixels, ((0, 0), (0, 0), (0, RGB - channels)))


def grey_batch(pixels: np.ndarray) -> np.ndarray:
    """Return the luma of RGB images, uint8 [N, H, W, 3], as uint8 [N, H, W, 1]."""
    if not pixels.size:
        return pixels[..., :GREY]
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in pixels])


def _check_bands(picture: Picture, channels: int) -> None:
    """Raise ChannelsError where an image does not have this number of channels of 8 bits."""
    if isinstance(picture, np.ndarray):
        if picture.ndim != 3 or picture.shape[2] != channels:
            raise ChannelsError(f"the image has the shape {list(picture.shape)}, and in_chans={channels}")
    elif len(picture.getbands()) != channels or picture.mode == "PA":  # whose first band is an index
        has = counted(len(picture.getbands()), "channel", "channels")
        raise ChannelsError(
            f"an image of {has} ({picture.mode}), and in_chans={channels}; a run with --in-chans 3 or 1 converts every image"
        )


def unused_range(files: Sequence[str | bytes]) -> tuple[float, float, float] | None:
    """Return the least and the greatest value of some deep grey images, and the one that becomes white.

    None where there are none, or where they use at least an eighth of the range that the files declare.
    """
    lowest, highest, white = math.inf, -math.inf, 0.0
    for file in files:
        try:
            with _open_image(BytesIO(file) if isinstance(file, bytes) else file, "") as image:
                if not _is_deep(image) or not (limits := _declared_range(image)):
                    return None
                values = np.asarray(image)
        except (DataError, *_DECODE_ERRORS):
            continue  # reported when all images are read
        lowest, highest, white = min(lowest, float(values.min())), max(highest, float(values.max())), limits[1]
    return (lowest, highest, white) if lowest < highest and 8 * (highest - lowest) < white else None


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image is grey and deeper than 8 bits: integers of 16 or 32 bits, or floats."""
    return image.mode == "F" or image.mode.startswith("I")


def _scale_grey(image: Image.Image, limits: tuple[float, float] | None) -> Image.Image:
    """Return a grey image deeper than 8 bits in RGB: the limits become 0 and 255, values beyond them too."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite; save it with 8 or 16 bits")
    if limits is None:
        lowest, highest = (f"{value:g}" for value in (values.min(), values.max()))
        raise ValueError(
            f"grey values {lowest} to {highest} of a kind that declares no range; set --grey-range LOW,HIGH to the range of the whole data set"
        )
    low, high = limits
    scaled = (
        np.floor((values - low) * (255 / (high - low)) + 0.5) if (low, high) != (0, 65535) else (values + 128) // 257
    )
    return Image.fromarray(np.clip(scaled, 0, 255).astype(np.uint8)).convert("RGB")


def _declared_range(image: Image.Image) -> tuple[float, float] | None:
    """Return the range of a deep grey image: of its TIFF tags, or of 16 bits without sign."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        for lowest, highest in ((280, 281), (340, 341)):  # MinSampleValue, SMinSampleValue, each with its maximum
            low, high = (np.ravel(tags.get(tag, default)) for tag, default in ((lowest, 0), (highest, ())))
            if high.size and float(low[0]) < float(high[0]):
                return float(low[0]), float(high[0])
    # Pillow scales PPM, whose header declares the maximum, to 16 bits.
    return (0, 65535) if image.mode.startswith("I;16") or image.format == "PPM" else None


@contextmanager
def _opened(file: str | Path | bytes | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image; what is wrong with it, also when it is used, is an error with its name."""
    name = escape_unprintable(name or (str(file) if isinstance(file, str | Path) else "image"))
    try:
        with _open_image(BytesIO(file) if isinstance(file, bytes) else file, name) as image:
            yield image
    except _DECODE_ERRORS as error:
        raise DataError(f"{name}: {_reason(error)}") from None


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
    if isinstance(error, ChannelsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).splitlines()
    return f"damaged image ({escape_unprintable(lines[0]) if lines else type(error).__name__})"
