"""The checksum that a JSON file holds of itself, and those of the files of a folder."""

from pathlib import Path

import pytest

from harness.utils.checksums import changed_files, is_checked_json_intact, write_checked_json, write_sums
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


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="this machine has no /proc")
def test_a_file_that_is_gone_or_cannot_be_read_has_changed(tmp_path):
    names = ["kept", "other", "gone", "unreadable"]
    for name in names:
        (tmp_path / name).write_text(name)
    write_sums(tmp_path, [*names, "never there"])
    assert changed_files(tmp_path, [*names, "never there"]) == []
    (tmp_path / "other").write_text("kept")
    (tmp_path / "gone").unlink()
    (tmp_path / "unreadable").unlink()
    (tmp_path / "unreadable").symlink_to("/proc/self/mem")  # the first byte of which is an error to read
    assert changed_files(tmp_path, names) == ["other", "gone", "unreadable"]
