"""Strict YAML: values read back equal, numbers as in YAML 1.2, and refused documents."""

import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config import yaml_io
from harness.utils.errors import UsageError

WORDS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20),
)


@given(st.dictionaries(st.text("abcdefgh_é", min_size=1), st.one_of(WORDS, st.lists(WORDS, max_size=3)), max_size=5))
def test_dumped_values_are_read_back_equal(values):
    assert yaml_io.parse_yaml(yaml_io.dump_yaml(values)) == values or values == {}


def _read_by(loader, text):
    try:
        return yaml_io._parse(text, "x", True, loader)
    except (yaml.YAMLError, UsageError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML without libyaml on this machine")
@settings(max_examples=1000)
@given(st.lists(st.sampled_from([*"ab01-:,.[]{}'\"&*#|>?%@~ \n", "é", "\t", ": ", "- ", "\n  ", "1e-3", "no", "true", "&x ", "*x", "<<: ", "---\n"]), max_size=16))  # fmt: skip
def test_both_loaders_read_the_same(parts):
    text = "".join(parts)
    fast, slow = _read_by(yaml_io._FastLoader, text), _read_by(yaml_io._Loader, text)
    assert fast is None or slow is None or repr(fast) == repr(slow)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "tag"),
        ("a: !mine 3", "tag"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: 1\na: 2", "given twice"),
        ("a: [", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("- 1", "one mapping"),
        ("", "one mapping"),
        ("a: " + "[" * 40 + "]" * 40, "deeper"),
        ("a: " + "[" * 5000, "deeper|not valid"),
        ("a:\n\t- 1", "not valid YAML"),
        ("a: \x00", "not valid YAML|control"),
    ],
)
def test_hostile_or_malformed_yaml_is_refused_in_one_line(text, message, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        yaml_io.read_yaml(path)
    assert "\n" not in str(caught.value)
    assert "x.yaml" in str(caught.value)


def test_numbers_and_strings_are_those_of_yaml_1_2():
    read = yaml_io.parse_yaml("a: 1e-3\nb: 010\nc: no\nd: 1:30\ne: 1.0\nf: -.inf\ng: null\nh: true")
    assert read == {"a": 0.001, "b": 10, "c": "no", "d": "1:30", "e": 1.0, "f": -math.inf, "g": None, "h": True}


def test_a_settings_file_that_is_too_large_or_not_text_is_refused(tmp_path):
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_bytes(b"#" * 1_000_001)
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="1,000,001 bytes"):
        yaml_io.read_yaml(large)
    with pytest.raises(UsageError, match="UTF-8"):
        yaml_io.read_yaml(binary)


def test_values_that_aliases_nest_deeper_than_the_text_is_nested_are_refused():
    open_, close = "[" * 20, "]" * 20
    text = f"a: &x {open_}1{close}\nb: {open_}*x{close}"
    with pytest.raises(UsageError, match="nested deeper than 32 levels"):
        yaml_io.parse_yaml(text, aliases=True)
    assert yaml_io.parse_yaml(text.replace("[" * 20, "[").replace("]" * 20, "]"), aliases=True) == {
        "a": [1],
        "b": [[1]],
    }


def test_numbers_that_are_not_finite_are_read_back_as_they_were_by_any_reader():
    values = {"a": math.inf, "b": -math.inf, "c": math.nan}
    text = yaml_io.dump_yaml(values)
    for read in (yaml_io.parse_yaml(text), yaml.safe_load(text)):
        assert list(map(str, read.values())) == ["inf", "-inf", "nan"]
