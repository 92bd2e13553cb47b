"""Finds what a change list names in the earlier plan of a very large source, by tasks.

    >>> runs = match_members(named, before, folder, engine, print)         # doctest: +SKIP
    >>> sum(len(run.shards) for run in runs), runs[0].parts[0].rows        # doctest: +SKIP
    (24416, 213)

Each task reads some shards. It stores the members that are named, which are then compared with what
was found of the list, and counts the others. So the process that builds holds no members.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.mapper import Mapper
from pipeline.sources import blocks, stretches
from pipeline.sources.entries_file import Entries
from pipeline.sources.entry import ShardHead
from pipeline.sources.fold_assignment import HASHED_GROUPS
from pipeline.sources.listing import StoredPart
from pipeline.sources.manifest import Manifest
from pipeline.sources.pair_names import Pairing
from pipeline.sources.plan_comparison import (
    ComparedNames,
    shards_for_tasks,
    single_members,
    told,
    totals_of,
)
from pipeline.sources.stretches import read_stored, run_in_task, store_sorted

UNIQUE_NAMES_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("number", pa.int64()),
        ("is_removed", pa.bool_()),
        ("is_found", pa.bool_()),
    ]
)
"""What tasks are told of each uri that a change list names: the number of its first row, whether
that says that it was removed, and whether the uri is a candidate now."""


@dataclass(frozen=True)
class MatchedMembers:
    """What a task has found.

    Attributes:
        shards: The numbers of the shards.
        parts: The members that are named, as parts with the columns of `MEMBER_SCHEMA` and any
            groups.
        rest: The members that are not named. They stay as they are.
        removed: How many of the named members were removed, as the list says.
        folders: The number of the row, and the uri, of what is named like a folder of members. It
            is neither a candidate now nor a member of these shards.
        groups: Groups of the members that are not named, `HASHED_GROUPS` at most.
    """

    shards: tuple[int, ...]
    parts: tuple[StoredPart, ...]
    rest: ComparedNames
    removed: int
    folders: tuple[tuple[int, str], ...]
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class NamedMembers:
    """Shards of an earlier plan for one task to look into.

    Attributes:
        heads: The shards.
        entries: Where their members are.
        named: The parts of what is named, with the columns of `UNIQUE_NAMES_SCHEMA`.
        folder: Where the members go that are named.
        groups: See `single_members`.
    """

    heads: tuple[ShardHead, ...]
    entries: Entries
    named: tuple[StoredPart, ...]
    folder: str
    groups: Pairing | None = None

    def run(self) -> MatchedMembers | None:
        """Finds the members. None if `single_members` does not take them."""
        rows = single_members(self.heads, self.entries, self.groups)
        if rows is None:
            return None
        above = pa.array(folders_above(rows["uri"]), pa.string())
        is_named, removed = np.zeros(rows.num_rows, np.bool_), 0
        folders: list[tuple[int, str]] = []
        for data in read_stored(self.named):  # all of a long list would be too much to hold
            named = pq.read_table(pa.BufferReader(data))
            at = pc.index_in(rows["uri"], value_set=named["uri"])
            is_named |= pc.is_valid(at).to_numpy()
            here = named["uri"].take(at.drop_null())
            removed += pc.sum(named["is_removed"].take(at.drop_null())).as_py() or 0
            is_known = pc.or_(named["is_found"], pc.is_in(named["uri"], value_set=here))
            is_folder = pc.is_in(named["uri"], value_set=above)
            like = named.filter(pc.and_not(is_folder, is_known))
            folders += zip(like["number"].to_pylist(), like["uri"].to_pylist(), strict=True)
        matched, left = rows.filter(pa.array(is_named)), rows.filter(pa.array(~is_named))
        most = stretches.REPORT_PART_ENTRIES
        parts = store_sorted(matched, self.folder, blocks.BLOCK_IMAGES, (), most)
        return MatchedMembers(
            tuple(head.index for head in self.heads),
            tuple(parts) if len(matched) else (),
            ComparedNames(("", None), totals_of(left), left.num_rows, frozenset(), (), (), ()),
            removed,
            tuple(folders),
            tuple(pc.unique(left["group"]).to_pylist()[:HASHED_GROUPS]) if self.groups else (),
        )


def match_members(
    named: Sequence[StoredPart],
    previous: Manifest,
    folder: str,
    mapper: Mapper,
    say: Callable[[str], None],
    groups: Pairing | None = None,
) -> list[MatchedMembers] | None:
    """Has tasks find the members of a plan that a change list names.

    Args:
        named: What it names, with the columns of `UNIQUE_NAMES_SCHEMA`.
        previous: The plan.
        folder: Where tasks put what they have found.
        mapper: Where tasks run.
        say: Is told how far they are.
        groups: See `single_members`.

    Returns:
        What each task has found. None if `single_members` does not take all of the plan.

    Raises:
        CorruptFile: Entries of the plan are damaged.
        SourceError: Entries of the plan are missing.
    """
    of_tasks = shards_for_tasks(previous, groups)
    if of_tasks is None:
        return None
    tasks = [NamedMembers(its, previous.entries, tuple(named), folder, groups) for its in of_tasks]
    done = mapper.map(run_in_task, tasks)
    runs = list(told(done, len(tasks), "of the plan before looked into", say))
    found = [run for run in runs if run is not None]
    return found if len(found) == len(runs) else None


def first_folder(runs: Sequence[MatchedMembers]) -> tuple[int, str] | None:
    """Finds what a change list names that is a folder of members, and no image.

    Args:
        runs: What tasks have found.

    Returns:
        The number of the first such row, and its uri. None if there is none.
    """
    left = {uri: number for run in runs for number, uri in run.folders}
    names = sorted(left)
    # An image beside a folder of its name may be a member that another task has found.
    parts = [
        part
        for run in runs
        for part in run.parts
        if bisect_left(names, part.first) < bisect_right(names, part.last)
    ]
    for data in read_stored(parts):
        for uri in pq.read_table(pa.BufferReader(data), columns=["uri"])["uri"].to_pylist():
            left.pop(uri, None)
    return min(((number, uri) for uri, number in left.items()), default=None)


def folders_above(uris: pa.Array | pa.ChunkedArray) -> list[str]:
    """Returns the uris of all folders that images are in, sorted.

    Args:
        uris: The images.
    """
    above: set[str] = set()
    for folder in pc.unique(pc.replace_substring_regex(uris, "/[^/]*$", "")).to_pylist():
        while "/" in folder and folder not in above:
            above.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(above)
