"""Images in order of their distance to a dataset of the catalogue.

    >>> rank(Catalogue("dnas"), "photos/", "cityscapes", InProcess()).nearest      # doctest: +SKIP

As a build: listing, shards, one committed object a shard, so that a rerun does what is missing.
Then all of them are checked and sorted, out of core, by distance, and by name where that is equal;
so the same images give the same bytes, whatever the shards and workers.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from typing import IO, TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.build import (
    DEFAULT_MAX_FAILURES,
    Engine,
    Request,
    allowed_failures,
    make_spec,
    not_counted,
    require_apart,
    require_shared,
    run_missing,
    store_manifest,
)
from pipeline.catalogue import Catalogue, Commit, Version, software
from pipeline.errors import (
    CorruptFile,
    GateError,
    NotFound,
    SourceError,
    SpecMismatch,
    StorageError,
    TransientError,
    UsageError,
)
from pipeline.extractor import numerics
from pipeline.gallery import Gallery, Row, look, render
from pipeline.lens import UNIFORM, Lens
from pipeline.manifest import Entry, Manifest, Shard
from pipeline.networks import network_of
from pipeline.notes import is_nested, lens_notes, some_of
from pipeline.panels import spec_facts
from pipeline.plan import connect, plan
from pipeline.progress import Progress, Silent
from pipeline.ranges import decode as decode_ranges
from pipeline.ranker import RANKS, UNDEFINED, Ranks, Target, counts_of, schema_of
from pipeline.shard import Recipe, ShardJob, device_kind, partial_uri
from pipeline.source import list_source
from pipeline.spec import Numerics, Resources, Spec

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

FORMAT = 1
TOP = 10
"""Images at either end that are told."""
GALLERY = 24
"""Of a page, of either end."""
FAILURES = 10
"""Images at no distance that are told; the file has them all."""
ROWS = 65_536
"""Of a row group of the file, and of what is sorted at a time."""
READERS = 16


@dataclass(frozen=True)
class Placed:
    """An image and its distances: `emd` of all, `layers` of each layer asked for.

    `entry`: where it is, to be read again.
    """

    rank: int
    emd: float
    layers: tuple[float, ...]
    entry: Entry

    @property
    def name(self) -> str:
        return storage.spelled(self.entry.uri, self.entry.member)


@dataclass(frozen=True)
class Unplaced:
    """An image at no distance, and why."""

    uri: str
    member: str
    error: str

    def __str__(self) -> str:
        return f"{storage.spelled(self.uri, self.member)}: {self.error}"


@dataclass(frozen=True)
class Ranking:
    """What became of a source: every candidate is `ranked`, `failed` or `undefined`.

    `nearest`, `farthest`: the images at either end, that end first. `unplaced`: the first few of
    those at no distance. `counted_shards`: those that were not there already.
    """

    name: str
    version: Version
    source: str
    commit: int
    lens: str
    layers: tuple[str, ...]
    ranked: int
    failed: int
    undefined: int
    nearest: tuple[Placed, ...]
    farthest: tuple[Placed, ...]
    unplaced: tuple[Unplaced, ...]
    counted_shards: int
    ignored: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    notes: tuple[str, ...] = ()


def rank(
    catalogue: Catalogue,
    source: str,
    name: str,
    engine: Engine,
    *,
    lens: Lens | None = None,
    layers: Sequence[str] = (),
    out: str | None = None,
    top: int = TOP,
    at: int | str | None = None,
    spec: str | None = None,
    weights: str | None = None,
    limit: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    image_column: str | None = None,
    max_failures: float = DEFAULT_MAX_FAILURES,
    shard_images: int | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Images of a source by the distance of their own DNA to that of dataset `name`, the least
    first; all of them in the Parquet file `out`, where one is asked for.

    They are read and counted as the dataset's own were, by its spec. `lens`: weighs the neurons;
    layers that weigh nothing cost nothing. `layers`: each with a distance of its own, in the column
    `emd:<layer>`. `weights`: of a dataset that was not built with its network's own. The other
    arguments are those of `Request`.

    Raises `SpecMismatch` where the dataset was counted in a way that cannot be repeated here,
    naming the fields, `GateError` where too many images cannot be read, `TransientError` where some
    could not be for now. What was computed is kept: the same call goes on from there.
    """
    resources = resources or Resources()
    progress = progress or Silent()
    if out is not None and not out.endswith(".parquet"):
        raise UsageError(f"out is {out!r}; the ranking is written as Parquet (.parquet)")
    target_uri = None if out is None else storage.canonical(out)  # refused before all the work
    if top < 0:
        raise UsageError(f"top is {top}; it must be at least 0")
    if not engine.in_process:
        require_shared(catalogue.root, source)
    require_apart(catalogue.root, source)
    commit = catalogue.at(at)
    if not commit.datasets:
        raise NotFound(f"{catalogue.root} holds no dataset yet; build {name} first")
    version = catalogue.find(name, commit.number, spec)
    counted = catalogue.spec(version.spec)
    chosen = tuple(dict.fromkeys(layers))
    _require_weight(counted, lens, chosen)
    request = Request(
        name,
        source,
        extractor=counted.extractor,
        bins=counted.bins,
        precision=counted.precision,
        resize=counted.preprocess.resize,
        exif=counted.preprocess.exif,
        crop=counted.preprocess.crop,
        limit=limit,
        include=include,
        exclude=exclude,
        image_column=image_column,
        max_failures=max_failures,
        shard_images=shard_images,
    )
    _require_known(catalogue, version, counted, name)
    network = network_of(counted, weights)
    repeated = make_spec(request, network, counted.ranges_digest, device_kind(resources))
    counted.require_same(repeated, name, "an image that is counted here")
    storage.require_exclusive(catalogue.root)
    here = numerics(network, device_kind(resources))
    lens_file = lens.encode() if lens else b""
    target = Target(catalogue.root, name, commit.number, version.dna, here, chosen, lens_file)
    ranges_uri = catalogue.ranges_uri(counted.ranges_digest)
    ranges, _ = decode_ranges(storage.read(ranges_uri), ranges_uri)
    if ranges.digest != counted.ranges_digest:
        raise CorruptFile(f"{ranges_uri} holds ranges {ranges.digest}")
    counts_of(target, counted, ranges)  # what is wrong with them is said once, and at once
    manifest = _planned(catalogue, request, engine, progress)
    digest = target.digest(counted)
    work = catalogue.ranks_uri(digest)
    uri = storage.join(work, "manifests", f"{manifest.digest}.parquet")
    store_manifest(uri, manifest.data, manifest.digest)
    recipe = Recipe(counted, network, ranges_uri, resources, (RANKS, digest), target)
    job = ShardJob(recipe, uri, work)
    (ran,) = run_missing([(job, manifest)], engine, progress)
    if ran.errors:
        raise not_counted(f"{source} to {name}", len(manifest.heads), ran.errors)
    with _Sorter(manifest, job) as all_of_them:
        all_of_them.load()
        ranked, failed, undefined = all_of_them.totals()
        unplaced = all_of_them.unplaced()
        _gate(request, ranked, failed, manifest.candidates, unplaced)
        lens_name = lens.name if lens else UNIFORM
        if target_uri is not None:
            stated = {
                "format": FORMAT,
                "kind": "ranking",
                "source": storage.readable(manifest.source),
                "dataset": name,
                "dna": version.dna,
                "spec_digest": version.spec,
                "lens": lens_name,
                "lens_digest": lens.digest if lens else "",
                "layers": chosen,
                "ranked": ranked,
                "failed": failed,
                "undefined": undefined,
                "numerics": here.to_json(),
                "software": software(),
            }
            with tempfile.TemporaryFile() as file:
                all_of_them.write(file, stated)
                storage.replace(target_uri, mmap(file.fileno(), 0, access=ACCESS_READ))
        return Ranking(
            name,
            version,
            storage.readable(manifest.source),
            commit.number,
            lens_name,
            chosen,
            ranked,
            failed,
            undefined,
            all_of_them.nearest(top),
            all_of_them.farthest(top),
            unplaced,
            ran.shards,
            dict(manifest.ignored),
            manifest.duplicates,
            (
                *_numerics_notes(name, version, here),
                *_lens_notes(lens, commit, storage.readable(manifest.source)),
                *(lens_notes(lens, {name: version}) if lens else ()),
            ),
        )


def write_gallery(catalogue: Catalogue, ranking: Ranking, out: str, most: int = GALLERY) -> None:
    """A page of the images at either end, so many of each, as an HTML file or object."""
    storage.replace(storage.canonical(out), render(gallery_of(catalogue, ranking, most)))


def gallery_of(catalogue: Catalogue, ranking: Ranking, most: int = GALLERY) -> Gallery:
    """Reads those images again; one that is at both ends is among the nearest only."""
    version, nearest = ranking.version, ranking.nearest[:most]
    farthest = [image for image in ranking.farthest[:most] if image.rank > len(nearest)]
    rows = [Row(f"Nearest to {ranking.name}", look(_captioned(nearest, ranking)))]
    if farthest:
        rows.append(Row(f"Farthest from {ranking.name}", look(_captioned(farthest, ranking))))
    through = "" if ranking.lens == UNIFORM else f" through lens {ranking.lens}"
    totals = [
        ("ranked", f"{ranking.ranked:,}"),
        ("could not be read", f"{ranking.failed:,}"),
        ("at no distance", f"{ranking.undefined:,}"),
        *(("not ranked", str(unplaced)) for unplaced in ranking.unplaced),
    ]
    facts = [
        ("source", ranking.source),
        ("dataset", f"{ranking.name}: {version.images:,} images of {version.source}"),
        ("catalogue", f"{catalogue.root}, commit {ranking.commit}"),
        ("dna", version.dna),
        ("lens", ranking.lens),
        ("layers asked for", ", ".join(ranking.layers) or "none"),
        *totals,
        *spec_facts(catalogue.spec(version.spec)),
        ("software", software()),
    ]
    about = (
        f"Earth Mover's Distance of each image's own DNA to that of {ranking.name}{through}: mean "
        f"over neurons, in bins. {ranking.ranked:,} images are ranked."
    )
    title = f"{ranking.source} by distance to {ranking.name}"
    return Gallery(title, rows, about, ranking.notes, facts)


def _captioned(
    images: Sequence[Placed], ranking: Ranking
) -> Iterator[tuple[Entry, tuple[str, ...]]]:
    for image in images:
        own = zip(ranking.layers, image.layers, strict=True)
        layers = (f"{layer}: {distance:.3g}" for layer, distance in own)
        yield image.entry, (f"#{image.rank:,}: {image.emd:.2f}", *layers)


# What can be ranked against.


def _require_weight(spec: Spec, lens: Lens | None, layers: Sequence[str]) -> None:
    for layer in layers:
        spec.tap(layer)
    if lens is None:
        return
    lens.require_fit(spec)
    for layer in layers:
        if not lens.weighs(layer):
            raise UsageError(
                f"lens {lens.name} gives the neurons of {layer} no weight in sum, so that "
                "there are no distances in it; leave that layer out"
            )


def _require_known(catalogue: Catalogue, version: Version, spec: Spec, name: str) -> None:
    """Raises `SpecMismatch` where the catalogue does not say how images are to be counted."""
    if version.origin.get("assumed"):
        raise SpecMismatch(
            f"{name} was {version.provenance}; how images are to be counted for it is not known"
        )
    uri = catalogue.ranges_uri(spec.ranges_digest)
    if not storage.exists(uri):
        why = ", since it was imported" if version.imported else f": {uri} is missing"
        raise SpecMismatch(
            f"the ranges {spec.ranges_digest} in which {name} was counted are not in the "
            f"catalogue{why}; no image can be counted in them"
        )


def _numerics_notes(name: str, version: Version, here: Numerics) -> Iterator[str]:
    """Where the dataset was counted under others than the images are."""
    now = _flat(here.to_json())
    for entry in version.numerics:
        then = _flat(entry["numerics"])
        differing = [f"{k} {then.get(k)}, {now[k]} here" for k in now if then.get(k) != now[k]]
        if differing:
            yield f"numerics differ: {name} was counted under {'; '.join(differing)}"


def _lens_notes(lens: Lens | None, commit: Commit, source: str) -> Iterator[str]:
    """Where images may be among those that the lens was fitted on."""
    fitted_on = (lens.provenance.get("members") or {}) if lens else {}
    shared = [
        name
        for name, dna in fitted_on.items()
        for version in commit.datasets.get(name, {}).values()
        if version.dna == dna and not version.imported and is_nested(version.source, source)
    ]
    if lens and shared:
        yield (
            f"lens {lens.name} was fitted on {some_of(shared)}, of the same source: it does better "
            f"on those images than on others (vdna lens show {lens.name} has its scores held out)"
        )


def _flat(numerics: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in numerics.items() if k != "versions"} | dict(numerics["versions"])


def _planned(
    catalogue: Catalogue, request: Request, engine: Engine, progress: Progress
) -> Manifest:
    storage.canonical(request.source)  # refuses what must not be shown
    progress.say(f"listing {request.source}")
    listing = list_source(
        request.source,
        request.rules,
        spread=None if engine.in_process else engine.map,
        cache=catalogue.archives_uri,
        progress=progress,
    )
    return plan(listing, shard_images=request.shard_images, limit=request.limit)


def _gate(
    request: Request, ranked: int, failed: int, candidates: int, unplaced: Sequence[Unplaced]
) -> None:
    some = "\n  ".join(str(of) for of in unplaced[:5])
    if not ranked:
        raise SourceError(
            f"{request.source}: none of {candidates} candidates is an image at a distance from "
            f"{request.name}. First:\n  {some}"
        )
    if failed > allowed_failures(request.max_failures, candidates):
        raise GateError(
            f"{request.source}: {failed} of {candidates} images could not be read; the limit is "
            f"{request.max_failures:g}. Nothing was written; mend them, or rerun with a higher "
            f"--max-failures, which goes on at once. First:\n  {some}"
        )


# From shards to one order.


class _Sorter:
    """All images of the manifest, each once, in a database that sorts them on disk."""

    def __init__(self, manifest: Manifest, job: ShardJob) -> None:
        self._manifest = manifest
        self._job = job
        target = job.recipe.target
        self._layers = target.layers if target else ()
        self._distances = [f"d{i}" for i in range(len(self._layers))]
        self._keys = manifest.keys(job.recipe.spec.digest, job.recipe.products)
        self._folder = tempfile.TemporaryDirectory(prefix="vdna-rank-")
        self._db: DuckDBPyConnection = connect(self._folder.name)

    def __enter__(self) -> _Sorter:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._folder.cleanup()

    def load(self) -> None:
        """Takes in what is committed of every shard. Raises `CorruptFile` by its name."""
        columns = [*("uri", "member", "emd"), *self._distances, *("error", "shard", "place")]
        self._columns = columns
        types = ["varchar", "varchar", "double", *("double" for _ in self._distances)]
        types += ["varchar", "integer", "integer"]
        made = ", ".join(f"{name} {kind}" for name, kind in zip(columns, types, strict=True))
        with self._disk():
            self._db.execute(f"create table images ({made})")
        held: list[pa.Table] = []
        for table in self._tables():
            held.append(table.rename_columns(columns))
            if sum(part.num_rows for part in held) >= ROWS:
                self._insert(held)
                held = []
        self._insert(held)

    def totals(self) -> tuple[int, int, int]:
        """Images ranked, failed and undefined; every candidate is one of them."""
        counts = dict(
            self._rows(
                "select case when error is null then 'ranked' when "
                f"starts_with(error, '{UNDEFINED}: ') then 'undefined' else 'failed' end, "
                "count(*) from images group by 1"
            )
        )
        ranked, failed, undefined = (counts.get(k, 0) for k in ("ranked", "failed", "undefined"))
        if ranked + failed + undefined != self._manifest.candidates:
            raise CorruptFile(
                f"{self._job.work_uri} holds {sum(counts.values())} images; "
                f"{self._manifest.candidates} were listed"
            )
        return ranked, failed, undefined

    def nearest(self, count: int) -> tuple[Placed, ...]:
        return tuple(self._placed("emd, uri, member", count, 1, 1))

    def farthest(self, count: int) -> tuple[Placed, ...]:
        ranked, _, _ = self.totals()
        return tuple(self._placed("emd desc, uri desc, member desc", count, ranked, -1))

    def unplaced(self) -> tuple[Unplaced, ...]:
        rows = self._rows(
            "select uri, member, error from images where error is not null "
            f"order by uri, member limit {FAILURES}"
        )
        return tuple(Unplaced(*row) for row in rows)

    def write(self, file: IO[bytes], metadata: Mapping[str, Any]) -> None:
        """The ranking as Parquet: the nearest first, those at no distance last."""
        known = schema_of(self._layers)
        at = known.get_field_index("emd")
        schema = known.insert(at, pa.field("rank", pa.int64()))
        columns = ", ".join(name for name in self._columns if name not in ("shard", "place"))
        with (
            self._disk(),
            pq.ParquetWriter(
                file, schema, compression="zstd", store_schema=False, write_page_checksum=True
            ) as writer,
        ):
            query = f"select {columns} from images order by emd nulls last, uri, member"
            first = 1
            for rows in _regrouped(self._db.sql(query).to_arrow_reader(ROWS)):
                ranks = pa.array(range(first, first + rows.num_rows), pa.int64())
                known = pc.if_else(rows["error"].is_null(), ranks, None)
                table = rows.add_column(at, "rank", known).rename_columns(schema.names)
                writer.write_table(table.cast(schema), row_group_size=ROWS)
                first += rows.num_rows
            writer.add_key_value_metadata({"vdna": json.dumps(dict(metadata), sort_keys=True)})
        file.flush()

    def _tables(self) -> Iterator[pa.Table]:
        """Of each shard its images, checked, with where they stand in the manifest."""
        with ThreadPoolExecutor(READERS, "ranks") as pool:
            for start in range(0, len(self._keys), READERS):
                keys = self._keys[start : start + READERS]
                shards = self._manifest.shards[start : start + READERS]
                yield from pool.map(self._read, shards, keys)

    def _read(self, shard: Shard, key: str) -> pa.Table:
        uri = partial_uri(self._job.work_uri, key)
        try:
            table = Ranks.decode(storage.read(uri), uri, self._layers, shard, key).table
        except CorruptFile as error:
            raise CorruptFile(
                f"{error}\nNothing was written. Delete that file, and rerun the same command: its "
                "images are ranked again"
            ) from error
        except SourceError as error:
            raise TransientError(f"{uri} is gone; rerun the same command: {error}") from error
        places = pa.array(range(table.num_rows), pa.int32())
        at = pa.array([shard.index] * table.num_rows, pa.int32())
        return table.append_column("shard", at).append_column("place", places)

    def _insert(self, held: Sequence[pa.Table]) -> None:
        if not held:
            return
        with self._disk():
            self._db.register("held", pa.concat_tables(held))
            self._db.execute("insert into images select * from held")
            self._db.unregister("held")

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._disk():
            return self._db.execute(query).fetchall()

    def _placed(self, order: str, count: int, first: int, step: int) -> Iterator[Placed]:
        distances = "".join(f", {name}" for name in self._distances)
        rows = self._rows(
            f"select emd, shard, place{distances} from images where emd is not null "
            f"order by {order} limit {int(count)}"
        )
        for i, (emd, shard, place, *own) in enumerate(rows):
            entry = self._manifest.shards[shard].members[place]
            yield Placed(first + step * i, emd, tuple(own), entry)

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise StorageError(
                f"the ranking does not go to {tempfile.gettempdir()}: {error}; set TMPDIR to a "
                "disk with more room"
            ) from error


def _regrouped(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows, so many at a time that their number alone decides."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(part.num_rows for part in held) >= ROWS:
            table = pa.Table.from_batches(held)
            yield table.slice(0, ROWS).combine_chunks()
            held = table.slice(ROWS).to_batches()
    if held:
        yield pa.Table.from_batches(held).combine_chunks()
