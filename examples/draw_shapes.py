"""A data folder of your own, drawn: `python draw_shapes.py shapes` writes circles, squares and triangles.

What comes out is the form that `harness run --data folder` reads: a folder a class, below train and test.

    shapes/train/circle/000.png ...    120 pictures of 32x32 a class
    shapes/test/circle/000.png ...      30 a class
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, COUNTS, CLASSES = 32, {"train": 120, "test": 30}, ("circle", "square", "triangle")


def shape(name: str, dice: random.Random) -> Image.Image:
    """One shape of a random place, size and colour on a dark background, 32x32 pixels."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(dice.randrange(0, 90) for _ in range(3)))
    radius = dice.randint(6, 11)
    x, y = (dice.randint(radius, SIDE - radius) for _ in range(2))
    colour = tuple(dice.randrange(120, 256) for _ in range(3))
    pen, box = ImageDraw.Draw(picture), (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    return picture


def draw(folder: Path, seed: int = 0) -> None:
    """Every picture of both splits, the same for the same seed."""
    dice = random.Random(seed)
    for split, count in COUNTS.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                shape(name, dice).save(folder / split / name / f"{number:03}.png")


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "shapes")
    draw(where)
    print(f"{sum(COUNTS.values()) * len(CLASSES)} pictures in {where}; train on them with:")
    print(f"  harness run --data folder --data-dir {where} --recipe shapes.yaml")
