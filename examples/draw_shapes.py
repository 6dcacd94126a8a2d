"""Draw an image folder of circles, squares and triangles: `python draw_shapes.py shapes`.

The result has the layout that `harness run --data folder` reads, one directory per class below train and test:

    shapes/train/circle/000.png ...    120 images of 32x32 per class
    shapes/test/circle/000.png ...      30 per class
"""

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIDE, COUNTS, CLASSES = 32, {"train": 120, "test": 30}, ("circle", "square", "triangle")


def draw_shape(name: str, rng: random.Random) -> Image.Image:
    """Draw one shape with random position, size and colour on a dark background of 32x32 pixels."""
    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.randrange(0, 90) for _ in range(3)))
    radius = rng.randint(6, 11)
    x, y = (rng.randint(radius, SIDE - radius) for _ in range(2))
    colour = tuple(rng.randrange(120, 256) for _ in range(3))
    pen, box = ImageDraw.Draw(image), (x - radius, y - radius, x + radius, y + radius)
    if name == "circle":
        pen.ellipse(box, fill=colour)
    elif name == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=colour)
    return image


def write_dataset(folder: Path, seed: int = 0) -> None:
    """Write all images of both splits; the same seed gives the same images."""
    rng = random.Random(seed)
    for split, count in COUNTS.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw_shape(name, rng).save(folder / split / name / f"{number:03}.png")


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "shapes")
    write_dataset(folder)
    print(f"{sum(COUNTS.values()) * len(CLASSES)} images in {folder}; train on them with:")
    print(f"  harness run --data folder --data-dir {folder} --recipe shapes.yaml")
