"""Images of every format and mode as RGB, and images that are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from harness.data.image_io import read_image
from harness.utils.errors import DataError
from tests.support.image_folders import RANDOM, make_class_folders, random_image, refusal, save_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_image_becomes_rgb():
    rgb = random_image((4, 6))
    grey = rgb[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    deep = RANDOM.integers(0, 65536, (4, 6)).astype(np.uint16)
    alpha = np.dstack([rgb, np.where(np.arange(24).reshape(4, 6) % 2, 255, 0).astype(np.uint8)])
    white = np.where(alpha[..., 3:] == 255, rgb, 255)
    palette = Image.fromarray(rgb).quantize(16)
    cases = {
        "RGB": (encoded(Image.fromarray(rgb)), rgb),
        "grey": (encoded(Image.fromarray(grey)), three),
        "16 bit": (encoded(Image.fromarray(deep)), np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, 2)),
        "16 bit TIFF": (encoded(Image.fromarray(deep), "TIFF"), np.repeat(np.rint(deep / 257).astype(np.uint8)[..., None], 3, 2)),
        "alpha": (encoded(Image.fromarray(alpha)), white),
        "grey and alpha": (encoded(Image.fromarray(np.dstack([grey, alpha[..., 3]]))), np.where(alpha[..., 3:] == 255, three, 255)),
        "palette": (encoded(palette), np.asarray(palette.convert("RGB"))),
        "CMYK": (encoded(Image.fromarray(rgb).convert("CMYK"), "TIFF"), np.asarray(Image.fromarray(rgb).convert("CMYK").convert("RGB"))),
        "1 bit": (encoded(Image.fromarray(grey > 99)), np.repeat((grey > 99)[..., None] * np.uint8(255), 3, 2)),
        "1 x 1": (encoded(Image.fromarray(rgb[:1, :1])), rgb[:1, :1]),
    }  # fmt: skip
    for name, (content, expected) in cases.items():
        result = read_image(content)
        assert result.dtype == np.uint8, name
        np.testing.assert_array_equal(result, expected, err_msg=name)


def test_transparent_palette_entries_become_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(read_image(encoded(image, transparency=0)), [[[255, 255, 255], [40, 50, 60]]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    rgb = random_image((4, 6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: rgb, 2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb),
    }  # fmt: skip
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(rgb), exif=exif)), turned[orientation])


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.fromarray(np.full((3, 3, 3), value, np.uint8)) for value in (10, 200)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(content), np.full((3, 3, 3), 10))


def png_header(width, height):
    """Return a PNG whose header claims that size, without pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I4s", 99, b"IDAT")
    )


@pytest.mark.parametrize("side", [8_000, 10_000, 14_000])
def test_a_huge_image_is_refused_by_its_header(tmp_path, side):
    with pytest.raises(DataError, match="more than 50,000,000"):
        read_image(png_header(side, side))
    make_class_folders(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(png_header(side, side))
    assert "train/cat/0.png" in refusal(DataError, tmp_path)


def test_a_format_that_would_start_another_program_is_not_read():
    with pytest.raises(DataError, match="not an image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def test_an_image_is_read_from_a_path_a_file_or_bytes(tmp_path):
    path = save_image(tmp_path / "1.png", rgb := random_image())
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            np.testing.assert_array_equal(read_image(source), rgb)
    with pytest.raises(DataError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")
