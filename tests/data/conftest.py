"""Data that several test modules read."""

import pytest

from harness.config.settings import Config
from harness.data.registry import load_dataset


@pytest.fixture(scope="module")
def digits():
    return load_dataset(Config(data="digits", val_fraction=0.1))
