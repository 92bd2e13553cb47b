"""Counts one shard: its images become its partial.

>>> Counter(extractor, spec, ranges).count(shard, key).dna.images        # doctest: +SKIP
"""

from __future__ import annotations

import collections
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import reduce as add_left_to_right
from itertools import accumulate, islice

import numpy as np

from pipeline.counting.activation_counts import Counts, CpuCounts, GpuCounts, Means, count_batch
from pipeline.counting.bin_vectors import NONFINITE, OVERFLOW, UNDERFLOW
from pipeline.counting.cells import cell_key, encode_cells, is_cell
from pipeline.counting.decode_ahead import Ahead
from pipeline.counting.device_counts import DeviceRanges
from pipeline.counting.device_order import order_of
from pipeline.counting.extractor import Extractor
from pipeline.counting.feed import Prepared
from pipeline.counting.histogram import Counted
from pipeline.counting.preparing import Fetch
from pipeline.counting.stream import Made, Stream
from pipeline.counting.top_images import TopImages, name_order
from pipeline.dna import (
    DNA,
    HASH_ROW,
    ExemplarSettings,
    Failure,
    Floats,
    HashRows,
    ImageHashes,
    Moments,
    Partial,
    Ranges,
)
from pipeline.errors import ConservationError
from pipeline.images import Loaded
from pipeline.sources import Shard
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN, PRODUCTS, Numerics, Resources, Spec
from pipeline.storage import spelled


def encoding_threads(threads: int) -> int:
    """Returns how many threads of a worker make the files of cells: half as many as it has.

    A cell of 128 images takes one of them 0.07 s for the embedded network, so with two a worker
    keeps the cells of 3,800 images a second.

    Args:
        threads: How many threads run the network, or would on a CPU.
    """
    return max(1, threads // 2)


class Counter:
    """Holds an extractor, ranges and threads; several shards may be counted at a time.

    Each of them has, beside the cell that is counted, at most two cells more to be encoded than
    there are threads for that, each with its tables.
    """

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources | None = None,
        products: Sequence[str] = PRODUCTS,
        ahead: Ahead | None = None,
    ):
        self._extractor = extractor
        self._spec = spec
        self._ranges = ranges
        self._products = products
        hashed = IMAGE_HASHES in products
        self._stream = Stream(extractor, spec.preprocess, resources, ahead, hashed)
        encoders = encoding_threads((resources or Resources()).with_cpus(1).threads or 1)
        self._encoders = ThreadPoolExecutor(encoders, "cells")
        self._most_waiting = encoders + 1
        self._on_gpu: DeviceRanges | None = None
        self._order = order_of(extractor.device)
        if extractor.on_device:
            low, high = ranges.low, ranges.high
            self._on_gpu = DeviceRanges.on(extractor.device, low, high, spec.bins)

    def count(
        self, shard: Shard, key: str, fetch: Fetch | None = None, *, isolated: bool = False
    ) -> Partial:
        """Counts a shard, and checks the sum.

        Args:
            shard: The shard.
            key: The shard's key, which the partial states.
            fetch: Reads a member; None reads it from its store.
            isolated: Whether images are decoded in a process apart.

        Returns:
            The shard's partial.

        Raises:
            ConservationError: If counted and failed images are not the shard's candidates.
            TransientError: If an image could not be read through no fault of its own.
            SourceError: If an image changed since it was listed.
        """
        with closing(self.count_each([(shard, key)], fetch, isolated=isolated)) as counted:
            return next(counted)

    def count_each(
        self,
        shards: Sequence[tuple[Shard, str]],
        fetch: Fetch | None = None,
        *,
        isolated: bool = False,
    ) -> Generator[Partial, None, None]:
        """Counts several shards without a pause or an empty place between them; see `count`.

        Args:
            shards: Each shard with its key. All of them are held in memory.
            fetch: As in `count`.
            isolated: As in `count`.

        Yields:
            The partial of each shard, in order: that of `count`, to the last bit.
        """
        cells = [self._cells(shard, {}) for shard, _ in shards]
        made = self._made([cell for each in cells for cell in each], fetch, isolated=isolated)
        with closing(made):
            partials = (partial for partial, _ in made)
            for (shard, key), of_shard in zip(shards, cells, strict=True):
                yield _sum_of_cells(shard, key, islice(partials, len(of_shard)))

    def make(
        self, shard: Shard, key: str, *, isolated: bool, kept: Mapping[str, bytes] | None = None
    ) -> Made:
        """Counts a shard and encodes its partial, for a worker to commit; see `count`.

        Args:
            shard: The shard.
            key: The shard's key.
            isolated: Whether images are decoded in a process apart.
            kept: What an earlier build has kept of the shard's cells, as `find_cells` returns it.

        Returns:
            The file, that of its cells, and how many images are in it.
        """
        cells = self._cells(shard, kept or {})
        files: dict[str, bytes] = {}
        sizes: list[int] = []

        def in_order(made: Iterator[tuple[Partial, bytes]]) -> Iterator[Partial]:
            """Yields one partial after the other: each is large, and there may be many."""
            for (cell, _), (partial, data) in zip(cells, made, strict=True):
                files[cell] = data
                yield partial

        made = self._made(cells, isolated=isolated, encode=bool(shard.cells), sizes=sizes)
        with closing(made):
            total = _sum_of_cells(shard, key, in_order(made))
        new = [piece.members for _, pieces in cells for piece in pieces if not piece.kept]
        reused = total.candidates - sum(len(each.members) for each in new)
        counted = {(entry.uri, entry.member) for each in new for entry in each.members}
        reasons = collections.Counter(
            failure.reason for failure in total.failures if (failure.uri, failure.member) in counted
        )
        failed = reasons.total()
        return Made(
            total.encode(),
            len(counted) - failed,
            failed,
            reused,
            encode_cells(files) if shard.cells else b"",
            sum(entry.size for each in new for entry in each.members),
            dict(reasons),
            sum(sizes),
        )

    def _cells(self, shard: Shard, kept: Mapping[str, bytes]) -> list[tuple[str, list[_Piece]]]:
        """Finds what is kept of each cell.

        Args:
            shard: The shard.
            kept: The files of partials of its cells, and of cells that they were joined of.

        Returns:
            Of each cell its key, and in order the pieces that its sum is made of.
        """
        return [(self._key_of(cell), self._pieces(cell, kept)) for cell in shard.cell_runs()]

    def _pieces(self, cell: Shard, kept: Mapping[str, bytes]) -> list[_Piece]:
        """Finds all of a cell, or as many of its first runs as were a cell, and the other runs."""
        runs = [self._piece(run, kept) for run in cell.each_run()]
        for count in range(len(runs), 1, -1):
            first = self._piece(cell.first_runs(count), kept)
            if first.kept:
                return [first, *runs[count:]]
        return runs

    def _piece(self, members: Shard, kept: Mapping[str, bytes]) -> _Piece:
        """Makes a piece; it is kept if its partial may be taken (see `is_cell`)."""
        key = self._key_of(members)
        data = kept.get(key, b"")
        numerics = self._extractor.numerics
        taken = data and is_cell(data, key, len(members.members), numerics)
        return _Piece(key, members, data if taken else b"")

    def _key_of(self, cell: Shard) -> str:
        return cell_key(self._spec.digest, self._products, cell)

    def _counted(
        self,
        pieces: Sequence[_Piece],
        fetch: Fetch | None = None,
        *,
        isolated: bool,
        sizes: list[int] | None = None,
    ) -> Generator[_CellSum, None, None]:
        """Counts cells, of one shard or several; the threads go from one to the next unpaused.

        Args:
            pieces: The cells.
            fetch: As in `count`.
            isolated: As in `count`.
            sizes: Gets how many bytes the file of each image has that can be read.

        Yields:
            Each cell, in order, as soon as all of it is counted.

        Raises:
            ConservationError: If counted and failed images are not a cell's candidates.
        """
        shard = _joined([piece.members for piece in pieces])
        ends = list(accumulate(shard.cells))
        counting: dict[int, _CellSum] = {}
        done = 0

        def cell_at(place: int) -> _CellSum:
            at = bisect_right(ends, place)
            if at not in counting:
                counting[at] = self._new_sum(pieces[at], ends[at - 1] if at else 0)
            return counting[at]

        def observe(places: Sequence[int], pixels: Prepared) -> Means:
            parts = [(cell.counts, images) for cell, images in by_cell(places)]
            return count_batch(self._extractor, self._spec, pixels, parts)

        def by_cell(places: Sequence[int]) -> list[tuple[_CellSum, slice]]:
            """Returns the cells that a micro-batch is of, and which of its images are of each."""
            parts: list[tuple[_CellSum, slice]] = []
            start = 0
            while start < len(places):
                cell = cell_at(places[start])
                stop = bisect_left(places, cell.start + len(cell.names))
                parts.append((cell, slice(start, stop)))
                start = stop
            return parts

        def note(place: int, image: Loaded) -> None:
            cell_at(place).note(place, image)
            if sizes is not None:
                sizes.append(image.file_bytes)

        stream = self._stream.observed(shard, observe, fetch, note, isolated=isolated)
        with closing(stream) as observed:
            for places, found in observed:
                if isinstance(found, Failure):
                    cell_at(places[0]).fail(places[0], found)
                else:
                    means = found()
                    for cell, images in by_cell(places):
                        cell.add(places[images], means[images])
                while done in counting and counting[done].is_whole:
                    yield counting.pop(done)
                    done += 1
        if done != len(ends):
            part = cell_at(ends[done] - 1)
            raise ConservationError(
                f"{part.name}: {part.counted} counted and {len(part.failures)} failed of "
                f"{len(part.names)} candidates"
            )

    def _made(
        self,
        cells: Sequence[tuple[str, Sequence[_Piece]]],
        fetch: Fetch | None = None,
        *,
        isolated: bool,
        encode: bool = False,
        sizes: list[int] | None = None,
    ) -> Generator[tuple[Partial, bytes], None, None]:
        """Makes the partial of each cell, and its file, while the next cells are counted.

        Args:
            cells: The key of each cell, and the pieces that its sum is made of.
            fetch: As in `count`.
            isolated: As in `count`.
            encode: Whether to make the files.
            sizes: As in `_counted`.

        Yields:
            Each partial with its file; the file is empty if none is made.
        """
        missing = [piece for _, pieces in cells for piece in pieces if not piece.kept]
        with (
            closing(self._counted(missing, fetch, isolated=isolated, sizes=sizes)) as counted,
            closing(self._finished(cells, counted, encode=encode)) as finished,
        ):
            for key, pieces in cells:
                if len(pieces) == 1:
                    yield next(finished)
                    continue
                partials = (partial for partial, _ in islice(finished, len(pieces)))
                total = add_left_to_right(Partial.__add__, partials).as_shard(key)
                yield total, total.encode() if encode else b""

    def _finished(
        self,
        cells: Iterable[tuple[str, Sequence[_Piece]]],
        counted: Iterator[_CellSum],
        *,
        encode: bool,
    ) -> Generator[tuple[Partial, bytes], None, None]:
        """Makes the partial of each piece, in threads of their own.

        Where a GPU counts, its tables are waited for there, so that it is not kept waiting.

        Args:
            cells: As in `_made`.
            counted: What is counted of the pieces that are not kept, in order.
            encode: Whether to make the file of a piece that is a cell.

        Yields:
            Each partial with its file; the file is empty if none is made.

        Raises:
            ConservationError: If images of these pieces are counted twice.
        """

        def read(piece: _Piece) -> tuple[Partial, bytes]:
            return Partial.decode(piece.kept, f"cell {piece.key}"), piece.kept

        def finish(
            cell: _CellSum, tables: Callable[[], Counted], encode: bool
        ) -> tuple[Partial, bytes]:
            partial = self._partial_of(cell, tables())
            return partial, partial.encode() if encode else b""

        submit = self._encoders.submit
        waiting: deque[Future[tuple[Partial, bytes]]] = deque()
        try:
            for _, pieces in cells:
                for piece in pieces:
                    if piece.kept:
                        waiting.append(submit(read, piece))
                    else:
                        cell, is_cell = next(counted), encode and len(pieces) == 1
                        waiting.append(submit(finish, cell, cell.counts.sent(), is_cell))
                    while len(waiting) > self._most_waiting:
                        yield waiting.popleft().result()
            next(counted, None)  # nothing may come after the last of them
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _new_sum(self, piece: _Piece, start: int) -> _CellSum:
        layerwise = LAYER_GAUSSIAN in self._products
        names = [(entry.uri, entry.member) for entry in piece.members.members]
        settings = ExemplarSettings.from_products(self._products)
        return _CellSum(
            f"shard {piece.members.index}",
            piece.key,
            start,
            names,
            self._new_counts(),
            Moments([tap.neurons for tap in self._spec.taps], layerwise=layerwise),
            self._extractor.micro_batch,
            TopImages(settings, self._spec, name_order(names)) if settings else None,
            np.zeros(len(names), HASH_ROW) if IMAGE_HASHES in self._products else None,
        )

    def _partial_of(self, cell: _CellSum, counted: Counted) -> Partial:
        dna = dna_of_counts(
            self._spec,
            self._ranges,
            self._extractor.numerics,
            counted,
            cell.moments,
            cell.noted,
            len(cell.failures),
        )
        dna.check(cell.name)
        exemplars = cell.reactions.named(cell.names) if cell.reactions else None
        hashes = ImageHashes({cell.key: cell.hashes}) if cell.hashes is not None else None
        return Partial(dna, (cell.key,), tuple(sorted(cell.failures)), exemplars, hashes)

    def close(self) -> None:
        """Ends the threads."""
        self._stream.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)

    def _new_counts(self) -> Counts:
        if self._on_gpu is None:
            return CpuCounts(self._spec, self._ranges)
        return GpuCounts(self._spec, self._on_gpu, self._order)


def _joined(cells: Sequence[Shard]) -> Shard:
    """Makes one shard of cells, which may be of several."""
    members = tuple(entry for cell in cells for entry in cell.members)
    return Shard(0, 0, members, tuple(len(cell.members) for cell in cells))


def _sum_of_cells(shard: Shard, key: str, cells: Iterable[Partial]) -> Partial:
    """Adds the partials of a shard's cells, in their order, and checks the sum.

    Returns:
        The partial of the shard.

    Raises:
        ConservationError: If counted and failed images are not the shard's candidates.
    """
    total = add_left_to_right(Partial.__add__, cells).as_shard(key)
    if total.candidates != len(shard.members):
        raise ConservationError(
            f"shard {shard.index}: {total.dna.images} counted and {len(total.failures)} failed of "
            f"{len(shard.members)} candidates"
        )
    return total


def dna_of_counts(
    spec: Spec,
    ranges: Ranges,
    numerics: Numerics,
    counted: Counted,
    moments: Moments,
    noted: Noted,
    failed: int,
) -> DNA:
    """Makes the DNA of what was counted.

    Args:
        spec: What was counted.
        ranges: The ranges that the spec names.
        numerics: How the network was computed.
        counted: The table, minima and maxima.
        moments: The Gaussians of the same images.
        noted: What was noted of them.
        failed: How many images could not be read.

    Returns:
        The DNA.
    """
    ranges.require_those_of(spec)
    table, minimum, maximum = counted
    bins = spec.bins
    return DNA(
        spec,
        spec.layers,
        images=moments.images,
        failed=failed,
        counts=table[:, :bins].copy(),
        underflow=table[:, bins + UNDERFLOW].copy(),
        overflow=table[:, bins + OVERFLOW].copy(),
        nonfinite=table[:, bins + NONFINITE].copy(),
        low=ranges.low,
        high=ranges.high,
        # Adding zero makes -0.0 into 0.0: which a minimum keeps is a matter of order.
        min=minimum + np.float32(0),
        max=maximum + np.float32(0),
        mean=moments.mean,
        m2=moments.m2,
        numerics=((numerics, moments.images),) if moments.images else (),
        scatter=moments.scatter,
        transparent=noted.transparent,
        single_colour=noted.single_colour,
    )


@dataclass
class Noted:
    """How many of the images that were read are transparent, and how many of one colour."""

    transparent: int = 0
    single_colour: int = 0

    def add(self, image: Loaded) -> None:
        """Takes in an image."""
        self.transparent += image.transparent
        self.single_colour += image.single_colour


@dataclass(frozen=True)
class _Piece:
    """What the sum of a cell is made of: the cell itself, or some of its runs.

    Attributes:
        key: Its key, as a cell.
        members: Its members.
        kept: The file of its partial, if an earlier build has kept it; or nothing.
    """

    key: str
    members: Shard
    kept: bytes


@dataclass
class _CellSum:
    """What is counted of a cell so far.

    Attributes:
        name: What errors call its shard.
        key: Its key.
        start: The place of its first member.
        names: The uri and member of each of its members.
        counts: The histograms.
        moments: The Gaussians.
        together: How many images are added to the Gaussians at a time, whatever micro-batches they
            came in: other numbers of them would be rounded otherwise.
        reactions: The exemplars; None if none are kept.
        hashes: The hashes of its members; None if none are kept.
        noted: What was noted of its images.
        failures: Its members that could not be read.
        counted: How many of its members are counted.
    """

    name: str
    key: str
    start: int
    names: Sequence[tuple[str, str]]
    counts: Counts
    moments: Moments
    together: int
    reactions: TopImages | None
    hashes: HashRows | None
    noted: Noted = field(default_factory=Noted)
    failures: list[Failure] = field(default_factory=list)
    counted: int = 0

    def __post_init__(self) -> None:
        self._left = set(range(self.start, self.start + len(self.names)))
        self._waiting: list[Floats] = []

    def note(self, place: int, image: Loaded) -> None:
        """Takes in what is noted of an image that can be read, and its hashes.

        Raises:
            ConservationError: If hashes are kept, and it has none.
        """
        self.noted.add(image)
        if self.hashes is None:
            return
        if image.hashes is None:
            uri, member = self.names[place - self.start]
            raise ConservationError(f"{self.name}: {spelled(uri, member)} came without its hashes")
        self.hashes[place - self.start] = image.hashes

    def fail(self, place: int, failure: Failure) -> None:
        """Takes in a member that could not be read.

        Raises:
            ConservationError: If it was taken in before.
        """
        self._take([place])
        self.failures.append(failure)
        self._add_up()

    def add(self, places: Sequence[int], means: Floats) -> None:
        """Takes in images of a micro-batch, whose counts are in the tables already.

        Args:
            places: Their places.
            means: Their spatial means, float64 (images, neurons).

        Raises:
            ConservationError: If one of the images was taken in before.
        """
        self._take(places)
        self.counted += len(places)
        self._waiting += list(means)
        self._add_up()
        if self.reactions:
            self.reactions.add(means, np.array(places) - self.start)

    def _take(self, places: Sequence[int]) -> None:
        for place in places:
            if place not in self._left:
                uri, member = self.names[place - self.start]
                raise ConservationError(f"{self.name}: {spelled(uri, member)} came twice")
            self._left.remove(place)

    def _add_up(self) -> None:
        """Adds what waits to the Gaussians, once it is enough, or all there is."""
        while len(self._waiting) >= self.together or (self._waiting and self.is_whole):
            first = self._waiting[: self.together]
            del self._waiting[: self.together]
            self.moments.add(np.stack(first))

    @property
    def is_whole(self) -> bool:
        """Whether all members are counted, or have failed."""
        return not self._left
