"""sources.rules: TODO-DOC"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from posixpath import basename, splitext

from pipeline.errors import UsageError
from pipeline.sources.manifest import label_of

_OTHER_KINDS = """
.txt .json .jsonl .ndjson .md .rst .csv .tsv .xml .html .htm .css .js .yaml .yml .toml .ini .cfg
.log .py .sh .ipynb .pdf .doc .docx .xls .xlsx .sqlite .db .lock .sha256 .md5 .h5 .hdf5 .parquet
.npy .npz .pkl .pickle .mat .pth .pt .onnx .safetensors .ckpt .wav .mp3 .flac .cls .cls2 .pyd .ten
.tfrecord .idx .index
"""

OTHER_KINDS = frozenset(_OTHER_KINDS.split())
"""Extensions (lower case) of files that lie beside images and are none."""

OTHER_NAMES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".gitignore", ".gitattributes"})

OTHER_STEMS = frozenset({"readme", "license", "licence", "changelog", "copying", "notice"})


@dataclass(frozen=True)
class Rules:
    """What of a source counts, and how it is grouped.

    `include`, `exclude`: shell patterns against the path below the source, and against the bare
    name; an archive's members are below it, as in a folder. `group_by`: so many leading folders, or
    a column of a table. `by`: what parts are made by, likewise; so many folders become a label,
    `FOLDERS`. `image_column`: of Parquet and Arrow files that have several.
    """

    include: str | None = None
    exclude: str | None = None
    group_by: str | None = None
    image_column: str | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("group-by", self.group_by), ("by", self.by)):
            if (depth := folder_depth(value)) is not None and depth < 1:
                raise UsageError(
                    f"{option} is {value!r}; give the number of leading folders below the source "
                    "that name a group (1 for source/video17/frame.jpg), or a column of a table"
                )

    @property
    def depth(self) -> int | None:
        """Leading folders that name a group."""
        return folder_depth(self.group_by)

    @property
    def column(self) -> str | None:
        return self.group_by if self.depth is None else None

    @property
    def label(self) -> str | None:
        """The label that parts are made by."""
        return label_of(self.by) if self.by else None

    @property
    def label_depth(self) -> int | None:
        return folder_depth(self.by)

    def selects(self, path: str) -> bool:
        return (self.include is None or _matches(path, self.include)) and not self.leaves_out(path)

    def leaves_out(self, path: str) -> bool:
        return self.exclude is not None and _matches(path, self.exclude)


def folder_depth(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]+", text) else None


def other_kind(uri: str) -> str | None:
    """The kind of a file that is certainly no image, by its name; None for a candidate."""
    name = basename(uri).lower()
    stem, extension = splitext(name)
    if name in OTHER_NAMES or name.startswith("._"):
        return name if name in OTHER_NAMES else "._*"
    if extension in OTHER_KINDS:
        return extension
    return stem if not extension and stem in OTHER_STEMS else None


def _matches(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(basename(path), pattern)
