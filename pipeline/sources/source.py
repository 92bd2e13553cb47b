"""What a source names -> every candidate image, in the parts of a listing.

    >>> list_source("photos/").ignored                        # doctest: +SKIP
    {'.txt': 3}

A folder or prefix, a glob, one object, a text list, or a table (Parquet or CSV) with a column
`uri`. Archives among them are looked into (see `pipeline.archive`). A file of a well-known other
kind, by its name, is ignored and counted; everything else is a candidate, whatever its name says,
and its content decides (see `pipeline.images`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from posixpath import splitext
from time import monotonic
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.errors import CorruptFile, SourceError, UsageError
from pipeline.events import Listener, Said, ignore
from pipeline.sources.archives import indexing as archive
from pipeline.sources.archives.index import INDEX_FORMAT, Index
from pipeline.sources.listing import Kept, Listing, Parts, label_columns
from pipeline.sources.listing_pages import pages
from pipeline.sources.manifest import FOLDERS
from pipeline.sources.map_ahead import R, T, map_in_threads
from pipeline.sources.rules import Rules, folder_depth, other_kind
from pipeline.sources.tables import LIST_EXTENSION, SourceTable, uris_of_list
from pipeline.spec import digest_of
from pipeline.storage import Stored

Spread = Callable[[Callable[[T], R], Sequence[T]], Iterable[R]]

SAY_SECONDS = 10.0


def list_source(
    source: str | os.PathLike[str],
    rules: Rules | None = None,
    *,
    kept: Kept | None = None,
    spread: Spread[Any, Any] | None = None,
    cache: str | None = None,
    progress: Listener | None = None,
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
    look = _Look(text, rules or Rules(), kept, progress or ignore)
    look.list()
    look.open_archives(spread or map_in_threads, cache)
    return look.listing()


class _Look:
    """One look at a source."""

    def __init__(self, text: str, rules: Rules, kept: Kept | None, progress: Listener) -> None:
        self._text = text
        self._rules = rules
        self._progress = progress
        self._uri = storage.canonical(text)
        self._table = SourceTable.of(self._uri, rules)
        self._source = self._root = self._uri  # what is told, and what paths are below
        for option, column in (("group-by", rules.column), ("by", rules.by)):
            depth = folder_depth(column)
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
            for item in uris_of_list(self._uri, self._root):
                self._take(item)
        elif self._is_glob():
            is_local = storage.store_of(self._uri).is_local
            head = self._text.split("*")[0].split("?")[0].split("[")[0]
            self._source = self._root = storage.canonical(head.rpartition("/")[0] or ".")
            for item in storage.glob(self._text if is_local else self._uri):
                self._take(item)
        elif self._is_prefix():
            if self._kept and self._kept.written:
                self._progress(
                    Said(
                        f"going on with the listing that was interrupted at "
                        f"{self._kept.written:%H:%M:%S} UTC ({self._parts.resumed:,} candidates)"
                    )
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
        self._progress(Said(f"looking into {len(self._archives):,} archives"))
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
        return not storage.store_of(self._uri).is_local or not storage.exists(self._uri)

    def _is_list(self) -> bool:
        return splitext(self._uri)[1].lower() == LIST_EXTENSION and storage.exists(self._uri)

    def _is_prefix(self) -> bool:
        return (
            storage.store_of(self._uri).lists_in_key_order
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
            self._progress(Said(f"{self._parts.total:,} candidates listed, {rate:,.0f} a second"))


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
        name = digest_of("index", INDEX_FORMAT, item.uri, item.identity, image_column)
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
