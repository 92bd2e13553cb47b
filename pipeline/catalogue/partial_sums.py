"""Reads the partials of a version again, and adds them up: as many tasks, or in this process.

>>> sum_of_partials(manifest, work, version).dna                               # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import islice

from pipeline import storage
from pipeline.catalogue.commit import Version
from pipeline.counting import load_partial, plan_folds
from pipeline.dna import Partial
from pipeline.errors import SourceError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.mapper import Mapper, SerialMapper, in_order, map_in_order
from pipeline.sources import Manifest, walk_widely

READ_IN_A_TASK = 256
"""How many partials one task reads, if they are not added up."""

READ_AHEAD = 2
"""Threads of a task that read partials. Up to four for each are in memory, which may be large."""


def present_partials(uris: Sequence[str], *, listed: bool) -> list[str]:
    """Finds out which partials of a version are there.

    Args:
        uris: The partials, all in one folder.
        listed: Whether to list the folder. If it holds many others, each is asked for instead.

    Returns:
        Those that are there, in the same order.
    """
    if not listed:
        found = map_in_order(storage.exists, uris)
        return [uri for uri, there in zip(uris, found, strict=True) if there]
    folders = {uri.rpartition("/")[0] for uri in uris}
    try:
        known = {item.uri for folder in folders for item in walk_widely(folder)}
    except SourceError:
        return []
    return [uri for uri in uris if uri in known]


def read_partials(
    uris: Sequence[str], mapper: Mapper | None = None, progress: Listener = ignore
) -> None:
    """Reads partials, and so checks that each is whole.

    Args:
        uris: The partials.
        mapper: Where they are read; None for this process.
        progress: Told of the partials that are read.

    Raises:
        CorruptFile: If one is torn, or is another shard's.
        SourceError: If one is missing.
    """
    runs = [uris[first : first + READ_IN_A_TASK] for first in range(0, len(uris), READ_IN_A_TASK)]
    with stage(progress, Started(len(uris), len(runs), unit="partials", step="tasks")):
        for number in (mapper or SerialMapper()).map(_read_all, runs):
            progress(StepDone(number))


def _read_all(uris: Sequence[str]) -> int:
    """Reads partials, as one task, and returns how many there were."""
    return sum(1 for _ in map_in_order(load_partial, uris, READ_AHEAD))


_Sum = str | tuple["_Sum", ...]
"""A partial's uri, or the sums that are added to one."""


def sum_of_partials(
    manifest: Manifest,
    work: str,
    version: Version,
    mapper: Mapper | None = None,
    progress: Listener = ignore,
) -> Partial:
    """Adds up all partials of a dataset, in the order in which a build adds them.

    Args:
        manifest: The dataset's manifest.
        work: The folder of the partials.
        version: The dataset's version.
        mapper: Where they are read and added; None for this process.
        progress: Told of the partials that are read.

    Returns:
        The sum.

    Raises:
        CorruptFile: If a partial is torn, or is another shard's.
        SourceError: If one is missing.
    """
    levels, folds = plan_folds(manifest, work, version.spec, version.products)
    nodes = {node.uri: node for level in levels for node in level}

    def below(uri: str) -> _Sum:
        return tuple(map(below, nodes[uri].children)) if uri in nodes else uri

    tasks = list(enumerate(below(uri) for fold in folds for uri, _ in fold.parts))

    def told(numbered: Iterable[tuple[int, Partial]]) -> Iterator[tuple[int, Partial]]:
        for number, found in numbered:
            progress(StepDone(len(found.shards)))
            yield number, found

    started = Started(len(manifest.heads), len(tasks), unit="partials", step="sums")
    with stage(progress, started):
        sums = in_order(told((mapper or SerialMapper()).map(_add, tasks)))
        # A fold's sum is begun when its first part is there.
        return reduce(
            Partial.__add__,
            (reduce(Partial.__add__, islice(sums, len(fold.parts))) for fold in folds),
        )


def _add(task: tuple[int, _Sum]) -> tuple[int, Partial]:
    """Adds partials up, as one task, and returns the sum with the task's number."""
    number, wanted = task
    return number, _value(wanted, map_in_order(load_partial, _uris_of(wanted), READ_AHEAD))


def _value(wanted: _Sum, loaded: Iterator[Partial]) -> Partial:
    """Adds partials up as they are loaded."""
    if isinstance(wanted, str):
        return next(loaded)
    return reduce(Partial.__add__, (_value(each, loaded) for each in wanted))


def _uris_of(wanted: _Sum) -> Iterator[str]:
    """Yields the partials of a sum in the order in which they are added."""
    if isinstance(wanted, str):
        yield wanted
    else:
        for each in wanted:
            yield from _uris_of(each)
