"""Folders of small pictures, and pictures that are broken in every way."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image


def picture_folder(root: Path, count: int = 8, classes: tuple[str, ...] = ("cat", "dog"), size: int = 32) -> Path:
    """train/ and test/ with `count` pictures of each class."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for index, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = (draw.integers(0, 128, (size, size, 3)) + 60 * index).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that claims `side` x `side` pixels."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(b"\0" * (1 + 3 * side)) for _ in range(40)) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def encoded(image: Image.Image, form: str, **how: object) -> bytes:
    file = BytesIO()
    image.save(file, format=form, **how)
    return file.getvalue()


@cache
def broken() -> dict[str, bytes]:
    """File name -> content that no picture can be had from."""
    whole = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)), "JPEG")
    png = encoded(Image.new("RGB", (64, 64), "red"), "PNG")
    return {
        "truncated.jpg": whole[: len(whole) // 2],
        "truncated.png": png[:-30],
        "empty.jpg": b"",
        "text.png": b"this is no picture\n",
        "script.jpg": b"#!/bin/sh\ntouch canary\n",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(canary) (w) file\n",
        "bomb.png": bomb(30_000),
        "huge.png": bomb(8_000),
    }


@cache
def odd() -> dict[str, bytes]:
    """File name -> content of an unusual kind that a picture can be had from."""
    draw = np.random.default_rng(2)
    rgb = Image.fromarray(draw.integers(0, 255, (40, 32, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(draw.integers(0, 65535, (32, 32)).astype(np.uint16))
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    return {
        "png-in-name.jpg": encoded(rgb, "PNG"),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "grey.png": encoded(rgb.convert("L"), "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
        "grey-alpha.png": encoded(rgb.convert("LA"), "PNG"),
        "palette.gif": encoded(rgb.convert("P"), "GIF"),
        "deep.png": encoded(deep, "PNG"),
        "turned.jpg": encoded(rgb, "JPEG", exif=turned),
        "moving.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "tiny.png": encoded(rgb.resize((1, 1)), "PNG"),
        "long.png": encoded(rgb.resize((1, 500)), "PNG"),
    }
