"""What a source names: a folder, a glob, a text list, one object -> every candidate image, once.

    >>> list_source("photos/").ignored                        # doctest: +SKIP
    {'.txt': 3}

A file of a well-known other kind, by its name, is ignored and counted; everything else is a
candidate, whatever its name says, and its content decides (see `pipeline.images`).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from posixpath import basename, splitext

from pipeline import storage
from pipeline.errors import SourceError, UsageError
from pipeline.manifest import Entry, Listing, grouping, sample
from pipeline.storage import Stored

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
LIST_EXTENSION = ".txt"


def list_source(
    source: str | os.PathLike[str],
    *,
    include: str | None = None,
    exclude: str | None = None,
    limit: int | None = None,
    group_by: str | None = None,
) -> Listing:
    """Candidates in order of uri, duplicates dropped.

    `include`, `exclude`: shell patterns against the path below the source, and against the bare
    name. `limit`: so many, the same on every run. Raises `SourceError` where the source does not
    exist or holds no candidate.
    """
    text = os.fspath(source)
    root, found = _resolve(text)
    group_of = grouping(group_by, root)
    entries: dict[str, Entry] = {}
    ignored: Counter[str] = Counter()
    duplicates = filtered = 0
    for item in found:
        path = storage.readable(item.uri).removeprefix(storage.readable(root)).lstrip("/")
        if not _selected(path, include, exclude):
            filtered += 1
        elif kind := other_kind(item.uri):
            ignored[kind] += 1
        elif item.uri in entries:
            duplicates += 1
        else:
            entries[item.uri] = Entry(item.uri, "", item.size, item.identity, group_of(item.uri))
    if not entries:
        raise SourceError(
            f"{text} holds no image ({sum(ignored.values())} files of other kinds ignored, "
            f"{filtered} left out by include and exclude)"
        )
    chosen = tuple(entries.values()) if limit is None else tuple(sample(entries.values(), limit))
    return Listing(root, chosen, dict(ignored), duplicates)


def other_kind(uri: str) -> str | None:
    """The kind of a file that is certainly no image, by its name; None for a candidate."""
    name = basename(uri).lower()
    stem, extension = splitext(name)
    if name in OTHER_NAMES or name.startswith("._"):
        return name if name in OTHER_NAMES else "._*"
    if extension in OTHER_KINDS:
        return extension
    return stem if not extension and stem in OTHER_STEMS else None


def _resolve(text: str) -> tuple[str, Iterator[Stored]]:
    """The canonical root of the source, and the objects it names."""
    if not text:
        raise UsageError("the source is empty; give a folder, a glob, a list or a url")
    uri = storage.canonical(text)
    protocol = storage.protocol_of(uri)
    is_glob = any(mark in text for mark in "*?[")
    if is_glob and not (protocol == "file" and storage.exists(uri)):
        pattern = text if protocol == "file" else uri
        head = text.split("*")[0].split("?")[0].split("[")[0]
        folder = head.rpartition("/")[0]
        return storage.canonical(folder or "."), storage.glob(pattern)
    if splitext(uri)[1].lower() == LIST_EXTENSION and storage.exists(uri):
        parent = uri.rpartition("/")[0]
        return parent, _listed(uri, storage.read(uri), parent)
    return uri, storage.walk(uri)


def _listed(uri: str, data: bytes, parent: str) -> Iterator[Stored]:
    """Objects of a text list: one path or url a line, relative ones to the list's folder."""
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri} is not a list of paths in UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        try:
            yield storage.info(_absolute(name, parent))
        except SourceError as error:
            raise SourceError(f"{uri}, line {number}: {error}") from error


def _absolute(name: str, parent: str) -> str:
    if "://" in name or name.startswith(("/", "~")):
        return storage.canonical(name)
    if storage.protocol_of(parent) == "file":
        return storage.canonical(os.path.join(storage.local_path(parent), name))
    return storage.join(parent, name)


def _selected(path: str, include: str | None, exclude: str | None) -> bool:
    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatchcase(path, p) or fnmatchcase(basename(path), p) for p in patterns)

    return (include is None or matches([include])) and not (
        exclude is not None and matches([exclude])
    )
