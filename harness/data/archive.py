"""Read a tar archive of images into memory, and verify it to its end.

tarfile takes a damaged or missing header for the end of the archive, and reads nothing after that end, so that a cut
archive would lose images without a word. Here the end has to be where tar writes it, only zeros may follow, and a
compressed archive is read to its checksum. Headers have checksums; the contents of an uncompressed archive do not.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from harness.data.image_io import MAX_PIXELS, is_image_name
from harness.utils.errors import DataError
from harness.utils.text import escape_unprintable

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
MAX_ARCHIVE_BYTES = 8 * 2**30  # of all members unpacked, because the images are kept in memory
MAX_IMAGE_BYTES = 8 * MAX_PIXELS  # four channels of 16 bits
# Files of images do not compress well. More than this many times the size of the archive is a decompression bomb.
MAX_EXPANSION, UNSUSPICIOUS_BYTES = 100, 2**28
MAX_HEADER_BYTES = 2**20  # of a long file name
CHUNK_BYTES = 2**18
BLOCK = tarfile.BLOCKSIZE
_MAGIC: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"]\x00\x00": lzma.open,
}


def read_archive(
    archive: Path, is_text: Callable[[str], bool] = lambda path: False
) -> Iterator[tuple[str, bool, bytes | None]]:
    """Yield the path of each member, whether it is a folder, and its content where its name is that of an image.

    Args:
        is_text: by the path of another file, whether its content is yielded too.

    Nothing is written to the disk. The archive is intact once the iteration has ended.

    Raises:
        DataError: the archive is damaged, cut, too large or a decompression bomb, or holds a link, a device, or a path
            that leads outside.
    """
    try:
        with _open(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            expanded = 0
            for member in tar:
                path = _member_path(archive, member)
                expanded += BLOCK + member.size
                _check_size(archive, expanded)
                content = None
                if member.isfile() and (is_image_name(path) or is_text(path)):
                    content = _read_member(archive, tar, member)
                yield path, member.isdir(), content
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep every header
            _check_end(archive, file, tar.offset, expanded)
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{archive}: damaged archive ({escape_unprintable(str(error))})") from None


class _LimitedReader(io.RawIOBase):
    """A file from which no more than `MAX_HEADER_BYTES` are read at once; tarfile reads each header in one piece."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _open(archive: Path) -> Any:
    """Return the archive, decompressed as it is read."""
    with archive.open("rb") as file:
        start = file.read(8)
    opener = next((opener for magic, opener in _MAGIC.items() if start.startswith(magic)), None)
    return _LimitedReader(opener(archive, "rb") if opener else archive.open("rb"))


def _read_member(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Return the content of an image, read in pieces so that no more memory is taken than there is content."""
    if member.size > MAX_IMAGE_BYTES:
        raise DataError(
            f"{archive}: {escape_unprintable(member.name)} has {member.size / 2**20:,.0f} MiB, more than any image of {MAX_PIXELS:,} pixels; remove it"
        )
    file = tar.extractfile(member)
    assert file is not None
    pieces, missing = [], member.size
    while missing:
        piece = file.read(min(missing, CHUNK_BYTES))
        if not piece:
            raise tarfile.ReadError("unexpected end of data")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _check_size(archive: Path, expanded: int) -> None:
    """Refuse an archive by the number of bytes that it is unpacked to, before they are read."""
    if expanded > MAX_ARCHIVE_BYTES:
        raise DataError(
            f"{archive} holds more than {MAX_ARCHIVE_BYTES / 2**30:g} GiB; unpack it and set --data-dir to the folder"
        )
    packed = archive.stat().st_size
    if expanded > max(UNSUSPICIOUS_BYTES, MAX_EXPANSION * packed):
        raise DataError(
            f"{archive}: {packed:,} bytes unpack to more than {expanded:,}, as a decompression bomb does; refused, unpack it yourself and set --data-dir to the folder"
        )


def _check_end(archive: Path, file: _LimitedReader, offset: int, expanded: int) -> None:
    """Raise an error unless the archive ends with a block of zeros at `offset` and nothing but zeros after it.

    Reading to the end also verifies the checksum of a compressed archive.
    """
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise tarfile.ReadError("it has no end; it was cut off, or a header is damaged")
    while block:
        if any(block):
            raise tarfile.ReadError(f"a header is damaged, or there is data after the end, at byte {offset:,}")
        expanded += len(block)
        offset += len(block)
        _check_size(archive, expanded)
        block = file.read(CHUNK_BYTES)


def _member_path(archive: Path, member: tarfile.TarInfo) -> str:
    """Return the path of a member without `.` parts.

    Raises:
        DataError: it is a link or a device, or its path leads outside the archive.
    """
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts:
        raise DataError(
            f"{archive}: member {escape_unprintable(member.name)} has a path that leads outside the archive; refused"
        )
    if not (member.isfile() or member.isdir()):
        raise DataError(
            f"{archive}: member {escape_unprintable(member.name)} is a link or a device; refused, pack the files themselves"
        )
    return "/".join(parts)
