"""What a source names -> every candidate image, in the parts of a listing.

    >>> list_source("photos/").ignored                        # doctest: +SKIP
    {'.txt': 3}

A folder or prefix, a glob, one object, a text list, or a table (Parquet or CSV) with a column
`uri`. Archives among them are looked into (see `pipeline.archive`). A file of a well-known other
kind, by its name, is ignored and counted; everything else is a candidate, whatever its name says,
and its content decides (see `pipeline.images`).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from posixpath import basename, splitext
from time import monotonic
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import archive, storage
from pipeline.archive import Index
from pipeline.errors import CorruptFile, SourceError, UsageError, VdnaError
from pipeline.listing import Kept, Listing, Parts, label_columns, pages
from pipeline.manifest import FOLDERS, SCHEMA, label_of
from pipeline.progress import Progress, Silent
from pipeline.spec import digest_of
from pipeline.storage import Stored

T = TypeVar("T")
R = TypeVar("R")
Spread = Callable[[Callable[[T], R], Sequence[T]], Iterable[R]]

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
TABLE_EXTENSIONS = frozenset({".csv", ".parquet"})
TABLE_COLUMNS = ("uri", "member", "size", "identity")
"""Of a user's table that mean something to us; all others are labels."""
SHARED_STORES = ("s3", "gs", "gcs", "abfs", "az", "http", "https")
"""What a list that comes from a store may name: whoever wrote it may not have this machine's files
read (`file`, and others of fsspec's that lead to them, as `local`, `zip`, `reference`, `sftp`)."""
AT_ONCE = 32
"""Objects of a list that are looked at together."""
SAY_SECONDS = 10.0


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
            if (depth := _depth(value)) is not None and depth < 1:
                raise UsageError(
                    f"{option} is {value!r}; give the number of leading folders below the source "
                    "that name a group (1 for source/video17/frame.jpg), or a column of a table"
                )

    @property
    def depth(self) -> int | None:
        """Leading folders that name a group."""
        return _depth(self.group_by)

    @property
    def column(self) -> str | None:
        return self.group_by if self.depth is None else None

    @property
    def label(self) -> str | None:
        """The label that parts are made by."""
        return label_of(self.by) if self.by else None

    @property
    def label_depth(self) -> int | None:
        return _depth(self.by)

    def selects(self, path: str) -> bool:
        return (self.include is None or _matches(path, self.include)) and not self.leaves_out(path)

    def leaves_out(self, path: str) -> bool:
        return self.exclude is not None and _matches(path, self.exclude)


def _depth(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]+", text) else None


def list_source(
    source: str | os.PathLike[str],
    rules: Rules | None = None,
    *,
    kept: Kept | None = None,
    spread: Spread[Any, Any] | None = None,
    cache: str | None = None,
    progress: Progress | None = None,
) -> Listing:
    """Candidates of a source; one that it names twice may be there twice.

    `kept`: parts of this listing, where it may be interrupted and go on. `spread`: looks into
    archives, many at a time (threads of this process where it is not given). `cache`: a folder
    where the contents of an archive are kept, by its identity. Raises `SourceError` where the
    source does not exist or holds no candidate.
    """
    text = os.fspath(source)
    if not text:
        raise UsageError("the source is empty; give a folder, a glob, a list or a url")
    look = _Look(text, rules or Rules(), kept, progress or Silent())
    look.list()
    look.open_archives(spread or _threads, cache)
    return look.listing()


class _Look:
    """One look at a source."""

    def __init__(self, text: str, rules: Rules, kept: Kept | None, progress: Progress) -> None:
        self._text = text
        self._rules = rules
        self._progress = progress
        self._uri = storage.canonical(text)
        self._table = _Table.of(self._uri, rules)
        self._source = self._root = self._uri  # what is told, and what paths are below
        for option, column in (("group-by", rules.column), ("by", rules.by)):
            depth = _depth(column)
            if column is not None and depth is None and self._table is None:
                raise UsageError(
                    f"{option} is {column!r}, and {text} is no table; give a number of leading "
                    "folders, or a table (Parquet or CSV) that has the column"
                )
        self._labels: tuple[str, ...] = (FOLDERS,) if rules.label_depth else ()
        if self._table is not None:
            if self._labels:
                raise UsageError(
                    f"by is {rules.by!r}, a number of folders, and {text} is a table; name one of "
                    f"its labels: {', '.join(self._table.labels)}"
                )
            self._labels = self._table.labels
            if rules.by is not None and rules.by not in self._labels:
                raise UsageError(
                    f"by is {rules.by!r}; the labels of {text} are: {', '.join(self._labels)}"
                )
        self._kept = kept if self._is_prefix() else None
        self._parts = Parts(self._labels, self._kept)
        self._archives: dict[str, _Archive] = {}
        for item in self._parts.archives:
            self._note(item, "", None, ())
        self._said = self._started = monotonic()

    def list(self) -> None:
        """Single objects to the parts; archives are noted."""
        if self._table is not None:
            self._root = self._uri.rpartition("/")[0]
            for row in self._table.rows(self._root):
                self._take(row.item, row.member, row.group, row.labels)
        elif self._is_list():
            self._root = self._uri.rpartition("/")[0]
            for item in _listed(self._uri, self._root):
                self._take(item)
        elif self._is_glob():
            is_file = storage.protocol_of(self._uri) == "file"
            head = self._text.split("*")[0].split("?")[0].split("[")[0]
            self._source = self._root = storage.canonical(head.rpartition("/")[0] or ".")
            for item in storage.glob(self._text if is_file else self._uri):
                self._take(item)
        elif self._is_prefix():
            if self._kept and self._kept.written:
                self._progress.say(
                    f"going on with the listing that was interrupted at "
                    f"{self._kept.written:%H:%M:%S} UTC ({self._parts.resumed:,} candidates)"
                )
            for page in pages(self._uri, self._kept.spans if self._kept else None):
                for item in page:
                    self._take(item)
                self._checkpoint()
            return
        else:
            for item in storage.walk(self._uri):
                self._take(item)
        self._checkpoint()

    def open_archives(self, spread: Spread[Any, Any], cache: str | None) -> None:
        """The members of the archives to the parts."""
        if not self._archives:
            return
        self._progress.say(f"looking into {len(self._archives):,} archives")
        task = partial(_look_into, image_column=self._rules.image_column, cache=cache)
        for uri, data in spread(task, [found.item for found in self._archives.values()]):
            index = None if data is None else Index.decode(data, uri)
            self._add_members(self._archives[uri], index)
            self._say()

    def listing(self) -> Listing:
        found = self._parts.listing(self._source)
        if not self._parts.total:
            raise SourceError(
                f"{self._text} holds no image ({sum(found.ignored.values())} files of other kinds "
                f"ignored, {found.filtered} left out by include and exclude)"
            )
        return found

    # What the source is.

    def _is_glob(self) -> bool:
        if not any(mark in self._text for mark in "*?["):
            return False
        return storage.protocol_of(self._uri) != "file" or not storage.exists(self._uri)

    def _is_list(self) -> bool:
        return splitext(self._uri)[1].lower() == LIST_EXTENSION and storage.exists(self._uri)

    def _is_prefix(self) -> bool:
        return (
            storage.protocol_of(self._uri) == "s3"
            and self._table is None
            and not self._is_glob()
            and not self._is_list()
        )

    # What becomes of an object.

    def _take(
        self,
        item: Stored,
        member: str = "",
        group: str | None = None,
        labels: Sequence[str | None] = (),
    ) -> None:
        path = self._below(item.uri)
        if archive.kind_of(item.uri) is not None:
            if self._rules.leaves_out(path):
                self._parts.filtered += 1
            else:
                if item.uri not in self._archives:
                    self._parts.archives.append(item)
                self._note(item, member, group, labels)
        elif not self._rules.selects(path):
            self._parts.filtered += 1
        elif kind := other_kind(item.uri):
            self._parts.ignored[kind] += 1
        else:
            group = self._group(item.uri) if group is None else group
            labels = labels if self._table else self._folder_label(item.uri)
            self._parts.add(item.uri, "", item.size, item.identity, group, labels=labels)
            if self._parts.total % 1000 == 0:
                self._say()

    def _note(
        self, item: Stored, member: str, group: str | None, labels: Sequence[str | None]
    ) -> None:
        """An archive, or a member that a table names, to be looked for when all is listed."""
        said = self._archives.setdefault(item.uri, _Archive(item, {})).said
        its = (group, tuple(labels))
        if member in said:
            self._parts.duplicates += 1
            if said[member] != its:
                raise SourceError(
                    f"{item.uri}::{member} is listed twice, as {said[member]} and {its}; it counts "
                    "once, so give it one group and one of each label"
                )
        said[member] = its

    def _add_members(self, found: _Archive, index: Index | None) -> None:
        item, path = found.item, self._below(found.item.uri)
        if index is None:  # a table without images
            self._parts.ignored[splitext(item.uri)[1].lower()] += 1
            return
        self._parts.ignored.update(index.ignored)
        self._parts.duplicates += index.duplicates
        names = index.members["member"].to_pylist()
        missing = found.said.keys() - {"", *names}
        if missing:
            raise SourceError(f"{item.uri} has no member {min(missing)!r}, which is listed")
        files = archive.kind_of(item.uri) not in archive.TABLES
        keep, groups, labels = [], [], []
        for name in names:
            said = found.said.get(name) or found.said.get("")
            kind = other_kind(name) if files and name else None
            if said is None:
                keep.append(False)
            elif name and not self._rules.selects(f"{path}/{name}".lstrip("/")):
                self._parts.filtered += 1
                keep.append(False)
            elif kind:
                self._parts.ignored[kind] += 1
                keep.append(False)
            else:
                keep.append(True)
                group, its = said
                below = f"{item.uri}/{name}"
                groups.append(self._group(below) if group is None else group)
                labels.append(its if self._table else self._folder_label(below))
        table = index.members.filter(pa.array(keep, pa.bool_()))
        columns = {name: table[name] for name in ("member", "size", "position", "access")} | {
            "uri": pa.array([item.uri] * table.num_rows, pa.string()),
            "identity": pa.array([item.identity] * table.num_rows, pa.string()),
            "group": pa.array(groups, pa.string()),
        }
        for at, name in enumerate(label_columns(self._labels)):
            columns[name] = pa.array([its[at] for its in labels], pa.string())
        self._parts.add_table(pa.table(columns))

    def _below(self, uri: str) -> str:
        """The path below the source, as people write it."""
        return storage.readable(uri).removeprefix(storage.readable(self._root)).lstrip("/")

    def _group(self, uri: str) -> str:
        depth = self._rules.depth
        if depth is None:
            return ""
        prefix = self._root.rstrip("/") + "/"
        return prefix + "/".join(uri.removeprefix(prefix).split("/")[:-1][:depth])

    def _folder_label(self, uri: str) -> tuple[str | None, ...]:
        """Of an image that lies less deep: none."""
        depth = self._rules.label_depth
        if depth is None:
            return ()
        folders = self._below(uri).split("/")[:-1]
        return ("/".join(folders[:depth]) if len(folders) >= depth else None,)

    def _checkpoint(self) -> None:
        self._parts.checkpoint()
        self._say()

    def _say(self) -> None:
        now = monotonic()
        if now - self._said >= SAY_SECONDS:
            self._said = now
            listed = self._parts.total - self._parts.resumed
            rate = listed / (now - self._started)
            self._progress.say(f"{self._parts.total:,} candidates listed, {rate:,.0f} a second")


@dataclass(frozen=True)
class _Archive:
    """An archive that the source names. `said`: group and labels by member, "" for all of it."""

    item: Stored
    said: dict[str, tuple[str | None, tuple[str | None, ...]]]


def _look_into(
    item: Stored, image_column: str | None, cache: str | None
) -> tuple[str, bytes | None]:
    """The archive's uri and its index, encoded; out of the cache if it was looked into before."""
    place = ""
    if cache is not None:
        name = digest_of("index", archive.FORMAT, item.uri, item.identity, image_column)
        place = storage.join(cache, f"{name}.parquet")
        try:
            data = storage.read(place)
            Index.decode(data, place)
            return item.uri, data
        except (SourceError, CorruptFile):
            pass  # not looked into yet, or damaged
    index = archive.index(item, image_column)
    if index is None:
        return item.uri, None
    data = index.encode()
    if place:
        storage.replace(place, data)
    return item.uri, data


def _threads(function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    with ThreadPoolExecutor(AT_ONCE, "archive") as pool:
        yield from pool.map(function, items)


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """In order, so many at a time, and never far ahead of whoever takes them."""
    with ThreadPoolExecutor(AT_ONCE, "look") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 4 * AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


# Lists and tables.


def _listed(uri: str, parent: str) -> Iterator[Stored]:
    """Objects of a text list: one path or url a line, relative ones to the list's folder."""

    def look(numbered: tuple[int, str]) -> Stored:
        number, name = numbered
        with _naming(f"{uri}, line {number}"):
            return storage.info(_absolute(name, parent))

    def named() -> Iterator[tuple[int, str]]:
        for number, line in enumerate(text, 1):
            name = line.strip()
            if name and not name.startswith("#"):
                yield number, name

    try:
        with storage.open_random(uri) as file:
            text = io.TextIOWrapper(cast(Any, file), encoding="utf-8", newline="\n")
            yield from _ahead(look, named())
    except UnicodeDecodeError as error:
        raise SourceError(f"{uri} is not a list of paths in UTF-8: {error}") from error


@dataclass(frozen=True)
class _Row:
    item: Stored
    member: str
    group: str | None
    labels: tuple[str | None, ...]


@dataclass(frozen=True)
class _Table:
    """A user's table of images: Parquet or CSV, one row an image, with a column `uri`.

    `member` names one of an archive's. Where `size` and `identity` are given they are not looked
    up; a wrong one is found when the image is read. All other columns are labels.
    """

    uri: str
    columns: tuple[str, ...]
    group: str | None

    @classmethod
    def of(cls, uri: str, rules: Rules) -> _Table | None:
        """None where the object is no table: a folder, or a Parquet file of images."""
        extension = splitext(uri)[1].lower()
        if extension not in TABLE_EXTENSIONS:
            return None
        try:
            storage.info(uri)
        except SourceError:
            return None
        with _as_table(uri), storage.open_random(uri) as file:
            if extension == ".csv":
                columns = tuple(pyarrow.csv.open_csv(file).schema.names)
            else:
                columns = tuple(pq.ParquetFile(file).schema_arrow.names)
        twice = sorted({name for name in columns if columns.count(name) > 1})
        if "uri" in columns and (twice or "" in columns):
            raise UsageError(f"{uri} has a column without a name, or names twice: {twice or ['']}")
        if "uri" not in columns:
            if extension == ".parquet":
                return None
            raise UsageError(
                f"{uri} has no column uri, with one image's path or url a row; it has: "
                f"{', '.join(columns)}"
            )
        if rules.column is not None and rules.column not in columns:
            raise UsageError(
                f"group-by is {rules.column!r}; {uri} has no such column, but: {', '.join(columns)}"
            )
        return cls(uri, columns, rules.column)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of ours are not for labels."""
        return tuple(n for n in self.columns if n not in (*TABLE_COLUMNS, *SCHEMA.names))

    def rows(self, parent: str) -> Iterator[_Row]:
        def look(numbered: tuple[int, dict[str, Any]]) -> _Row:
            number, row = numbered
            with _naming(f"{self.uri}, row {number}"):
                if not row["uri"]:
                    raise SourceError("it names no uri")
                name = _absolute(str(row["uri"]), parent)
                if row.get("identity") and row.get("size") not in (None, ""):
                    item = Stored(name, int(row["size"]), str(row["identity"]), None)
                else:
                    item = storage.info(name)
                if row.get("member") and archive.kind_of(name) is None:
                    raise SourceError(f"{name} is no archive, and cannot have a member")
                group = None if self.group is None else _text(row[self.group]) or ""
                labels = tuple(_text(row[label]) for label in self.labels)
                return _Row(item, str(row.get("member") or ""), group, labels)

        yield from _ahead(look, enumerate(self._read(), 1))

    def _read(self) -> Iterator[dict[str, Any]]:
        with _as_table(self.uri), storage.open_random(self.uri) as file:
            batches: Iterable[pa.RecordBatch]
            if splitext(self.uri)[1].lower() == ".csv":
                text = pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(self.columns, pa.string())
                )
                batches = pyarrow.csv.open_csv(file, convert_options=text)
            else:
                batches = pq.ParquetFile(file).iter_batches(batch_size=4096)
            for batch in batches:
                yield from batch.to_pylist()


def _text(value: object) -> str | None:
    return None if value is None else str(value)


@contextlib.contextmanager
def _as_table(uri: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise SourceError(f"{uri} cannot be read as a table: {error}") from error


@contextlib.contextmanager
def _naming(where: str) -> Iterator[None]:
    """An error, with the line or row that it is of."""
    try:
        yield
    except VdnaError as error:
        raise type(error)(f"{where}: {error}") from error
    except ValueError as error:
        raise SourceError(f"{where}: {error}") from error


def _absolute(name: str, parent: str) -> str:
    """Raises `UsageError` where a list of a store names what only this machine can read."""
    here = storage.protocol_of(parent)
    plain = "://" not in name and not name.startswith(("/", "~"))
    if plain and here == "file":
        name = os.path.join(storage.local_path(parent), name)
    uri = storage.canonical(storage.join(parent, name) if plain and here != "file" else name)
    if here != "file" and storage.protocol_of(uri) not in (here, *SHARED_STORES):
        raise UsageError(
            f"{name} is not in a store; a list that lies in one may name objects of "
            f"{', '.join(SHARED_STORES)} and of its own store only"
        )
    return uri


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
