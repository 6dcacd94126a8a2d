"""What values of NumPy and of other types become in JSON."""

import enum
from pathlib import Path

import numpy as np
import pytest

from harness.utils.plain import json_text, parse_json, to_plain


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64("nan"), "NaN"),
        (np.int64(2**62), 2**62),
        (np.bool_(True), True),
        (np.str_("NaN"), "~NaN"),
        (np.array([[1.5, np.inf], [2, -np.inf]]), [[1.5, "Infinity"], [2.0, "-Infinity"]]),
        (np.array(7), 7),
        (Level.HIGH, 3),
        ({np.int64(1): (np.float32(0.25), None)}, {"1": [0.25, None]}),
        (Path("a/b"), "a/b"),
        ({1.5}, "{1.5}"),  # a set has no order, and no counterpart in JSON
    ],
)
def test_a_value_of_any_type_is_written_as_text_numbers_lists_and_mappings(value, plain):
    assert (to_plain(value), type(to_plain(value))) == (plain, type(plain)) or isinstance(value, Level)
    assert parse_json(json_text(to_plain(value))) == plain
