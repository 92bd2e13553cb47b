"""Lists the objects of a source, and looks into its archives.

    >>> lister = SourceLister("photos/", Rules(), None, ignore)      # doctest: +SKIP
    >>> lister.list_objects(None)                                    # doctest: +SKIP
    >>> lister.listing().ignored                                     # doctest: +SKIP
    {'.txt': 3}

A source is a folder or prefix, a glob, one object, a text list, a table with a column that names
images, or a report of S3 Inventory. Archives among its objects are looked into (see
`pipeline.sources.archives`). Files of well-known other kinds are ignored by their names, and
counted. Everything else is a candidate whatever its name says: its content decides when it is
decoded (see `pipeline.images`).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, islice
from operator import itemgetter
from posixpath import basename, splitext
from time import monotonic
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import SourceError, UsageError, printable
from pipeline.events import Listener, Said
from pipeline.mapper import Mapper, map_in_order
from pipeline.sources.archives.contents import TABLES, archive_kind, encoded_index
from pipeline.sources.archives.index import ArchiveIndex, label_column
from pipeline.sources.cell_cuts import folders_of
from pipeline.sources.entries_file import ENTRY_SCHEMA, OBJECTS_SCHEMA
from pipeline.sources.fold_assignment import HASHED_GROUPS
from pipeline.sources.inventory import Inventory, find_inventory
from pipeline.sources.listing import Listing, ListingWriter, label_columns
from pipeline.sources.listing_checkpoint import ListingCheckpoint
from pipeline.sources.lists_and_tables import (
    LIST_EXTENSION,
    SourceTable,
    lacks_column,
    objects_in_list,
)
from pipeline.sources.manifest import Manifest
from pipeline.sources.pair_names import BY_STEM, Pairing
from pipeline.sources.parallel_listing import KeyRange, list_pages
from pipeline.sources.plain_images import part_plain_images
from pipeline.sources.rules import CACHES, Rules, is_cache, other_kind, parent_folder
from pipeline.storage import Stored
from pipeline.wording import count_of, option, some_of

PAGE_OBJECTS = 1000

PAGES_TOGETHER = 16
"""How many pages of an S3 prefix are put into columns at a time. Each call takes some time, however
many rows it gets, and the threads that ask for pages wait meanwhile."""

MOST_CLASSES = 1000
"""Folders of more than so many are not taken for classes."""

FoundPage = tuple[int, Iterable[tuple[Any, ...]]]
"""How many files a page has, and the arguments for `_add_object` of those that are left to it."""

SAY_SECONDS = 10.0
"""Time between two messages about the progress of a listing."""


@dataclass(frozen=True)
class _NamedArchive:
    """An archive that the source names.

    `members` has the group and the labels of each member that a table names; the member "" stands
    for all that have no row of their own.
    """

    item: Stored
    members: dict[str, tuple[str | None, tuple[str | None, ...]]]


class SourceLister:
    """Lists one source: first its objects, then the members of its archives.

    Attributes:
        text: The source as the user named it.
        uri: Its canonical uri.
        source: What was listed: the uri, or the folder that a pattern or an inventory stands for.
        rules: Which candidates count.
        inventory: The report of S3 Inventory that is read. None for another source.
        ranges: How far each range of keys of an S3 prefix was read, by its number. Of a report that
            tasks read: a range of all keys for each file that is not read, by the file's number.
        candidates: What was found.

    Args:
        text: The source.
        rules: Which candidates count, and how they are grouped and labelled.
        checkpoint: Where parts of the listing of an S3 prefix are kept, and of a large report that
            tasks read. None keeps none.
        progress: Is told how far the listing has come.
        ranges: The ranges of keys to list. None takes those of the checkpoint, or else all.
        part_entries: See `ListingWriter`.
        inventory: The report, or some of its files. None looks whether the source is one.
        by_tasks: Whether there are tasks that can read a large report.
    """

    def __init__(
        self,
        text: str,
        rules: Rules,
        checkpoint: ListingCheckpoint | None,
        progress: Listener,
        ranges: dict[int, KeyRange] | None = None,
        part_entries: int | None = None,
        *,
        inventory: Inventory | None = None,
        by_tasks: bool = False,
    ) -> None:
        self.text, self._shown = text, printable(text)
        self.rules = rules
        self._progress = progress
        self.uri = rules.canonical(text)
        self.inventory = inventory or find_inventory(self.uri)
        self._table = None if self.inventory else SourceTable.open(self.uri, rules)
        self._labels = self._choose_labels()
        self._require_pair_label()
        self._archive_labels = self._choose_archive_labels()
        self._kind = self._find_kind()
        self.source = self._root = self.uri  # paths are relative to the root
        if self._kind in ("table", "list"):
            self._root = parent_folder(self.uri)
            if self._table is not None:
                self._root = self._table.folder(self._root, rules)
        elif self._kind == "glob":
            fixed = text.split("*")[0].split("?")[0].split("[")[0]
            folder, slash, _ = fixed.rpartition("/")
            self.source = self._root = rules.canonical(folder + slash or ".")
        elif self.inventory is not None:
            self.source = self._root = self.inventory.bucket
        self._checkpoint = checkpoint if self._kind == "prefix" else None
        if self.inventory is not None and checkpoint is not None and by_tasks:
            self._checkpoint = checkpoint if self.inventory.is_large else None
        if self._checkpoint is not None:
            self._checkpoint.read_report(self.inventory.digest if self.inventory else "")
        kept = self._checkpoint.ranges if self._checkpoint else {}
        self.ranges = kept if ranges is None else ranges
        if self.can_be_cut and self.inventory is not None and not self.ranges:
            self.ranges |= {number: KeyRange("") for number in range(len(self.inventory.files))}
        self.candidates = ListingWriter(self._labels, self._checkpoint, part_entries)
        self._archives: dict[str, _NamedArchive] = {}
        for item in self.candidates.archives:
            self._add_archive(item, "", None, ())
        self._classes: dict[str, None] | None = None  # folders of an ImageFolder
        if self._kind in ("prefix", "folder or object") and not rules.by:
            # Those of an interrupted listing are not known.
            self._classes = None if self.candidates.resumed else {}
        self._last_said = self._started = monotonic()

    @property
    def pairing(self) -> Pairing:
        """How images are named for pairing."""
        return Pairing(self._root, self.rules.pair_by)

    def _choose_labels(self) -> tuple[str, ...]:
        rules, table = self.rules, self._table
        if table is None:
            if rules.label in ENTRY_SCHEMA.names:
                raise UsageError(
                    f"by is {rules.by!r}, which is a column of the manifest's own; rename the "
                    f"column or field in {self._shown}"
                )
            return (rules.label,) if rules.label else ()
        if rules.label_depth:
            raise UsageError(
                f"by is {rules.by!r}, a number of folders, and {self._shown} is a table; name one "
                f"of its labels: {', '.join(map(printable, table.labels))}{table.file.head()}"
            )
        if rules.by is not None and rules.by not in table.labels:
            raise UsageError(
                f"by is {rules.by!r}; the labels of {self._shown} are: "
                f"{', '.join(map(printable, table.labels))}{table.file.head()}"
            )
        return table.labels

    def _require_pair_label(self) -> None:
        """Checks that the label by which images are paired is there.

        Raises:
            UsageError: It is not.
        """
        label = Pairing(by=self.rules.pair_by).label
        if label is None or (self._table is not None and label in self._labels):
            return
        if self._table is None:
            what = f"{self._shown} is no table; give {BY_STEM!r}, which takes the names of files"
        else:
            what = f"the labels of {self._shown} are: {', '.join(map(printable, self._labels))}"
        raise UsageError(f"pair-by is {label!r}; {what}")

    def _choose_archive_labels(self) -> tuple[str, ...]:
        """Returns the labels that archives have to tell: those that are no folders."""
        rules = self.rules
        if self._table is not None:
            return ()
        by_column = rules.by if rules.label_depth is None else None
        return tuple(dict.fromkeys(name for name in (by_column, rules.group_column) if name))

    def _refuse_label(self, path: str) -> None:
        """Says that a single image has no labels but its folders.

        Raises:
            UsageError: Always.
        """
        name = self._archive_labels[0]
        choice = "by" if name == self.rules.by else "group_by"
        folders = path.split("/")[:-1]
        lies = f" lies in the folder {folders[0]!r}" if folders else ""
        raise UsageError(
            f"{choice.replace('_', '-')} is {name!r}, and {self._shown} is not a table or an "
            f"archive with labels: {printable(path) or self._shown}{lies or ' is an image'}. "
            f"{option(choice, 1)} goes by the first folder"
        )

    def _find_kind(self) -> str:
        store = storage.store_of(self.uri)
        if self.inventory is not None:
            return "inventory"
        if self._table is not None:
            return "table"
        if splitext(self.uri)[1].lower() == LIST_EXTENSION and storage.exists(self.uri):
            return "list"
        has_marks = any(mark in self.text for mark in "*?[")
        # A mark may also be part of a name, and a `?` begin a query.
        if has_marks and not (storage.exists(self.uri) or storage.is_folder(self.uri)):
            return "glob"
        if store.is_local and not os.path.exists(storage.local_path(self.uri)):
            raise SourceError(
                f"{self._shown} does not exist; check the path. A source is a folder, a glob, a "
                f"list of images ({LIST_EXTENSION}), a table, an archive, an image, or a url of one"
            )
        return "prefix" if store.lists_in_key_order else "folder or object"

    @property
    def can_be_cut(self) -> bool:
        """Whether tasks may list it: an S3 prefix or a large report whose listing is kept."""
        return self._checkpoint is not None

    @property
    def is_single(self) -> bool:
        """Whether it has single images alone so far, without labels; groups are of folders."""
        rules = self.rules
        return not (rules.by or rules.group_column or self._archive_labels or self._archives)

    @property
    def is_grouped(self) -> bool:
        """Whether folders name groups."""
        return self.rules.group_depth is not None

    @property
    def has_hashed_folds(self) -> bool:
        """Whether the names of images, or of their groups, are enough to tell their folds."""
        return not self.is_grouped or len(self.candidates.groups) >= HASHED_GROUPS

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The folders that all images lie in, while they look like classes."""
        return None if self._classes is None else tuple(self._classes)

    def add_classes(self, folders: tuple[str, ...] | None) -> None:
        """Adds the folders that another lister has found (see `classes`)."""
        if self._classes is not None and folders is not None:
            self._classes |= dict.fromkeys(folders)
        if folders is None or len(self._classes or ()) > MOST_CLASSES:
            self._classes = None

    def add_archives(self, found: Iterable[Stored]) -> None:
        """Adds archives that another lister has found, each as often as it was found."""
        for item in found:
            self.candidates.archives.append(item)
            self._add_archive(item, "", None, ())

    def list_objects(self, outside: str | None, most: int | None = None) -> None:
        """Lists the single images. Archives are noted for later. A large report is left to tasks.

        Args:
            outside: The folder that no link may lead into, with links followed.
            most: From this number of files on, the listing of a prefix stops; `ranges` tell what is
                left. None lists all.
        """
        if self._checkpoint and self._checkpoint.written:
            self._progress(
                Said(
                    f"going on with the listing that was interrupted at "
                    f"{self._checkpoint.written:%H:%M:%S} UTC "
                    f"({count_of(self.candidates.resumed, 'candidate')})"
                )
            )
        if self.can_be_cut and self.inventory is not None:
            return
        looked_at = self.candidates.resumed
        with closing(self.read_pages(outside)) as pages:
            for files in pages:
                self.say()
                looked_at += files
                if most is not None and looked_at >= most and self._kind == "prefix":
                    return

    def read_pages(self, outside: str | None) -> Generator[int, None, None]:
        """Lists the single images page by page. Archives are noted for later.

        Args:
            outside: As in `list_objects`.

        Yields:
            How many files a page has, after its candidates were added.
        """
        with closing(self._pages(outside)) as pages:  # waits for the pages that were asked for
            for files, page in pages:
                for row in page:
                    self._add_object(*row)
                self.candidates.end_page(files)
                yield files

    def _pages(self, outside: str | None) -> Generator[FoundPage, None, None]:
        """Yields the pages of the source; adds what it can add as a whole."""
        rows: Iterator[tuple[Any, ...]]
        if self.inventory is not None:
            for found in self.inventory.objects():
                objects = found if outside is None else self._not_below(outside, found)
                yield objects.num_rows, zip(self._add_plain_images(objects), strict=True)
            return
        if self._kind == "prefix":
            pages = list_pages(self.uri, self.ranges)
            while together := list(islice(pages, PAGES_TOGETHER)):
                objects = _objects_of(together)
                yield objects.num_rows, zip(self._add_plain_images(objects), strict=True)
            return
        if self._table is not None:
            for size, images, others in self._table.pages(self._root, self.rules):
                if images is not None:
                    self._add_images(images)
                yield size, others
            self._require_image_column()
            return
        if self._kind == "list":
            rows = zip(objects_in_list(self.uri, self._root, self.rules), strict=True)
        elif self._kind == "glob":
            local = storage.store_of(self.uri).is_local
            rows = self._found(storage.glob(self.text if local else self.uri), outside)
        else:
            rows = self._found(storage.walk(self.uri), outside)
        while some := list(islice(rows, PAGE_OBJECTS)):
            yield len(some), some

    def _require_image_column(self) -> None:
        """Checks that the column of images is there: in the table, or in an archive that it names.

        Raises:
            UsageError: It cannot be.
        """
        name, table = self.rules.image_column, self._table
        if table is None or name is None or name in table.file.columns:
            return
        if not any(archive_kind(uri) in TABLES for uri in self._archives):
            refusal = lacks_column(table.file, name)
            raise refusal

    def _not_below(self, folder: str, objects: pa.Table) -> pa.Table:
        """Leaves out the objects of a folder of results, which lie in the bucket, too."""
        theirs = pc.starts_with(objects["uri"], f"{folder}/")
        self.candidates.filtered += pc.sum(theirs).as_py() or 0
        return objects.filter(pc.invert(theirs))

    def _add_plain_images(self, objects: pa.Table) -> Iterator[Stored]:
        """Adds the objects that are candidates by their name alone, many times as fast.

        Args:
            objects: A table of `OBJECTS_SCHEMA`.

        Yields:
            The other objects, which the rules have to look at one by one.
        """
        if self.rules.is_plain:
            images, objects = part_plain_images(objects)
            self._note_classes(images["uri"])
            self._add_images(images)
        for row in objects.to_pylist():
            yield Stored(**row, modified=None)

    def _add_images(self, images: pa.Table) -> None:
        """Adds single images, with their groups."""
        if self.is_grouped:
            images = images.append_column("group", self._folder_groups(images["uri"]))
        self.candidates.add_objects(images)

    def _found(self, items: Iterable[Stored], outside: str | None) -> Iterator[tuple[Stored]]:
        """Yields the objects that a search finds.

        Raises:
            UsageError: A link led the search into `outside`.
        """
        last = ""
        for item in items:
            folder = item.uri.rpartition("/")[0]
            if outside is not None and folder != last:
                last = folder
                if f"{storage.resolved(folder)}/".startswith(f"{outside}/"):
                    raise UsageError(
                        f"a link in {self._shown} leads to {storage.readable(outside)}: "
                        f"{storage.readable(item.uri)} would be listed with the images. Remove the "
                        "link, or put the results elsewhere"
                    )
            yield (item,)

    def list_archives(self, mapper: Mapper | None, cache: str | None) -> None:
        """Lists the members of the archives."""
        if not self._archives:
            return
        self._progress(Said(f"looking into {count_of(len(self._archives), 'archive')}"))
        task = partial(
            encoded_index,
            image_column=self.rules.image_column,
            cache=cache,
            labels=self._archive_labels,
        )
        many = map_in_order if mapper is None or mapper.in_process else mapper.map
        for uri, data in many(task, [found.item for found in self._archives.values()]):
            index = None if data is None else ArchiveIndex.decode(data, uri)
            self._add_members(self._archives[uri], index)
            self.say()

    def listing(self, planned: Manifest | None = None) -> Listing:
        """Returns the listing of everything that was found.

        Args:
            planned: The plan of it, if there is one.

        Raises:
            SourceError: Nothing was found.
        """
        found = replace(self.candidates.listing(self.source, planned), pairing=self.pairing)
        self._offer_parts()
        if planned is None and not self.candidates.total:
            kinds = some_of([f"{count} {kind}" for kind, count in sorted(found.ignored.items())])
            raise SourceError(
                f"{self._shown} holds no image ("
                f"{count_of(sum(found.ignored.values()), 'file')} of other kinds ignored"
                f"{kinds and f': {kinds}'}, {found.filtered} left out by include and exclude)"
            )
        return found

    def _add_object(
        self,
        item: Stored,
        member: str = "",
        group: str | None = None,
        labels: Sequence[str | None] = (),
    ) -> None:
        path = self._relative(item.uri) or basename(storage.readable(item.uri))
        if archive_kind(item.uri) is not None:
            if self.rules.excludes(path):
                self.candidates.filtered += 1
            elif is_cache(item.uri) and not self._is_named(item.uri):
                self.candidates.ignored[CACHES] += 1
            else:
                if self._table is None:  # a row of a table may name one member only
                    self.candidates.archives.append(item)
                self._add_archive(item, member, group, labels)
        elif not self.rules.selects(path):
            self.candidates.filtered += 1
        elif kind := other_kind(item.uri):
            self.candidates.ignored[kind] += 1
        else:
            if self._archive_labels:
                self._refuse_label(path)
            self._note_class(path)
            group = self._folder_group(item.uri) if group is None else group
            labels = labels if self._table else self._folder_label(item.uri)
            self.candidates.add(item.uri, "", item.size, item.identity, group, labels=labels)

    def _is_named(self, uri: str) -> bool:
        """Returns whether the user named an object itself, not a folder or pattern."""
        return self._kind in ("table", "list") or uri == self.uri

    def _note_class(self, path: str) -> None:
        """Notes the folder of a single image, while all images lie in such folders."""
        if self._classes is None:
            return
        folders = path.split("/")[:-1]
        if len(folders) == 1:
            self._classes[folders[0]] = None
        if len(folders) != 1 or len(self._classes) > MOST_CLASSES:
            self._classes = None

    def _note_classes(self, uris: pa.ChunkedArray) -> None:
        """Notes the folders of many images (see `_note_class`)."""
        if self._classes is not None and len(uris):
            for folder in folders_of(uris.combine_chunks()).unique().to_pylist():
                self._note_class(self._relative(f"{folder}image"))

    def _offer_parts(self) -> None:
        """Offers to go by the folders, if they look like classes."""
        if self._classes is not None and len(self._classes) > 1 and not self._archives:
            names = some_of([printable(name) for name in sorted(self._classes)])
            self._progress(
                Said(
                    f"the images lie in {count_of(len(self._classes), 'folder')} ({names}); "
                    f"{option('by', 1)} also builds a dataset of each"
                )
            )

    def _add_archive(
        self, item: Stored, member: str, group: str | None, labels: Sequence[str | None]
    ) -> None:
        """Notes an archive, or one member of it that a table names.

        Raises:
            SourceError: It was named before with another group or label.
        """
        members = self._archives.setdefault(item.uri, _NamedArchive(item, {})).members
        described = (group, tuple(labels))
        if member in members:
            self.candidates.duplicates += 1
            if members[member] != described:
                raise SourceError(
                    f"{item.uri}::{member} is listed twice, as {members[member]} and {described}; "
                    "it counts once, so give it one group and one of each label"
                )
        members[member] = described

    def _add_members(self, archive: _NamedArchive, index: ArchiveIndex | None) -> None:
        """Adds those members of an archive that are named and selected.

        Raises:
            SourceError: A member that is named does not exist, and the archive is whole.
        """
        item, path = archive.item, self._relative(archive.item.uri)
        by_name = archive.members.keys() - {""}
        if index is None:  # a table without images
            if by_name:
                raise SourceError(
                    f"{item.uri} has no column of images, so it has no member {min(by_name)!r}, "
                    "which is listed"
                )
            self.candidates.ignored[splitext(item.uri)[1].lower()] += 1
            return
        if "" in archive.members:  # what else is in it concerns none who names single members
            self.candidates.ignored.update(index.ignored)
            self.candidates.duplicates += index.duplicates
        members = index.members
        if missing := sorted(by_name - {*members["member"].to_pylist()}):
            members = _with_lost_members(item.uri, members, missing)
        names = members["member"].to_pylist()
        members_are_files = archive_kind(item.uri) not in TABLES
        kept, groups, labels = [], [], []
        told = [members[label_column(number)].to_pylist() for number in range(index.labels)]
        for number, name in enumerate(names):
            named = archive.members.get(name) or archive.members.get("")
            if named is None:
                continue
            if name and not self.rules.selects(f"{path}/{name}".lstrip("/")):
                self.candidates.filtered += 1
            elif members_are_files and name and (kind := other_kind(name)):
                self.candidates.ignored[kind] += 1
            else:
                kept.append(number)
                group, of_row = named
                uri = f"{item.uri}/{name}"
                its = {label: told[at][number] for at, label in enumerate(self._archive_labels)}
                if self.rules.group_column in its:
                    group = its[self.rules.group_column] or ""
                groups.append(self._folder_group(uri) if group is None else group)
                if self._table is None:
                    of_row = (
                        (its[self.rules.by],) if self.rules.by in its else self._folder_label(uri)
                    )
                labels.append(of_row)
        table = members.take(pa.array(kept, pa.int64()))
        columns = {name: table[name] for name in ("member", "size", "position", "access")} | {
            "uri": pa.array([item.uri] * table.num_rows, pa.string()),
            "identity": pa.array([item.identity] * table.num_rows, pa.string()),
            "group": pa.array(groups, pa.string()),
        }
        for at, name in enumerate(label_columns(self._labels)):
            columns[name] = pa.array([values[at] for values in labels], pa.string())
        self.candidates.add_table(pa.table(columns))
        if index.image_bytes and kept:
            self.candidates.unsized += len(kept)
            self.candidates.unsized_bytes += index.image_bytes * len(kept) // len(names)

    def _relative(self, uri: str) -> str:
        """Returns the path below the source, as people write it; the whole path of another uri."""
        if uri == self._root:
            return ""
        root = storage.readable(self._root)
        return storage.readable(uri).removeprefix(_with_slash(root)).lstrip("/")

    def _require_below(self, uri: str, choice: str) -> None:
        """Checks that an image has folders below the source.

        Args:
            uri: The image.
            choice: The option that goes by these folders.

        Raises:
            UsageError: It lies elsewhere.
        """
        if uri == self._root or uri.startswith(_with_slash(self._root)):
            return
        given = {"by": self.rules.by, "group_by": self.rules.group_by}[choice]
        root = printable(storage.readable(self._root))
        raise UsageError(
            f"{choice.replace('_', '-')} is {given!r}, a number of leading folders below {root}, "
            f"and {self._shown} names {storage.spelled(uri)}, which does not lie there. Put the "
            "list or table into a folder that all its images lie below, or go by a column of a "
            "table"
        )

    def _folder_group(self, uri: str) -> str:
        """Returns the uri of the leading folders that name a group; empty without such groups.

        Raises:
            UsageError: The image does not lie below the source.
        """
        depth = self.rules.group_depth
        if depth is None:
            return ""
        self._require_below(uri, "group_by")
        prefix = _with_slash(self._root)
        below = uri.removeprefix(prefix) if uri != self._root else ""
        return prefix + "/".join(below.split("/")[:-1][:depth])

    def _folder_groups(self, uris: pa.ChunkedArray) -> pa.ChunkedArray:
        """Returns the groups of many images (see `_folder_group`), each folder looked at once."""
        groups = []
        for page in uris.chunks:
            folders = folders_of(page).dictionary_encode().indices
            _, firsts = np.unique(folders, return_index=True)
            names = map(self._folder_group, page.take(firsts).to_pylist())
            groups.append(pa.array(names, pa.string()).take(folders))
        return pa.chunked_array(groups, pa.string())

    def _folder_label(self, uri: str) -> tuple[str | None, ...]:
        """Returns the label of an image: its leading folders, or None if it has too few.

        Raises:
            UsageError: The image does not lie below the source.
        """
        depth = self.rules.label_depth
        if depth is None:
            return ()
        self._require_below(uri, "by")
        folders = self._relative(uri).split("/")[:-1]
        return ("/".join(folders[:depth]) if len(folders) >= depth else None,)

    def say(self, message: str = "") -> None:
        """Tells how far the work is, every ten seconds.

        Args:
            message: How far it is; empty to tell how many candidates were listed.
        """
        now = monotonic()
        if now - self._last_said >= SAY_SECONDS:
            self._last_said = now
            listed = self.candidates.total - self.candidates.resumed
            rate = listed / (now - self._started)
            total = count_of(self.candidates.total, "candidate")
            self.tell(message or f"{total} listed, {rate:,.0f} a second")

    def tell(self, message: str) -> None:
        """Tells the user something about the listing."""
        self._progress(Said(message))


def _with_slash(folder: str) -> str:
    """Returns what the names below a folder begin with."""
    return folder if folder.endswith("/") else f"{folder}/"


def _with_lost_members(uri: str, members: pa.Table, missing: Sequence[str]) -> pa.Table:
    """Adds members that a table names and a damaged archive lacks. They fail as the archive does.

    Args:
        uri: The archive.
        members: What was found in it. The row of a damaged one has an empty name.
        missing: The names.

    Returns:
        The members, with a row for each name.

    Raises:
        SourceError: The archive is whole.
    """
    damage = members.filter(pc.equal(members["member"], ""))
    if not damage.num_rows:
        raise SourceError(f"{uri} has no member {missing[0]!r}, which is listed")
    lost = damage.take(pa.array([0] * len(missing)))
    return pa.concat_tables([members, lost.set_column(0, members.field(0), pa.array(missing))])


def _objects_of(pages: Sequence[Sequence[Stored]]) -> pa.Table:
    """Returns pages of a listing as the columns of `OBJECTS_SCHEMA`, each page as a chunk."""
    found = list(chain.from_iterable(pages))
    columns = [list(map(itemgetter(at), found)) for at in range(len(OBJECTS_SCHEMA))]
    objects, starts = pa.table(columns, OBJECTS_SCHEMA), accumulate(map(len, pages), initial=0)
    return pa.concat_tables(
        objects.slice(start, len(page)) for start, page in zip(starts, pages, strict=False)
    )
