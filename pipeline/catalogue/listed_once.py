"""Finds out whether a manifest lists each candidate once: by many tasks, or in this process.

>>> hashes = sorted_hashes(manifest)                                           # doctest: +SKIP
>>> require_each_once(manifest, hashes)                                        # doctest: +SKIP

A task reads some entries files, and so checks them, and hashes the names in them to 8 bytes each.
This process sorts the hashes on its disk, a group of them in memory at a time. So it takes little
memory for any number of candidates, and 16 bytes of disk for each. Two names may have one hash.
Then the names themselves are compared.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, groupby, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import ConservationError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import Mapper, SerialMapper
from pipeline.sources import Entries, Manifest, ShardHead

FILES_IN_A_TASK = 8
"""How many entries files one task reads, which have 100,000 candidates each."""

SORTED_AT_ONCE = 2**24
"""About how many hashes are in memory at a time."""

MOST_COMPARED = 1000
"""How many hashes that come twice have their names compared. So many never agree by chance."""

HASH = np.dtype("<u8")

_SIZE = HASH.itemsize


def hashes_of(uris: pa.ChunkedArray, members: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Hashes the names of candidates, each its uri and its member.

    Args:
        uris: The uri of each candidate.
        members: Its name in its archive; empty outside of archives.

    Returns:
        The hashes, in the same order.
    """
    names = pc.binary_join_element_wise(uris, members, "\0").cast(pa.binary()).to_pylist()
    return np.frombuffer(b"".join(hashlib.sha256(name).digest()[:_SIZE] for name in names), HASH)


def sorted_hashes(
    manifest: Manifest, mapper: Mapper | None = None, progress: Listener = ignore
) -> NDArray[np.uint64]:
    """Reads all candidates of a manifest, and hashes their names.

    Args:
        manifest: The manifest.
        mapper: Where the entries are read; None for this process.
        progress: Told of the candidates that are read.

    Returns:
        The hashes of their names, sorted. They lie on this machine's disk.

    Raises:
        CorruptFile: If an entries file is damaged, or is not what the manifest describes.
        SourceError: If one is missing.
        StorageError: If this machine's disk has no room.
    """
    mapper = mapper or SerialMapper()
    tasks = list(_tasks(manifest))
    ends = list(accumulate((task.candidates for task in tasks), initial=0))

    def read() -> Iterator[tuple[int, bytes]]:
        started = Started(manifest.candidates, len(tasks), unit="candidates", step="tasks")
        with stage(progress, started):
            for number, found in mapper.map(NamesTask.hashes, tasks):
                yield ends[number] * _SIZE, found.tobytes()
                progress(StepDone(len(found)))

    size = manifest.candidates * _SIZE
    unsorted = np.frombuffer(storage.sparse(size, read()), HASH)
    of_tasks = [unsorted[start:stop] for start, stop in pairwise(ends)]

    def in_order() -> Iterator[tuple[int, bytes]]:
        done = 0
        for group in _groups(of_tasks, -(-manifest.candidates // SORTED_AT_ONCE)):
            yield done * _SIZE, group.tobytes()
            done += len(group)

    return np.frombuffer(storage.sparse(size, in_order()), HASH)


def require_each_once(
    manifest: Manifest, hashes: NDArray[np.uint64], mapper: Mapper | None = None
) -> None:
    """Refuses a manifest that lists a candidate twice.

    Args:
        manifest: The manifest.
        hashes: What `sorted_hashes` returned.
        mapper: Where the entries are read again, if hashes come twice; None for this process.

    Raises:
        ConservationError: If a candidate is listed twice.
    """
    starts = range(0, max(1, len(hashes)), SORTED_AT_ONCE)
    slices = (hashes[start : start + SORTED_AT_ONCE + 1] for start in starts)
    again = np.concatenate([some[1:][some[1:] == some[:-1]][:MOST_COMPARED] for some in slices])
    if not len(again):
        return
    find = partial(NamesTask.names, wanted=np.unique(again)[:MOST_COMPARED])
    found = chain.from_iterable((mapper or SerialMapper()).map(find, list(_tasks(manifest))))
    twice = sorted(name for name, times in Counter(found).items() if times > 1)
    if twice:
        raise ConservationError(f"the manifest lists a candidate twice: {twice[0]}")


def are_among(some: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Tells which hashes are among those that `sorted_hashes` returned.

    Args:
        some: The hashes to look up.
        hashes: Sorted hashes.

    Returns:
        For each, whether it is there.
    """
    if not len(hashes):
        return np.zeros(len(some), bool)
    at = np.searchsorted(hashes, some)
    return np.asarray(hashes[np.minimum(at, len(hashes) - 1)] == some)


@dataclass(frozen=True)
class NamesTask:
    """Shards whose candidates one task reads.

    Attributes:
        number: The task's number.
        entries: Where the candidates are.
        heads: The shards; those of a file are one after the other.
    """

    number: int
    entries: Entries
    heads: tuple[ShardHead, ...]

    @property
    def candidates(self) -> int:
        """How many candidates the shards have."""
        return sum(head.candidates for head in self.heads)

    def hashes(self) -> tuple[int, NDArray[np.uint64]]:
        """Returns the task's number, and the sorted hashes of its names."""
        found = [hashes_of(rows["uri"], rows["member"]) for _, rows in self._tables()]
        return self.number, np.sort(np.concatenate(found))

    def names(self, wanted: NDArray[np.uint64]) -> list[str]:
        """Returns the names that have one of some hashes."""
        return [
            f"{uri}::{member}" if member else uri
            for _, rows in self._tables()
            for uri, member in _rows_where(
                rows, np.isin(hashes_of(rows["uri"], rows["member"]), wanted)
            )
        ]

    def _tables(self) -> Iterator[tuple[ShardHead, pa.Table]]:
        return self.entries.read_shards(self.heads)


def _rows_where(rows: pa.Table, chosen: NDArray[np.bool_]) -> Iterable[tuple[str, str]]:
    some = rows.filter(pa.array(chosen))
    return zip(some["uri"].to_pylist(), some["member"].to_pylist(), strict=True)


def _tasks(manifest: Manifest) -> Iterator[NamesTask]:
    """Yields tasks that together read each entries file once."""
    places = {name: at for at, name in enumerate(manifest.files)}

    def place(head: ShardHead) -> tuple[int, int]:
        return places[head.address.file], head.address.row_group

    in_files = sorted(manifest.heads, key=place)
    runs = groupby(in_files, lambda head: places[head.address.file] // FILES_IN_A_TASK)
    for number, (_, heads) in enumerate(runs):
        yield NamesTask(number, manifest.entries, tuple(heads))


def _groups(runs: Sequence[NDArray[np.uint64]], number: int) -> Iterator[NDArray[np.uint64]]:
    """Sorts sorted runs together.

    Args:
        runs: Each is sorted.
        number: How many groups to make, of hashes that are evenly spread.

    Yields:
        Groups, each of them sorted and all of it above the last one.
    """
    starts = [np.uint64((at << 64) // number) for at in range(1, number)]
    cuts = [[0, *np.searchsorted(run, np.array(starts, HASH)), len(run)] for run in runs]
    for at in range(number):
        group = np.concatenate(
            [run[cut[at] : cut[at + 1]] for run, cut in zip(runs, cuts, strict=True)]
        )
        group.sort()
        yield group
