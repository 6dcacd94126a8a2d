"""Find the files that the paths in a table name, none of them outside of one folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.data.image_io import SUFFIXES
from harness.data.split_lists import IMAGE_FOLDERS
from harness.utils.errors import UsageError
from harness.utils.text import escape_unprintable


class PathFinder:
    """Finds the files that paths of a table name, all of them inside one folder.

    A path is relative to the folder, or to one of the usual folders of images in it; its extension may be missing.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._starts = ["", *(f"{name}/" for name in IMAGE_FOLDERS if os.path.isdir(os.path.join(root, name)))]
        self._checked: dict[str, bool] = {}  # folder -> whether it is inside
        self._stems: dict[str, dict[str, str]] = {}  # folder -> name without extension -> name

    def find(self, value: Any, table: Path, index: int) -> tuple[str, str, str]:
        """Return id, path on the disk, and why the image cannot be used.

        Raises:
            UsageError: the path leads out of the folder.
        """
        text = str(value if value is not None else "").strip().replace("\\", "/")
        if not text or not _is_path(text):
            return f"row {index + 1}", "", f"row {index + 1} of {table.name} has no path"
        for position, start in enumerate(self._starts):
            path = os.path.normpath(os.path.join(self._root, start + text))
            is_inside, file = self._is_inside(path), None
            if is_inside and (file := self._existing(path)) is not None:
                is_inside = file == path or self._is_inside(file)  # with its extension it may be a link
            if not is_inside:
                raise UsageError(
                    f"{table}, row {index + 1}: {escape_unprintable(text)} is outside of {self._root}; set --image-root to a folder that holds all of the images"
                )
            if file is not None:
                if position:  # the next path is most likely relative to the same folder
                    self._starts.insert(0, self._starts.pop(position))
                return os.path.relpath(file, self._root).replace(os.sep, "/"), file, ""
        return (
            text,
            "",
            f"{table.name} names it, and it is not in {self._root}; --image-root names the folder that paths start from",
        )

    def _existing(self, path: str) -> str | None:
        if os.path.isfile(path):
            return path
        if path.lower().endswith(SUFFIXES):
            return None
        folder, stem = os.path.split(path)
        if folder not in self._stems:
            names = os.listdir(folder) if os.path.isdir(folder) else []
            self._stems[folder] = {os.path.splitext(name)[0]: name for name in names if name.lower().endswith(SUFFIXES)}
        name = self._stems[folder].get(stem)
        return os.path.join(folder, name) if name else None

    def _is_inside(self, path: str) -> bool:
        """Return whether a path stays in the folder, links followed."""
        folder = os.path.dirname(path)
        if folder not in self._checked:
            self._checked[folder] = self._contains(os.path.realpath(folder))
        return self._checked[folder] and (not os.path.islink(path) or self._contains(os.path.realpath(path)))

    def _contains(self, path: str) -> bool:
        return path == self._root or path.startswith(self._root.rstrip(os.sep) + os.sep)


def _is_path(text: str) -> bool:
    """Return whether a text can be a path of the file system: JSON may hold null bytes and halves of surrogate pairs."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
