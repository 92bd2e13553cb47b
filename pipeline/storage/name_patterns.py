"""Tells which names match a shell pattern, and in which folders such names may be.

>>> pattern = NamePattern("/photos/day-*/cam[12]/*.jpg")
>>> pattern.folder, pattern.parts_before("/photos/day-7"), pattern.parts_before("/photos/other")
('/photos', 1, None)
>>> pattern.matches("/photos/day-7/cam1/a.jpg"), pattern.matches("/photos/day-7/a.jpg")
(True, False)
"""

from __future__ import annotations

import re

from fsspec.utils import glob_translate

from pipeline.errors import UsageError

_MARK = re.compile(r"[*?\[]")

_ANY_FOLDERS = "**"


class NamePattern:
    """A path in which `*`, `?` and `[…]` stand for characters, and `**` for any folders.

    Attributes:
        stem: What comes before the first of these marks.
        folder: The last folder before it.

    Args:
        path: The pattern. Its parts are separated by slashes.

    Raises:
        UsageError: A `**` is not a whole part.
    """

    def __init__(self, path: str) -> None:
        self.stem = _MARK.split(path, maxsplit=1)[0]
        self.folder = self.stem.rpartition("/")[0]
        self._parts = path[len(self.folder) + 1 :].split("/")
        if any(_ANY_FOLDERS in part and part != _ANY_FOLDERS for part in self._parts):
            raise UsageError(
                f"{path}: ** stands for whole folders, as in photos/**/*.jpg; write * within a name"
            )
        self._path = re.compile(glob_translate(path))
        self._names = [re.compile(glob_translate(part)) for part in self._parts]

    def matches(self, path: str) -> bool:
        """Tells whether a path is one of those that are meant."""
        return self._path.match(path) is not None

    def parts_before(self, folder: str) -> int | None:
        """Tells how many parts of the pattern lead to a folder.

        Args:
            folder: The path of `folder`, or of a folder below it.

        Returns:
            The number of parts, among them a `**` that leads to the folders in it, too; None if no
            path in the folder can match.
        """
        below = folder[len(self.folder) + 1 :]
        at = 0
        for name in below.split("/") if below else ():
            if self._parts[at] == _ANY_FOLDERS:
                break
            if at == len(self._parts) - 1 or not self._names[at].match(name):
                return None
            at += 1
        return at + (self._parts[at] == _ANY_FOLDERS)
