"""The checksum that a JSON file holds of itself."""

from harness.utils.checksums import is_checked_json_intact, write_checked_json
from harness.utils.files import read_json, write_json


def test_any_changed_value_of_a_checked_json_file_is_noticed(tmp_path):
    path = tmp_path / "facts.json"
    value = {"a": 0.1, "nested": {"list": [1, 2.5, "é", None, True]}, "z": 1e300}
    write_checked_json(path, value)
    content = path.read_text()
    assert is_checked_json_intact(read_json(path))
    write_json(path, read_json(path))  # another layout of the same values
    assert is_checked_json_intact(read_json(path))
    for old, new in (("0.1", "0.2"), ("2.5", "2.25"), ("true", "1"), ("null", "false"), ('"a"', '"b"')):
        path.write_text(content.replace(old, new, 1))
        assert not is_checked_json_intact(read_json(path)), old
