"""Images of every format and mode as RGB, and images that are refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from harness.config.settings import Config
from harness.data.image_io import check_header, grey_batch, inspect_image, read_image
from harness.data.registry import load_dataset
from harness.utils.errors import DataError, UsageError
from tests.support.image_folders import load_folder, make_class_folders, random_image, refusal, save_image


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_kind_of_image_becomes_rgb():
    rgb = random_image((4, 6))
    grey = rgb[..., 0]
    three = np.repeat(grey[..., None], 3, 2)
    deep = np.random.default_rng(0).integers(0, 65536, (4, 6)).astype(np.uint16)
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
    error = inspect_image(png_header(side, side)).error
    assert "more than 50,000,000" in error and not error.startswith("_")
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


DEEP = np.arange(256).reshape(16, 16)


@pytest.mark.parametrize(
    ("values", "kind", "options"),
    [
        (DEEP.astype(np.int32), "TIFF", {}),
        (DEEP.astype(np.float32), "TIFF", {}),
        (DEEP.astype(np.int16) - 5, "TIFF", {}),
        (DEEP.astype(np.float32) * np.nan, "TIFF", {}),
    ],
)
def test_deep_grey_images_that_declare_no_range_are_refused_with_the_setting(values, kind, options):
    content = encoded(Image.fromarray(values), kind, **options)
    for read in (read_image, check_header):
        with pytest.raises(DataError, match="--grey-range LOW,HIGH" if np.isfinite(values).all() else "not finite"):
            read(content)


@pytest.mark.parametrize("dtype", [np.int32, np.float32, np.uint16, np.int16])
@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 4095), (-100, 300), (50, 60)])
def test_a_range_of_grey_values_is_scaled_linearly_from_black_to_white(dtype, low, high):
    values = np.linspace(max(low, 0 if dtype == np.uint16 else low), high, 256).reshape(16, 16).astype(dtype)
    content = encoded(Image.fromarray(values), "TIFF")
    expected = np.clip(np.floor((values.astype(float) - low) / (high - low) * 255 + 0.5), 0, 255)
    result = read_image(content, grey_range=(low, high))
    assert (np.abs(result[..., 0] - expected) <= 1).all() and (result[..., :1] == result).all()
    assert result.min() == (0 if low >= 0 or dtype != np.uint16 else 64) and result.max() == 255


def test_an_int32_tiff_of_256_levels_keeps_them():
    content = encoded(Image.fromarray(DEEP.astype(np.int32)), "TIFF")
    np.testing.assert_array_equal(read_image(content, grey_range=(0, 255))[..., 0], DEEP)


@pytest.mark.parametrize("tags", [{280: 0, 281: 1000}, {340: 0, 341: 1000}, {281: 1000}])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.float32])
def test_the_range_that_tiff_tags_declare_is_used(tags, dtype):
    values = np.array([[0, 250, 500, 1000]], dtype)
    content = encoded(Image.fromarray(values), "TIFF", tiffinfo=tags)
    assert read_image(content)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("depth", [1000, 4095, 65535])
def test_the_maximum_that_a_pgm_declares_becomes_white(depth):
    content = b"P5 3 1 %d\n" % depth + struct.pack(">3H", 0, depth // 2, depth)
    assert read_image(content)[0, :, 0].tolist() in ([0, 127, 255], [0, 128, 255])


def test_eight_bits_are_not_scaled():
    content = encoded(Image.fromarray(DEEP.astype(np.uint8)))
    np.testing.assert_array_equal(read_image(content, grey_range=(0, 4095))[..., 0], DEEP)


@pytest.mark.parametrize("data", ["folder", "torch/image_folder"])
def test_a_data_set_of_deep_grey_images_is_scaled_by_the_setting(tmp_path, caplog, data):
    for index in range(8):
        path = tmp_path / "train" / "ab"[index % 2] / f"{index}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (DEEP * 16).astype(np.uint16)
        values[-1, 0] = 500 * index  # no two images are equal
        Image.fromarray(values).save(path)
    dataset = (
        load_folder(tmp_path, grey_range="0,4080")
        if data == "folder"
        else load_dataset(Config(data=data, data_dir=str(tmp_path), grey_range="0,4080"))
    )
    np.testing.assert_array_equal(dataset.train.picture(0)[:-1, :, 0], DEEP[:-1])
    assert not caplog.messages
    if data == "folder":
        assert load_folder(tmp_path).notes == [
            "grey values of 8 sampled images are 0 to 4080, and 65535 becomes white; set --grey-range LOW,HIGH to the range of the whole data set"
        ]


@pytest.mark.parametrize("value", ["1", "5,5", "9,1", "a,b", "0,inf", "nan,1", "1,2,3"])
def test_a_grey_range_that_is_none_is_refused(value):
    with pytest.raises(UsageError, match="two increasing numbers"):
        Config(grey_range=value)


def test_no_grey_image_is_left_of_no_image():
    assert grey_batch(np.zeros((0, 4, 6, 3), np.uint8)).shape == (0, 4, 6, 1)


def test_what_an_unreadable_image_is_is_said_without_an_error(tmp_path):
    content = encoded(Image.fromarray(np.array([[0.5, 300.0]], np.float32)), "TIFF")
    facts = inspect_image(content)
    assert (facts.format, facts.mode, facts.width, facts.height) == ("TIFF", "F", 2, 1)
    assert "--grey-range" in facts.error and not facts.error.startswith("_")
