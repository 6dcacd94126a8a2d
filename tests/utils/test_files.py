"""A file is replaced as a whole, and is on the disk before it takes the place of the former one."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from harness.utils.errors import ResourceError, UsageError
from harness.utils.files import (
    free_space,
    open_regular,
    read_json,
    read_regular,
    remove_temporary_files,
    sync_folder,
    write_atomically,
    write_json,
)


def test_a_reader_of_the_former_file_keeps_it_while_and_after_it_is_replaced(tmp_path):
    path, other_name = tmp_path / "weights.bin", tmp_path / "former.bin"
    path.write_bytes(b"former" * 1000)
    os.link(path, other_name)
    seen = []

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())
        file.write(b"er")

    with open(path, "rb") as reader:
        write_atomically(path, write)
        assert reader.read() == b"former" * 1000
    assert seen == [b"former" * 1000]
    assert (path.read_bytes(), other_name.read_bytes()) == (b"newer", b"former" * 1000)


def test_the_content_is_on_the_disk_before_the_rename_and_the_rename_before_it_returns(tmp_path, monkeypatch):
    """The system's own calls in their order, each with the kind of what it is for and its size at that moment."""
    calls = []
    replace, fsync = os.replace, os.fsync

    def noted_fsync(handle):
        status = os.fstat(handle)
        calls.append("sync folder" if stat.S_ISDIR(status.st_mode) else f"sync {status.st_size} bytes")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("rename") or replace(*paths))
    for content in (b"12345", "12345", lambda file: file.write(b"12345")):
        calls.clear()
        write_atomically(tmp_path / "x", content)
        assert calls == ["sync 5 bytes", "rename", "sync folder"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ValueError("no"), ValueError),
        (OSError(28, "No space left on device"), ResourceError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_write_that_fails_leaves_the_former_file_and_nothing_else(tmp_path, error, raised):
    path = tmp_path / "x"
    path.write_text("former")

    def fail(file):
        file.write(b"half")
        raise error

    with pytest.raises(raised):
        write_atomically(path, fail)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("x", "former")]


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "a file").write_text("")
    with pytest.raises(UsageError, match="choose another file or folder"):
        write_atomically(tmp_path / "a file/x", b"")


def test_what_is_no_json_mapping_is_read_as_none_and_temporary_files_are_removed(tmp_path):
    write_json(tmp_path / "a/b.json", {"x": [1, None]})
    assert read_json(tmp_path / "a/b.json") == {"x": [1, None]}
    for text in ("[1]", "{", "null"):
        (tmp_path / "c.json").write_text(text)
        assert read_json(tmp_path / "c.json") == {}
    (tmp_path / "a/.b.json.1.tmp").write_text("")
    remove_temporary_files(tmp_path)
    assert sorted(each.name for each in tmp_path.rglob("*") if each.is_file()) == ["b.json", "c.json"]


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_a_pipe_or_a_socket_is_no_regular_file_and_is_not_waited_for(tmp_path, flags, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the address of a socket may be short only
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        for name in ("pipe", "socket"):
            with pytest.raises(OSError, match="not a regular file") as caught:
                open_regular(Path(name), flags)
            assert caught.value.errno == errno.EINVAL


def test_a_file_of_more_than_the_limit_is_not_read(tmp_path):
    (tmp_path / "x").write_bytes(bytes(1001))
    assert read_regular(tmp_path / "x", 1001) == bytes(1001)
    with pytest.raises(OSError, match="more than 1,000 bytes"):
        read_regular(tmp_path / "x", 1000)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="this machine has no /proc")
def test_a_folder_that_its_file_system_cannot_sync_is_no_error_and_a_failing_disk_is_one(tmp_path, monkeypatch):
    sync_folder(Path("/proc/self"))  # fsync: EINVAL
    sync_folder(tmp_path / "gone")

    def fail(handle):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)
    with pytest.raises(ResourceError, match=r"^cannot write .*/x: Input/output error$"):
        write_atomically(tmp_path / "x", b"")


def test_the_free_space_is_that_of_the_file_system_on_which_a_folder_would_be(tmp_path):
    amount, unit = free_space(tmp_path / "not" / "yet").split(" ", 1)
    status = os.statvfs(tmp_path)
    assert float(amount) == pytest.approx(status.f_bavail * status.f_frsize / 2**20, rel=0.05) and unit == "MB free"
