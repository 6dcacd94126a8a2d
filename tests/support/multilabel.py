"""Images with coloured squares that appear independently, and the tables that give each image its colours."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS, SHARES = ("red", "green", "blue"), (0.5, 0.4, 0.2)


def make_squares(root: Path, count: int = 120, side: int = 16, seed: int = 0) -> list[tuple[str, tuple[bool, ...]]]:
    """Write images to `root/squares` and return (path below `root`, whether it has a square of each colour)."""
    random = np.random.default_rng(seed)
    (root / "squares").mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        pixels = random.integers(90, 150, (side, side, 3)).astype(np.uint8)
        has = tuple(bool(random.random() < share) for share in SHARES)
        for channel in np.flatnonzero(has):
            top, left = random.integers(0, side - 5, 2)
            pixels[top : top + 5, left : left + 5] = 20
            pixels[top : top + 5, left : left + 5, channel] = 240
        path = f"squares/{index}.png"
        Image.fromarray(pixels).save(root / path)
        rows.append((path, has))
    return rows


def write_separated(root: Path, rows: list[tuple[str, tuple[bool, ...]]], separator: str = "|") -> Path:
    """Write a table with one column of labels, joined by a separator."""
    names = [separator.join(name for name, marked in zip(COLOURS, has, strict=True) if marked) for _, has in rows]
    return write_table(
        root / "separated.csv", ["path", "labels"], [[path, name] for (path, _), name in zip(rows, names, strict=True)]
    )


def write_columns(root: Path, rows: list[tuple[str, tuple[bool, ...]]]) -> Path:
    """Write a table with a column of 0 and 1 for each colour."""
    return write_table(root / "columns.csv", ["path", *COLOURS], [[path, *map(int, has)] for path, has in rows])


def write_table(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path
