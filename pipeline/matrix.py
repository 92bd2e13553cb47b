"""All pairs: the distances of a snapshot, by layer.

    >>> compare(Catalogue("dnas"), ["a", "b"]).table.to_pandas()      # doctest: +SKIP

A whole matrix is kept, and the next one takes from it the pairs of DNAs that have not changed. What
is left to compute is cut into tiles, each a task that commits its numbers: see `pipeline.tiles`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import IO, Any, Literal, Protocol, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage, tiles
from pipeline.catalogue import Catalogue, Commit, Version
from pipeline.dna import Floats, encode_tables
from pipeline.errors import (
    CorruptFile,
    NotFound,
    SourceError,
    StorageError,
    TransientError,
    UsageError,
)
from pipeline.lens import UNIFORM, Lens
from pipeline.pairwise import require_device
from pipeline.progress import Progress, Silent
from pipeline.significance import false_discovery
from pipeline.spec import LAYER_GAUSSIAN, Spec, digest_of
from pipeline.storage import Stored
from pipeline.tiles import MEMORY, TILE_WORK, Job, Receipt, Tile

FORMAT = 2
READS = (1, 2)
"""Format 1 had no estimates."""
ALL = "all"
Distance = Literal["emd", "nfd", "fd"]
Estimate = Literal["emd_corrected", "se", "low", "high", "floor", "p", "q"]
ESTIMATES: tuple[Estimate, ...] = get_args(Estimate)
RECENT = 16
"""Kept matrices that are looked at for pairs to take: so many of the newest, and of the largest."""
READERS = 8
ROUNDS = 3
"""Times that tiles are spread, those again that are gone by then; the rest is computed here."""

SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.string()),
        ("layer", pa.string()),
        ("emd", pa.float64()),
        ("emd_range", pa.float64()),
        ("nfd", pa.float64()),
        ("fd", pa.float64()),
        ("emd_corrected", pa.float64()),
        ("se", pa.float64()),
        ("floor", pa.float64()),
        ("p", pa.float64()),
        ("q", pa.float64()),
        ("lens", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


@dataclass(frozen=True, eq=False)
class Matrix:
    """Distances of every ordered pair and the diagonal, per layer and over `all` neurons.

    `emd`, `nfd`, `fd`: (planes, D, D) float64 in the order of `layers` and `names`; the last plane
    is `all`, unless the layers are a choice of the network's. NaN where a DNA lacks what a distance
    needs, or it was not asked for. `members`: dataset -> dna digest. `lens`: the name of what it
    was seen through, with its digest where it is one; `method`: that of the estimates.
    """

    names: tuple[str, ...]
    layers: tuple[str, ...]
    emd: Floats
    nfd: Floats
    fd: Floats
    bins: int
    members: dict[str, str]
    spec_digest: str
    lens: str = UNIFORM
    estimates: Mapping[Estimate, Floats] = field(default_factory=dict)
    lens_digest: str = ""
    method: str = ""

    @property
    def planes(self) -> tuple[str, ...]:
        """What the distances hold, in order: the layers, and `all` where they are all there."""
        return self.layers if len(self.emd) == len(self.layers) else (*self.layers, ALL)

    def of(self, layer: str = ALL, column: Distance | Estimate = "emd") -> Floats:
        """(D, D) distances or estimates of a layer. Raises `UsageError` for an unknown one."""
        if layer not in self.planes:
            raise UsageError(f"no layer {layer!r} in this matrix; it has {', '.join(self.layers)}")
        return cast(Floats, self.stacked(column)[self.planes.index(layer)])

    def stacked(self, column: Distance | Estimate) -> Floats:
        """(planes, D, D) of a column; NaN where it is not known."""
        values = self._known(column)
        return np.full_like(self.emd, np.nan) if values is None else values

    def _known(self, column: Distance | Estimate) -> Floats | None:
        if column in ESTIMATES:
            return self.estimates.get(column)
        return cast(Floats, getattr(self, column))

    @property
    def table(self) -> pa.Table:
        """The named columns; what is not known is null."""
        return pa.concat_tables([self._table_of(plane) for plane in range(len(self.planes))])

    def _table_of(self, plane: int) -> pa.Table:
        size = len(self.names)
        names, index = pa.array(self.names, pa.string()), np.arange(size)
        emd = self.emd[plane].reshape(-1)
        columns: dict[str, Any] = {
            "a": names.take(pa.array(np.repeat(index, size))),
            "b": names.take(pa.array(np.tile(index, size))),
            "layer": pa.repeat(self.planes[plane], size * size),
            "emd_range": pa.array(emd / self.bins, from_pandas=True),
            "lens": pa.repeat(self.lens, size * size),
        }
        for column in (*get_args(Distance), *ESTIMATES):
            values = self._known(column)
            if values is None:
                columns[column] = pa.nulls(size * size, pa.float64())
            else:
                columns[column] = pa.array(values[plane].reshape(-1), from_pandas=True)
        return pa.table({name: columns[name] for name in SCHEMA.names}, schema=SCHEMA)

    def _checksum(self, metadata: Mapping[str, Any]) -> str:
        """Of all that the file states, and of the numbers."""
        numbers = hashlib.sha256()
        kept = [self.estimates[column] for column in ESTIMATES if column in self.estimates]
        for values in (self.emd, self.nfd, self.fd, *kept):
            same = np.where(np.isnan(values), np.nan, values)  # a NaN has a sign
            numbers.update(np.ascontiguousarray(same, "<f8").data)
        return digest_of("matrix", dict(metadata), numbers.hexdigest())

    def encode(self) -> bytes:
        """A row group per plane."""
        metadata: dict[str, Any] = {
            "format": FORMAT,
            "kind": "matrix",
            "names": self.names,
            "layers": self.layers,
            "bins": self.bins,
            "members": self.members,
            "spec_digest": self.spec_digest,
            "lens": self.lens,
            "lens_digest": self.lens_digest,
            "estimates": [column for column in ESTIMATES if column in self.estimates],
            "method": self.method,
        }
        metadata["checksum"] = self._checksum(metadata)
        planes = range(len(self.planes))
        return encode_tables(metadata, SCHEMA, (self._table_of(plane) for plane in planes))

    @classmethod
    def decode(cls, data: bytes, name: str) -> Matrix:
        """Raises `CorruptFile` where it is no whole matrix."""
        try:
            file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            metadata = json.loads(file.metadata.metadata[b"vdna"])
            if metadata["kind"] != "matrix" or metadata["format"] not in READS:
                raise CorruptFile(f"{name}: not a matrix of formats {', '.join(map(str, READS))}")
            table = file.read()
            seal = metadata.pop("checksum", None)  # the first release wrote none
            names, layers = tuple(metadata["names"]), tuple(metadata["layers"])
            shape = (-1, len(names), len(names))

            def stacked(column: str) -> Floats:
                return cast(Floats, table[column].to_numpy().reshape(shape))

            emd, nfd = stacked("emd"), stacked("nfd")
            matrix = cls(
                names,
                layers,
                emd,
                nfd,
                stacked("fd") if "fd" in table.column_names else np.full_like(emd, np.nan),
                metadata["bins"],
                metadata["members"],
                metadata["spec_digest"],
                metadata["lens"],
                {column: stacked(column) for column in metadata.get("estimates", ())},
                metadata.get("lens_digest", ""),
                metadata.get("method", ""),
            )
            rows = ["a", "b", "layer", "lens"]
            for plane in range(len(matrix.planes)):
                mine = matrix._table_of(plane).select(rows)
                stored = table.select(rows).slice(plane * len(names) ** 2, len(names) ** 2)
                if not stored.equals(mine):
                    raise CorruptFile(f"{name}: its rows are not those of the datasets it states")
            if seal not in (None, matrix._checksum(metadata)):
                raise CorruptFile(f"{name}: its numbers are not what was written")
            return matrix
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{name}: torn, or not a matrix: {error}") from error


class Spread(Protocol):
    """Calls a function on each item, in any order, elsewhere or here; an engine's `map`."""

    def __call__(
        self, function: Callable[[Tile], Receipt], items: Sequence[Tile], /
    ) -> Iterator[Receipt]: ...


@dataclass(frozen=True)
class Crew:
    """So many workers of one thread each, and how tiles are spread over them."""

    spread: Spread
    workers: int


@dataclass(frozen=True)
class Effort:
    """How pairs are computed; never what.

    `crew`: opens what computes so many values of pairs; this process with all its cores for None.
    `memory`: bytes for each process. `device`: of its torch (`cuda`), or the CPU.
    """

    crew: Callable[[int], AbstractContextManager[Crew | None]] = lambda values: nullcontext()
    memory: int = MEMORY
    device: str = "cpu"
    progress: Progress = field(default_factory=Silent)


def compare(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    layers: Sequence[str] | None = None,
    at: int | str | None = None,
    spec: str | None = None,
    fd: bool = False,
    lens: Lens | None = None,
    error_bars: bool = True,
    effort: Effort | None = None,
) -> Matrix:
    """All pairs of the datasets named, or of a whole snapshot; kept where the store lets us write.

    `fd`: the Fréchet distance of layers too, for datasets built with layer Gaussians: seconds a
    pair for wide layers. `lens`: weighs the neurons. `error_bars`: what the folds say of a
    distance, for some 30 times its arithmetic; through a lens with negative weights there are none.
    Raises `NotFound` for unknown names, `SpecMismatch` naming the fields where one is known under
    other specs only, `UsageError` for fewer than two, unknown layers, a lens on other neurons or
    beside `fd`, and a device that is not there.
    """
    effort = effort or Effort()
    require_device(effort.device)
    wanted = _Wanted.of(catalogue, names, at, spec)
    job = wanted.job(catalogue, layers, fd=fd, lens=lens, error_bars=error_bars)
    return _compare(catalogue, wanted, job, effort)


@dataclass(frozen=True)
class _Wanted:
    """The versions to compare, in order, all under one spec."""

    spec_digest: str
    versions: Mapping[str, Version]

    @property
    def members(self) -> dict[str, str]:
        return {name: version.dna for name, version in self.versions.items()}

    @classmethod
    def of(
        cls, catalogue: Catalogue, names: Sequence[str], at: int | str | None, spec: str | None
    ) -> _Wanted:
        commit = catalogue.at(at)
        for name in names:
            if name not in commit.datasets:
                catalogue.find(name, at)  # which says what there is
        digest = _shared_spec(commit, names) if spec is None and names else None
        digest = digest or catalogue.spec_digest(commit, spec)
        wanted = list(dict.fromkeys(names)) or [
            name for name, specs in sorted(commit.datasets.items()) if digest in specs
        ]
        missing = [name for name in wanted if digest not in commit.datasets.get(name, {})]
        present = next((name for name in wanted if name not in missing), "the catalogue's default")
        for name in missing:
            for other in sorted(commit.datasets.get(name, {})):
                catalogue.spec(digest).require_same(
                    catalogue.spec(other),
                    f"{present} (spec {digest[:12]})",
                    f"{name} (spec {other[:12]})",
                )
        if missing:
            have = sorted(name for name, specs in commit.datasets.items() if digest in specs)
            raise NotFound(
                f"no version of {', '.join(missing)} under spec {digest}; there are: "
                f"{', '.join(have)}"
            )
        if len(wanted) < 2:
            have = [name for name, specs in commit.datasets.items() if digest in specs]
            others = len(commit.datasets) - len(have)
            hint = f" under spec {digest}; {others} are under others (--spec)" if others else ""
            if names:
                hint = f", {wanted[0]}; without a name all {len(have)} under its spec are compared"
            raise UsageError(f"comparing takes two datasets or more; there is {len(wanted)}{hint}")
        versions = {name: commit.datasets[name][digest] for name in wanted}
        return cls(digest, versions)

    def job(
        self,
        catalogue: Catalogue,
        layers: Sequence[str] | None,
        *,
        fd: bool,
        lens: Lens | None,
        error_bars: bool,
    ) -> Job:
        spec = catalogue.spec(self.spec_digest)
        if layers is not None and not layers:
            raise UsageError(f"no layer is chosen; {spec.extractor} has {', '.join(spec.layers)}")
        for layer in layers or ():
            spec.tap(layer)
        if lens is not None:
            lens.require_fit(spec)
        if fd and lens is not None:
            raise UsageError(
                f"a layer's Fréchet distance is of all its neurons, and none through lens "
                f"{lens.name}; leave one of them out"
            )
        kept = [version.products for version in self.versions.values()]
        if fd and not any(LAYER_GAUSSIAN in products for products in kept):
            raise UsageError(
                f"no layer Gaussians are kept of {', '.join(self.versions)}; build with "
                "--layer-gaussian"
            )
        chosen = tuple(spec.layers if layers is None else dict.fromkeys(layers))
        error_bars = error_bars and (lens is None or bool((lens.weights >= 0).all()))
        return Job(catalogue.root, spec, chosen, layers is None, fd, lens, error_bars)


def _compare(catalogue: Catalogue, wanted: _Wanted, job: Job, effort: Effort) -> Matrix:
    # What is kept of all layers, one by one, has a choice of them, too.
    full = replace(job, layers=tuple(job.spec.layers), whole=True)
    kinds = [full] if job.whole else [job, full]
    uri = _uri(catalogue, wanted, job)

    def finished() -> Matrix | None:
        found = (_kept(_uri(catalogue, wanted, kind), wanted, kind) for kind in kinds)
        kept = next((matrix for matrix in found if matrix is not None), None)
        return kept if kept is None or job.whole else _sliced(kept, job)

    if (kept := finished()) is not None:
        return kept
    known, rows = _most(
        wanted, [matrix for kind in kinds if (matrix := _nearest(catalogue, wanted, kind))]
    )
    grid = _Grid.of(wanted, job)
    if known is not None:
        grid.take(known if job.whole else _sliced(known, job), rows)
    old = [member for member in wanted.versions.items() if member[0] in rows]
    new = [member for member in wanted.versions.items() if member[0] not in rows]
    if not new:  # nothing to keep: all of it is
        return grid.matrix()
    pairs = len(new) * (len(new) - 1) // 2 + len(new) * len(old)
    try:
        with effort.crew(pairs * job.values) as crew:
            threads, workers = (None, 1) if crew is None else (1, crew.workers)
            job = replace(job, memory=effort.memory, threads=threads, device=effort.device)
            made = tiles.cut(job, old, new, workers)
            # What this process computes in the time of one tile is not worth an object.
            alone = crew is None and (len(made) < 2 or pairs * job.values <= TILE_WORK)
            if alone:
                for tile in made:
                    grid.put(tile, tiles.compute(tile))
            else:
                kept = _shared(grid, made, crew, effort.progress, finished)
    finally:
        tiles.let_go()
    matrix = grid.matrix() if kept is None else kept
    if kept is None and not _keep(uri, matrix, effort.progress):
        return matrix  # the tiles stay, for the next time
    for tile in () if alone else made:
        storage.discard(tile.uri)
    return matrix


def _keep(uri: str, matrix: Matrix, progress: Progress) -> bool:
    """For the next time; who may only read the catalogue has the matrix all the same."""
    try:
        storage.create(uri, matrix.encode())
    except TransientError:
        raise
    except StorageError as error:
        progress.say(f"the matrix is not kept for the next time: {error}")
        return False
    return True


def _shared(
    grid: _Grid,
    made: Sequence[Tile],
    crew: Crew | None,
    progress: Progress,
    finished: Callable[[], Matrix | None],
) -> Matrix | None:
    """Fills the grid by way of committed tiles, which other comparisons of these DNAs share.

    The first to finish removes them; the others return its matrix, instead of doing it all again.
    Where there is none, what was removed is spread once more.
    """
    for _ in range(ROUNDS):
        there = tiles.present(made[0].job.root)
        missing = [tile for tile in made if tile.uri not in there]
        progress.start(
            images=sum(tile.pairs for tile in missing),
            shards=len(missing),
            present=len(made) - len(missing),
        )
        for receipt in (crew.spread if crew else map)(tiles.run, missing):
            progress.advance(receipt.pairs, 0)
            if (kept := finished()) is not None:
                return kept
        progress.finish()
        made = [tile for tile in made if not grid.fetch(tile)]
        if not made or (kept := finished()) is not None:
            return kept if made else None
    for tile in made:
        grid.put(tile, tiles.compute(tile))
    return None


def _uri(catalogue: Catalogue, wanted: _Wanted, job: Job) -> str:
    through = UNIFORM if job.lens is None else job.lens.digest
    name = f"{through}{'-fd' if job.fd else ''}{'' if job.error_bars else '-plain'}"
    if job.lens is not None and (job.lens.weights < 0).any():
        name += "-signed"  # those of old were divided by another sum
    if not job.whole:
        name += f"-layers-{digest_of('layers', job.layers)}"
    return catalogue.matrix_uri(wanted.spec_digest, wanted.members, name)


def _kept(uri: str, wanted: _Wanted, job: Job) -> Matrix | None:
    """The matrix that is there, if it is this one; another is removed, to be computed again."""
    if not storage.exists(uri):
        return None
    try:
        with storage.open_random(uri) as file:
            current = _is_current(_metadata(file), job)
        if current:
            kept = Matrix.decode(storage.read(uri), uri)
            if len(kept.planes) != job.planes:
                raise CorruptFile(f"{uri} has {len(kept.planes)} planes, not {job.planes}")
            if kept.members == wanted.members and kept.names == tuple(wanted.versions):
                return _named(kept, job)
            if kept.members == wanted.members:  # of the same datasets in another order
                return _reordered(_named(kept, job), tuple(wanted.versions))
    except SourceError:  # removed since
        return None
    except CorruptFile:
        pass
    storage.discard(uri)
    return None


def _named(matrix: Matrix, job: Job) -> Matrix:
    """By the name that the lens has now."""
    return replace(matrix, lens=job.lens.name if job.lens else UNIFORM)


def _reordered(matrix: Matrix, names: tuple[str, ...]) -> Matrix:
    at = [matrix.names.index(name) for name in names]

    def moved(values: Floats) -> Floats:
        return np.ascontiguousarray(values[:, at][:, :, at])

    return replace(
        matrix,
        names=names,
        emd=moved(matrix.emd),
        nfd=moved(matrix.nfd),
        fd=moved(matrix.fd),
        estimates={column: moved(values) for column, values in matrix.estimates.items()},
    )


def _sliced(matrix: Matrix, job: Job) -> Matrix:
    """Some of its layers: of each, all numbers are its own, q among them."""
    at = [matrix.layers.index(layer) for layer in job.layers]
    return replace(
        matrix,
        layers=job.layers,
        emd=matrix.emd[at],
        nfd=matrix.nfd[at],
        fd=matrix.fd[at],
        estimates={column: values[at] for column, values in matrix.estimates.items()},
    )


def _metadata(file: IO[bytes]) -> dict[str, Any]:
    """What a matrix's file states, without its numbers."""
    try:
        found = json.loads(pq.ParquetFile(file).metadata.metadata[b"vdna"])
        if found["kind"] != "matrix" or not isinstance(found["members"], dict):
            raise CorruptFile("not a matrix")
        return cast(dict[str, Any], found)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise CorruptFile(f"torn, or not a matrix: {error}") from error


def _is_current(metadata: Mapping[str, Any], job: Job) -> bool:
    """Whether its numbers are what this job would compute; those of format 1 were not in full."""
    lens = job.lens.digest if job.lens else ""
    return (
        metadata["format"] == FORMAT
        and (metadata.get("method"), metadata.get("lens_digest")) == (job.method, lens)
        and tuple(metadata["layers"]) == job.layers
    )


def _nearest(catalogue: Catalogue, wanted: _Wanted, job: Job) -> Matrix | None:
    """Of the kept matrices of this kind, the one that has most of the DNAs; two or more.

    Of the newest and of the largest, since small comparisons may be many: a listing tells both.
    """
    name = _uri(catalogue, wanted, job).rpartition("/")[2]
    try:
        there = [
            item
            for item in storage.walk(catalogue.matrices_uri(wanted.spec_digest))
            if item.uri.endswith(f"/{name}")
        ]
    except SourceError:
        return None
    there.sort(key=lambda item: (item.modified is None, item.modified), reverse=True)
    largest = sorted(there, key=lambda item: -item.size)
    chosen = dict.fromkeys(item.uri for item in (*there[:RECENT], *largest[:RECENT]))
    digests = Counter(wanted.members.values())

    def shared(uri: str) -> int:
        metadata = _stated(uri)
        if metadata is None or not _is_current(metadata, job):
            return 0
        return (digests & Counter(metadata["members"].values())).total()

    with ThreadPoolExecutor(READERS) as pool:
        found = sorted(zip(pool.map(shared, chosen), chosen, strict=True), key=lambda of: -of[0])
    for count, uri in found:
        if count < 2:
            break
        try:
            return Matrix.decode(storage.read(uri), uri)
        except (CorruptFile, SourceError):
            continue
    return None


def _stated(uri: str) -> dict[str, Any] | None:
    """What a kept matrix states of itself; None where it is torn, or gone."""
    try:
        with storage.open_random(uri) as file:
            return _metadata(file)
    except (CorruptFile, SourceError):
        return None


def _most(wanted: _Wanted, there: Sequence[Matrix]) -> tuple[Matrix | None, dict[str, int]]:
    """The matrix that has most of the datasets, and their rows in it."""
    best: tuple[Matrix | None, dict[str, int]] = (None, {})
    for matrix in there:
        rows = _rows(matrix, wanted.members)
        if len(rows) > len(best[1]):
            best = matrix, rows
    return best


def _rows(matrix: Matrix, members: Mapping[str, str]) -> dict[str, int]:
    """dataset -> the matrix's row of its DNA.

    Each row once: two datasets of the same images are a pair, which a row with itself is not.
    """
    there: dict[str, list[int]] = {}
    for row, name in reversed(list(enumerate(matrix.names))):
        there.setdefault(matrix.members[name], []).append(row)
    return {name: there[dna].pop() for name, dna in members.items() if there.get(dna)}


@dataclass(frozen=True, eq=False)
class _Grid:
    """The columns of a matrix that is being filled."""

    wanted: _Wanted
    job: Job
    columns: Mapping[str, Floats]

    @classmethod
    def of(cls, wanted: _Wanted, job: Job) -> _Grid:
        shape = (job.planes, len(wanted.versions), len(wanted.versions))
        return cls(wanted, job, {name: np.full(shape, np.nan) for name in job.columns})

    def take(self, known: Matrix, rows: Mapping[str, int]) -> None:
        """Pairs of the datasets of these rows."""
        mine, theirs = [self._place[name] for name in rows], list(rows.values())
        for name, values in self.columns.items():
            stacked = known.stacked(cast(Any, name))
            values[:, np.array(mine)[:, None], mine] = stacked[:, np.array(theirs)[:, None], theirs]

    def put(self, tile: Tile, block: tiles.Block) -> None:
        """In its place, and the one opposite."""
        rows, others = ([self._place[name] for name, _ in side] for side in (tile.a, tile.b))
        for name, values in self.columns.items():
            values[np.ix_(range(self.job.planes), rows, others)] = block[name]
            if not tile.square:
                opposite = block[name].transpose(0, 2, 1)
                values[np.ix_(range(self.job.planes), others, rows)] = opposite

    def fetch(self, tile: Tile) -> bool:
        """Whether the tile was there, and is in its place."""
        block = tiles.fetch(tile)
        if block is not None:
            self.put(tile, block)
        return block is not None

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.wanted.versions)}

    def matrix(self) -> Matrix:
        job, columns = self.job, dict(self.columns)
        emd, nfd, fd = (columns.pop(name) for name in get_args(Distance))
        if job.error_bars:
            columns["q"] = false_discovery(columns["p"])
        return Matrix(
            tuple(self.wanted.versions),
            job.layers,
            emd,
            nfd,
            fd,
            job.spec.bins,
            self.wanted.members,
            self.wanted.spec_digest,
            UNIFORM if job.lens is None else job.lens.name,
            cast(Mapping[Estimate, Floats], columns),
            job.lens.digest if job.lens else "",
            job.method,
        )


def needless(catalogue: Catalogue, kept: Set[tuple[str, str]]) -> Iterator[Stored]:
    """Kept matrices without a number that a pair of `kept` (spec, DNA digest) still needs.

    One with DNAs that are gone stays while no other of its kind has the pairs of those that are
    not: the next comparison takes them from it.
    """
    try:
        there = list(storage.walk(storage.join(catalogue.root, "matrix")))
    except SourceError:
        return
    there.sort(key=lambda item: (item.modified is None, item.modified), reverse=True)
    with ThreadPoolExecutor(READERS) as pool:
        stated = pool.map(_stated, (item.uri for item in there))
    found = []
    for item, metadata in zip(there, stated, strict=True):
        if metadata is None:  # whoever compares these removes it
            continue
        spec, members = metadata["spec_digest"], set(metadata["members"].values())
        live = {dna for dna in members if (spec, dna) in kept}
        name = item.uri.rpartition("/")[2]
        kind = (spec, name, metadata["format"], metadata.get("method"))
        found.append((live != members, live, kind, item))
    staying: dict[tuple[object, ...], list[set[str]]] = {}
    for outdated, live, kind, item in sorted(found, key=lambda of: (of[0], -len(of[1]))):
        others = staying.setdefault(kind, [])
        if outdated and (len(live) < 2 or any(live <= other for other in others)):
            yield item
        else:
            others.append(live)


def resolve(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    at: int | str | None = None,
    spec: str | None = None,
) -> tuple[str, Mapping[str, Version]]:
    """The spec digest and versions that `compare` takes for these names. Raises as it does."""
    chosen = _Wanted.of(catalogue, names, at, spec)
    return chosen.spec_digest, chosen.versions


def spec_of(
    catalogue: Catalogue,
    names: Sequence[str] = (),
    *,
    at: int | str | None = None,
    spec: str | None = None,
) -> Spec:
    """The spec under which `compare` compares these. Raises as it does."""
    return catalogue.spec(resolve(catalogue, names, at=at, spec=spec)[0])


def _shared_spec(commit: Commit, names: Sequence[str]) -> str | None:
    """The only spec that all of them have a version under; None for none, or for a choice."""
    shared = set.intersection(*(set(commit.datasets[name]) for name in names))
    return shared.pop() if len(shared) == 1 else None
