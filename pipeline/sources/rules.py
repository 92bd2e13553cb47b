"""Decides which files of a source are candidates, and how they are grouped and labelled.

>>> other_kind("photos/README.md"), other_kind("photos/cat.jpg")
('.md', None)
>>> Rules(exclude="*.png").selects("day1/cat.png")
False
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import basename, splitext

from pipeline import storage
from pipeline.errors import UsageError

_OTHER_EXTENSIONS = """
.txt .json .jsonl .ndjson .md .rst .csv .tsv .xml .html .htm .css .js .yaml .yml .toml .ini .cfg
.log .py .sh .ipynb .pdf .doc .docx .xls .xlsx .sqlite .db .lock .sha256 .md5 .h5 .hdf5 .parquet
.npy .npz .pkl .pickle .mat .pth .pt .onnx .safetensors .ckpt .wav .mp3 .flac .cls .cls2 .pyd .ten
.tfrecord .idx .index
"""

OTHER_EXTENSIONS = frozenset(_OTHER_EXTENSIONS.split())
"""Extensions (lower case) of files that lie beside images and are none."""

OTHER_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".gitignore", ".gitattributes"})

OTHER_STEMS = frozenset({"readme", "license", "licence", "changelog", "copying", "notice"})

CACHES = "cache-*.arrow"
"""Names of files in which Hugging Face's `datasets` keeps what `map` and `filter` made of the rows.
They lie beside the data, and have all its images again."""

FOLDERS = "folder"
"""The name of the label that is made of an image's leading folders."""


@dataclass(frozen=True)
class Rules:
    """Which candidates of a source count, and how they are grouped and labelled.

    Attributes:
        include: A shell pattern. Only files count whose path below the source, or whose bare name,
            matches it. The members of an archive lie below it, as in a folder.
        exclude: A shell pattern for files that do not count.
        group_by: What names a group: the number of leading folders, or a column of a table or an
            archive.
        image_column: The column that holds or names images, if a table has several.
        by: What parts are made by: likewise.
        allow_query: Names of parameters, with commas between, that queries of urls may have.
        pair_by: What names the images of other datasets that this one's are paired with: `stem`, or
            a column of a table. None takes the path below the source.
    """

    include: str | None = None
    exclude: str | None = None
    group_by: str | None = None
    image_column: str | None = None
    by: str | None = None
    allow_query: str | None = None
    pair_by: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("group-by", self.group_by), ("by", self.by)):
            if (depth := folder_depth(value)) is not None and depth < 1:
                raise UsageError(
                    f"{option} is {value!r}; give the number of leading folders below the source "
                    "to go by (1 for source/video17/frame.jpg), or a column of a table or archive"
                )

    def canonical(self, url: str) -> str:
        """Returns the one spelling of a place of images. A query may have what `allow_query` names.

        Raises:
            UsageError: The url may carry a secret.
        """
        allowed = {name.strip() for name in (self.allow_query or "").split(",")}
        return storage.canonical(url, queries=allowed - {""})

    def uri_of(self, name: str, folder: str) -> str:
        """Returns the canonical uri of what a list or table names.

        Args:
            name: A path or a url.
            folder: Where relative paths start from: a canonical uri.

        Raises:
            UsageError: The url may carry a secret.
        """
        if is_relative(name) and storage.store_of(folder).is_local:
            name = os.path.join(storage.local_path(folder), name)
        elif is_relative(name):
            name = storage.join(folder, name)
        return self.canonical(name)

    @property
    def is_plain(self) -> bool:
        """Whether candidates have no pattern to match, and no labels; groups are of folders."""
        return not any((self.include, self.exclude, self.group_column, self.by))

    @property
    def group_depth(self) -> int | None:
        """How many leading folders name a group. None if groups are not made of folders."""
        return folder_depth(self.group_by)

    @property
    def group_column(self) -> str | None:
        """The column of a table that names a group. None if groups are not made of a column."""
        return self.group_by if self.group_depth is None else None

    @property
    def label(self) -> str | None:
        """The name of the label that parts are made by. None if no parts are made."""
        return label_of(self.by) if self.by else None

    @property
    def label_depth(self) -> int | None:
        """How many leading folders make the label. None if it is not made of folders."""
        return folder_depth(self.by)

    def selects(self, path: str) -> bool:
        """Returns whether a file counts, by its path below the source."""
        return (self.include is None or _matches(path, self.include)) and not self.excludes(path)

    def excludes(self, path: str) -> bool:
        """Returns whether the pattern `exclude` matches a path below the source."""
        return self.exclude is not None and _matches(path, self.exclude)


def parent_folder(uri: str) -> str:
    """Returns the uri of the folder that a file lies in; `file:///` of one in the disk's root."""
    folder = uri.rpartition("/")[0]
    return f"{folder}/" if folder == "file://" else folder


def is_relative(name: str) -> bool:
    """Returns whether what a list or table names is a path that starts from a folder.

    `~/a.jpg` is none, nor is `~ada/a.jpg` if there is a user ada. Any other name with a `~` at its
    start is one, as `~a.jpg`.
    """
    name = storage.with_plain_scheme(name)
    return "://" not in name and not os.path.isabs(os.path.expanduser(name))


def folder_depth(option: str | None) -> int | None:
    """Returns the number of folders that an option states. None if it is not a whole number."""
    return int(option) if option is not None and re.fullmatch(r"-?[0-9]{1,9}", option) else None


def label_of(by: str) -> str:
    """Returns the name of the label that parts are made by.

    Args:
        by: A column of a table, or a number of folders.
    """
    return by if folder_depth(by) is None else FOLDERS


def other_kind(uri: str) -> str | None:
    """Returns the kind of a file that is certainly no image, by its name. None for a candidate."""
    name = basename(uri).lower()
    stem, extension = splitext(name)
    if name in OTHER_NAMES:
        return name
    if name.startswith("._"):
        return "._*"
    if extension in OTHER_EXTENSIONS:
        return extension
    return stem if not extension and stem in OTHER_STEMS else None


def is_cache(uri: str) -> bool:
    """Returns whether a file is a cache of Hugging Face's `datasets`, by its name."""
    return fnmatchcase(basename(uri).lower(), CACHES)


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(basename(path), pattern)
