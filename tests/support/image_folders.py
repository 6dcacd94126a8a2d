"""Folders of random images, and how the harness reads or refuses them."""

import os

import numpy as np
import pytest
from PIL import Image

from harness.config.settings import Config
from harness.data.registry import load_dataset

_generator = {"test": "", "random": np.random.default_rng(0)}


def random_image(size=(8, 8)):
    """Return random colours, uint8 [H, W, 3]: in each test the same ones, whichever tests ran before."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0]
    if test != _generator["test"]:
        _generator.update(test=test, random=np.random.default_rng(0))
    return _generator["random"].integers(0, 256, (*size, 3), dtype=np.uint8)


def save_image(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_image() if pixels is None else pixels).save(path)
    return path


def make_class_folders(root, splits=("train", "test"), classes=("cat", "dog"), count=3, size=(8, 8)):
    for split in splits:
        for label in classes:
            for index in range(count):
                save_image(root / split / label / f"{index}.png", random_image(size))
    return root


def load_folder(root, **settings):
    return load_dataset(Config(data="folder", data_dir=str(root), **settings))


def refusal(error, data, load=load_folder, **settings):
    """Return the message, of one line, with which a folder, or what `load` reads, is refused."""
    with pytest.raises(error) as caught:
        load(data, **settings)
    text = str(caught.value)
    assert "\n" not in text and text.isprintable()
    return text
