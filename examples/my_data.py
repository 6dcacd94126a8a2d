"""Register your own data set: `harness run --plugin my_data --data stripes`

A plug-in is any importable Python module. The function gets the path of `--data-dir` and returns data sets whose items are
an image and a label, as torch and torchvision have them. The images are not augmented or normalised: `harness` does that.
"""

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from harness.data import register_dataset


class Stripes(Dataset):
    """Noisy stripes of 32 x 32 pixels, horizontal or vertical."""

    classes = ("horizontal", "vertical")

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an image, uint8 [32, 32, 3], and its label."""
        draw = np.random.default_rng([self.seed, index])
        label = index % 2
        wave = np.sin(np.arange(32) * draw.uniform(0.6, 1.5) + draw.uniform(0, 6))
        pixels = 128 + 60 * (wave[:, None] if label == 0 else wave[None, :]) + draw.normal(0, 40, (32, 32))
        return np.repeat(pixels.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2), label


@register_dataset
def stripes(data_dir: Path) -> dict[str, Dataset]:
    """Return the splits; a data set that is stored would be read from `data_dir`."""
    return {"train": Stripes(400, seed=0), "test": Stripes(100, seed=1)}
