"""Waits for the shards that another job counts, and takes over those of a job that has died.

    >>> waiting = SharedShards(claimant)                                         # doctest: +SKIP
    >>> waiting.hold(work_uri, key, (0, index))
    >>> found = waiting.look(work_uri, present, monotonic())

While it waits, a job lists the leases of a dataset at intervals, and its partials when a lease is
gone. A lease is over if it was seen without a change for as long as a lease holds. So a job waits
no longer than that for a dead one, whatever the clocks say. The store's clock shortens the wait: a
lease that is old when it is first seen has been waited for already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.counting import EXPIRY_SECONDS, Holder, age_of, list_leases, read_note
from pipeline.errors import SourceError
from pipeline.storage import Stored

MARGIN_SECONDS = 2.0
"""How much longer a lease is waited for than it holds: the times of some stores lack fractions of
seconds, and a worker that takes the shard judges by these times."""

FIRST_PAUSE, LONGEST_PAUSE, PAUSE_FACTOR = 0.05, 5.0, 1.5
"""Seconds between two looks; each pause is longer than the last while nothing changes."""


Place = tuple[int, int]
"""Where a run has a shard: the number of the run's job, and the index of the shard in it."""


@dataclass(frozen=True)
class Found:
    """What became of shards that another job has held.

    Attributes:
        stored: The places of those that are stored now.
        free: Those that can be claimed.
        unclaimed: Those that are to be counted without a claim, as no lease of theirs can be judged
            by the store's clock.
    """

    stored: tuple[Place, ...] = ()
    free: tuple[Place, ...] = ()
    unclaimed: tuple[Place, ...] = ()


@dataclass
class _Watched:
    """A lease that is watched: what it looked like, since when, and how old it was then."""

    sign: tuple[object, ...]
    holder: Holder
    since: float
    age: float


@dataclass
class SharedShards:
    """The shards that other jobs hold.

    Attributes:
        claimant: The id of this job.
        held: The places of each such shard, by its key, by the work folder of its dataset. There
            are several if several jobs of the run have the shard.
    """

    claimant: str
    held: dict[str, dict[str, list[Place]]] = field(default_factory=dict)
    _watched: dict[str, _Watched] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _tried: dict[str, list[Stored]] = field(default_factory=dict)
    """The leases of each shard that was handed out although it had some, by its key."""

    def hold(self, work_uri: str, key: str, place: Place) -> None:
        """Takes note of a shard that another job holds."""
        self.held.setdefault(work_uri, {}).setdefault(key, []).append(place)

    def forget(self, work_uri: str) -> list[Place]:
        """Returns the places of a dataset's held shards. They are held no longer."""
        return sorted(place for places in self.held.pop(work_uri).values() for place in places)

    def look(self, work_uri: str, present: Callable[[], Set[str]], now: float) -> Found:
        """Looks at the held shards of a dataset once.

        Args:
            work_uri: The work folder of the dataset.
            present: Lists the keys of the shards that are stored.
            now: The time in seconds, by a clock that is never set.

        Returns:
            What became of those that no other job holds any more. They are held no longer.
        """
        held = self.held[work_uri]
        listed = list_leases(work_uri)
        leases = {key: listed.get(key, []) for key in held}
        self._watch(work_uri, leases, now)
        for key in held:
            if self._tried.get(key) != leases[key]:  # another job took it, so no worker refused it
                self._tried.pop(key, None)
        over = {key for key in held if all(self._is_over(item, now) for item in leases[key])}
        if not over:
            return Found()
        there = present()
        stored, free, unclaimed = list[Place](), list[Place](), list[Place]()
        for key in sorted(over, key=held.__getitem__):
            places = held.pop(key)
            if key in there:
                stored += places
            elif self._can_be_claimed(key, leases[key]):
                free += places
            else:
                unclaimed += places
        if not held:
            del self.held[work_uri]
        return Found(tuple(stored), tuple(free), tuple(unclaimed))

    def _watch(self, work_uri: str, leases: Mapping[str, list[Stored]], now: float) -> None:
        """Notes the leases that are new or were renewed."""
        first = work_uri not in self._known
        self._known.add(work_uri)
        items = [item for several in leases.values() for item in several]
        clock = None
        for item in items:
            seen, sign = self._watched.get(item.uri), (item.identity, item.modified)
            if seen is not None and seen.sign == sign:
                continue
            if seen is not None:
                # Another process may have claimed the shard anew, under the same number.
                holder = _holder_of(item.uri) if seen.holder.is_gone else seen.holder
                self._watched[item.uri] = _Watched(sign, holder, now, 0.0)
                continue
            holder, age = _holder_of(item.uri), 0.0
            if first and item.modified is not None:
                clock = clock or storage.clock(work_uri)
                age = min(max(0.0, age_of(item.modified, clock)), EXPIRY_SECONDS + MARGIN_SECONDS)
            self._watched[item.uri] = _Watched(sign, holder, now, age)

    def _is_over(self, item: Stored, now: float) -> bool:
        seen = self._watched[item.uri]
        age = seen.age + now - seen.since - MARGIN_SECONDS
        return seen.holder.is_over(self.claimant, age)

    def _can_be_claimed(self, key: str, leases: list[Stored]) -> bool:
        """Whether a worker will find that leases are over; it has no clock but the store's."""
        refused = leases and self._tried.get(key) == leases
        self._tried[key] = leases
        return not refused and all(item.modified is not None for item in leases)


def _holder_of(uri: str) -> Holder:
    """Reads who holds a lease; nobody if it was removed, and the next look will not find it."""
    try:
        return Holder.of(read_note(uri))
    except SourceError:
        return Holder("")
