"""manifest -> shards -> reduction -> commit, for one dataset or many, by whatever engine.

    >>> build_datasets(Catalogue("dnas"), [Request("a", "photos/")], InProcess())  # doctest: +SKIP

Everything is planned first, then the missing shards of all datasets are counted in one go, then
each dataset is reduced and committed. Whatever dies, the same call again does what is missing.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeVar

from pipeline import images, storage
from pipeline import ranges as ranges_module
from pipeline.blocks import Data, sha256
from pipeline.catalogue import (
    Catalogue,
    Commit,
    Version,
    canonical_json,
    check_name,
    footers_of,
    part_name,
    parts_of,
    require_free,
    require_own,
    software,
)
from pipeline.dna import DNA
from pipeline.errors import (
    BadImage,
    ConservationError,
    CorruptFile,
    GateError,
    OverlapError,
    SourceError,
    SpecMismatch,
    TransientError,
    UsageError,
    VdnaError,
)
from pipeline.exemplars import DEFAULT_KEPT, Keep
from pipeline.extractor import numerics
from pipeline.listing import Kept, Listing
from pipeline.manifest import Entry, Manifest, Shard, read_part
from pipeline.networks import Network, describe, require_fit
from pipeline.partial import Failure, Partial, encode_failures
from pipeline.plan import plan
from pipeline.progress import Progress, Silent
from pipeline.reduce import Composed, Node, add_up, compose, plan_folds
from pipeline.shard import OVERLAP, Counter, Receipt, Recipe, ShardJob, Worker, device_kind
from pipeline.source import Rules, list_source
from pipeline.spec import (
    LAYER_GAUSSIAN,
    PRODUCTS,
    Crop,
    Exif,
    Precision,
    Preprocess,
    Resize,
    Resources,
    Spec,
    digest_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

T = TypeVar("T")
R = TypeVar("R")

DEFAULT_MAX_FAILURES = 0.01
TRIES = 2
"""Rounds over the shards that could not be counted, in one run."""
MAX_PARTS = 4096
"""Of a dataset: a commit names them all."""
SAY_SECONDS = 10.0
RELISTS = 3
"""Times that a source which changes while it is read is listed again, where that is asked for."""


@dataclass(frozen=True)
class Request:
    """One dataset to build: its name, where its images are, and what decides the counts.

    `max_failures`: candidates that may fail, as a fraction below 1 or a number from 1 up.
    `layer_gaussian`: keep each layer's mean and scatter matrix too; a dataset that has them keeps
    them from then on. `exemplars`: names to keep of the images that each neuron reacts to most, in
    the layers that match `exemplar_taps`; for None as the dataset has them, or a new one's few.
    `by`: a label of a table, or a number of leading folders; each value's images are a dataset too,
    a part, `NAME/VALUE`, of the same pass. For None as the dataset has it; empty for no parts.
    """

    name: str
    source: str
    extractor: str = "efficientnet_lite0"
    weights: str | None = None
    bins: int = 1000
    precision: Precision = "fp32"
    ranges: str | None = None
    resize: Resize = "clean"
    exif: Exif = "apply"
    crop: Crop = "none"
    taps: str | None = None
    limit: int | None = None
    include: str | None = None
    exclude: str | None = None
    group_by: str | None = None
    image_column: str | None = None
    max_failures: float = DEFAULT_MAX_FAILURES
    shard_images: int | None = None
    layer_gaussian: bool = False
    exemplars: int | None = None
    exemplar_taps: str | None = None
    by: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.max_failures >= 0:
            raise UsageError(f"max_failures is {self.max_failures}; it must not be negative")
        for setting in ("limit", "shard_images"):
            value = getattr(self, setting)
            if value is not None and value < 1:
                raise UsageError(f"{setting} is {value}; it must be at least 1")
        _ = self.rules  # refuses what is no number of folders

    @property
    def rules(self) -> Rules:
        return Rules(self.include, self.exclude, self.group_by, self.image_column, self.by or None)


@dataclass(frozen=True)
class Result:
    """What became of a request: `changed` is False where the catalogue held it already.

    `parts`: the versions of its parts, by their names.
    """

    name: str
    version: Version
    changed: bool
    counted_shards: int
    failures: tuple[Failure, ...]
    ignored: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    parts: Mapping[str, Version] = field(default_factory=dict)


class Engine(Protocol):
    """Spreads work. Both methods yield results in any order, as they come.

    `in_process`: whether what only this process sees (`memory://`) is seen where the work is done.
    """

    @property
    def in_process(self) -> bool: ...

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[Receipt]: ...

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]: ...


class InProcess:
    """The engine of notebooks, small sets and tests: this process, no Ray.

    Extractors and their threads stay until it is closed.
    """

    in_process = True

    def __init__(self) -> None:
        self._worker = Worker()

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[Receipt]:
        with ThreadPoolExecutor(OVERLAP, "shard") as pool:
            yield from pool.map(lambda shard: self._worker.run(*shard), work)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
        return map(function, items)

    def close(self) -> None:
        self._worker.close()


@dataclass(frozen=True)
class _Plan:
    """`parts`: of each value, the indices of its shards."""

    request: Request
    manifest: Manifest
    job: ShardJob
    base: Version | None
    parts: Mapping[str, Sequence[int]]
    up_to_date: bool = False
    manifest_sha256: str = ""


def build_datasets(
    catalogue: Catalogue,
    requests: Sequence[Request],
    engine: Engine,
    resources: Resources | None = None,
    progress: Progress | None = None,
    done: Callable[[Result], None] = lambda result: None,
    listings: Mapping[str, Listing] | None = None,
    *,
    relist: bool = False,
) -> list[Result]:
    """Build and commit every request's dataset; results in the order of the requests.

    `done` is told of each as it is committed, or found unchanged. `listings`: by a request's name,
    its candidates, where the caller has listed them; its source is then not looked at. `relist`:
    list sources anew, whatever an interrupted listing has left, and again, `RELISTS` times, where
    they change while they are read.

    Raises `TransientError` where shards could not be read (a rerun resumes), and `GateError` where
    too many images failed (their partials are kept: a rerun with a higher limit commits at once).
    The other datasets of the call are finished first.
    """
    resources = resources or Resources()
    progress = progress or Silent()
    names = [request.name for request in requests]
    if len(set(names)) != len(names):
        raise UsageError(f"a dataset is asked for twice among {', '.join(names)}")
    if not engine.in_process:
        require_shared(catalogue.root, *(request.source for request in requests))
    for request in requests:
        require_apart(catalogue.root, request.source)
    storage.require_exclusive(catalogue.root)
    planner = _Planner(catalogue, engine, resources, progress, listings or {}, relist)
    counted: dict[str, _Counted] = {}
    unplanned: list[VdnaError] = []
    again = list(requests)
    for round_ in range(1 + (RELISTS if relist else 0)):
        if round_:
            progress.say(f"changed while it was read: {', '.join(r.name for r in again)}")
        found = planner.plans(again, unplanned)
        for request in again:
            counted.pop(request.name, None)  # of a source as it no longer is
        counted |= _count(found, engine, progress)
        again = [c.plan.request for c in counted.values() if c.changed]
        if not again:
            break
    problems = list(unplanned)
    results: list[Result] = []
    for request in requests:
        if (one := counted.get(request.name)) is None:
            continue
        try:
            if one.plan.up_to_date:
                results.append(_unchanged(catalogue, one.plan, catalogue.head()))
            elif one.errors:
                raise not_counted(request.name, len(one.plan.manifest.heads), one.errors)
            else:
                results.append(_finish(catalogue, one.plan, one.shards, engine, progress))
            done(results[-1])
        except VdnaError as error:
            problems.append(error)
    if problems:
        if len(problems) == 1:
            raise problems[0]
        worst = next((e for e in problems if not isinstance(e, GateError)), problems[0])
        raise type(worst)("\n".join(str(error) for error in problems)) from worst
    return results


def not_counted(name: str, shards: int, failed: Sequence[Receipt]) -> VdnaError:
    """What to raise of so many shards, some of which failed."""
    some = f"{name}: {len(failed)} of {shards} shards could not be counted"
    lasting = [receipt for receipt in failed if not receipt.transient]
    if lasting:
        return VdnaError(f"{some}; nothing was committed. First: {lasting[0].error}")
    return TransientError(
        f"{some}; nothing was skipped, rerun the same command to go on. First: {failed[0].error}"
    )


def require_apart(root: str, source: str) -> None:
    """A catalogue inside the folder that is listed would list, and change, itself."""
    if source and f"{root}/".startswith(f"{storage.canonical(source)}/"):
        raise UsageError(
            f"the catalogue {root} lies inside the source {source}, and would be counted with it; "
            "put it elsewhere"
        )


def require_shared(*places: str) -> None:
    """Raises `UsageError` for a place that only this process sees."""
    for place in places:
        if storage.protocol_of(place) == "memory":
            raise UsageError(
                f"{place}: memory:// is seen by one process only; build in process (--workers 0), "
                "or give a place that every worker can read"
            )


def make_spec(request: Request, network: Network, ranges_digest: str, device: str) -> Spec:
    """What the request counts, as a spec."""
    return Spec(
        extractor=network.name,
        weights_sha256=network.weights_sha256,
        taps=network.taps,
        preprocess=Preprocess(
            network.height,
            network.width,
            network.mean,
            network.std,
            resize=request.resize,
            crop=request.crop,
            exif=request.exif,
        ),
        ranges_digest=ranges_digest,
        bins=request.bins,
        precision=request.precision,
        bf16_numerics=numerics(network, device) if request.precision == "bf16" else None,
    )


# Planning.


@dataclass(frozen=True)
class _Planner:
    """Lists sources, and plans what is to be counted."""

    catalogue: Catalogue
    engine: Engine
    resources: Resources
    progress: Progress
    listings: Mapping[str, Listing]
    relist: bool

    def plans(self, requests: Sequence[Request], problems: list[VdnaError]) -> list[_Plan]:
        """Of the requests that can be planned; `problems` is told of the others, for good."""
        plans = []
        for request in requests:
            try:
                plans.append(self._plan(request))
            except VdnaError as error:
                problems.append(type(error)(f"{request.name}: {error}"))
        return plans

    def _plan(self, request: Request) -> _Plan:
        catalogue = self.catalogue
        network = describe(request.extractor, request.weights, request.taps)
        if request.weights:
            require_fit(network)  # wrong weights are found before anything is listed
        head = catalogue.head()
        known = _known_ranges(catalogue, request.ranges)
        found, provenance = ranges_module.find(network, request.ranges, known)
        spec = make_spec(request, network, found.digest, device_kind(self.resources))
        base = head.datasets.get(request.name, {}).get(spec.digest)
        require_own(head, request.name)
        manifest, parts = self._parted(request, spec.digest, base, head)
        request = replace(request, by=_by(request, base))
        uri = catalogue.uri("manifests", spec.digest, request.name, manifest.digest)
        ranges_uri = catalogue.ranges_uri(found.digest)
        work_uri = catalogue.work_uri(request.name, spec.digest)
        products = _products(request, network, base)
        recipe = Recipe(spec, network, ranges_uri, self.resources, products)
        job = ShardJob(recipe, uri, work_uri)
        if base is not None and _holds(catalogue, request, base, manifest, job, head):
            return _Plan(request, manifest, job, base, parts, up_to_date=True)
        source = storage.readable(manifest.source)
        if base is not None and not base.imported and base.source != source:
            self.progress.say(f"{request.name}: was of {base.source}, and is of {source} now")
        storage.create(ranges_uri, ranges_module.encode(found, network, **provenance))
        storage.create(catalogue.spec_uri(spec.digest), canonical_json(spec.to_json()))
        stored = store_manifest(uri, manifest.data, manifest.digest)
        catalogue.note_plan(request.name, spec.digest, manifest.digest, products)
        return _Plan(request, manifest, job, base, parts, manifest_sha256=sha256(stored))

    def _parted(
        self, request: Request, spec: str, base: Version | None, head: Commit
    ) -> tuple[Manifest, Mapping[str, Sequence[int]]]:
        """The plan, and of each value that there are parts by the indices of its shards."""
        asked = replace(request, by=_by(request, base))
        try:
            manifest = self._manifest(asked, spec, base)
            return manifest, _parts(asked, manifest, head)
        except UsageError as error:
            if not asked.by or request.by is not None:
                raise
            raise UsageError(
                f"{error} (the dataset has parts by {asked.by!r}; --by '' ends them)"
            ) from error

    def _manifest(self, request: Request, spec: str, base: Version | None) -> Manifest:
        kept = self._kept(request)
        listing = self.listings.get(request.name) or self._list(request, kept)
        manifest = plan(
            listing,
            shard_images=request.shard_images,
            previous=_previous(self.catalogue, request.name, spec, base),
            limit=request.limit,
            by=request.rules.label,
        )
        if kept is not None:
            kept.remove()
        return manifest

    def _kept(self, request: Request) -> Kept | None:
        """Where parts of the listing are kept: of S3, whose listing can go on from a key."""
        if request.name in self.listings or storage.protocol_of(request.source) != "s3":
            return None
        place = digest_of("listing", storage.canonical(request.source), asdict(request.rules))
        uri = self.catalogue.listing_uri(place)
        return Kept(uri, datetime.now(UTC), relist=self.relist)

    def _list(self, request: Request, kept: Kept | None) -> Listing:
        if request.source:
            storage.canonical(request.source)  # refuses what must not be shown
        self.progress.say(f"{request.name}: listing {request.source}")
        return list_source(
            request.source,
            request.rules,
            kept=kept,
            spread=None if self.engine.in_process else self.engine.map,
            cache=self.catalogue.archives_uri,
            progress=self.progress,
        )


def _products(request: Request, network: Network, base: Version | None) -> tuple[str, ...]:
    """What is asked for, and what the dataset has: a refresh must not drop what others read.

    Nor does it count all images of a dataset again for exemplars that nobody has asked for.
    """
    had = base.products if base is not None and not base.imported else None
    products = PRODUCTS
    if request.layer_gaussian or LAYER_GAUSSIAN in (had or ()):
        products = (*products, LAYER_GAUSSIAN)
    if had is not None and request.exemplars is None and request.exemplar_taps is None:
        keep = Keep.of(had)
    else:
        number = DEFAULT_KEPT if request.exemplars is None else request.exemplars
        keep = Keep.asked(number, request.exemplar_taps, network.taps)
    return (*products, keep.product) if keep else products


def _by(request: Request, base: Version | None) -> str:
    return request.by if request.by is not None else base.by if base is not None else ""


def _parts(request: Request, manifest: Manifest, head: Commit) -> dict[str, Sequence[int]]:
    """The shards of each value. Raises `UsageError` where values are too many or make no names."""
    label = request.rules.label
    if label is None:
        return {}
    parts = manifest.parts(label)
    if not parts:
        raise UsageError(
            f"no image has a value of {label} (by is {request.by!r}); --by '' makes no parts"
        )
    if len(parts) > MAX_PARTS:
        raise UsageError(
            f"{label} has {len(parts):,} values ({', '.join(list(parts)[:3])}, …); parts are "
            f"made by at most {MAX_PARTS:,}"
        )
    values: dict[str, str] = {}
    for value in parts:
        name = part_name(request.name, value)
        if name in values:
            raise UsageError(
                f"the values {values[name]!r} and {value!r} of {label} both make the name "
                f"{name}; give one of them another label"
            )
        values[name] = value
        require_free(head, name, request.name)
    return dict(parts)


def _holds(
    catalogue: Catalogue,
    request: Request,
    base: Version,
    manifest: Manifest,
    job: ShardJob,
    head: Commit,
) -> bool:
    """Whether the catalogue's version is of these candidates, and all files of it and of its parts
    are there.
    """
    stated = (base.manifest, base.products, base.by)
    if stated != (manifest.digest, job.recipe.products, request.by or ""):
        return False
    versions = {request.name: base} | parts_of(head, request.name, base.spec)
    return all(
        storage.exists(catalogue.uri(kind, version.spec, name, version.digest_in(kind)))
        for name, version in versions.items()
        for kind in version.sha256
    )


def _known_ranges(catalogue: Catalogue, asked: str | None) -> dict[str, str]:
    uri = catalogue.ranges_uri(asked) if asked and asked.isalnum() else None
    return {asked: uri} if asked and uri and storage.exists(uri) else {}


def _previous(
    catalogue: Catalogue, name: str, spec_digest: str, base: Version | None
) -> Manifest | None:
    """The plan to keep shards of: the one last begun here, else the one committed."""
    planned = catalogue.planned(name, spec_digest)
    if planned is not None:
        return planned[0]
    if base is None or base.imported:
        return None
    try:
        return catalogue.manifest(name, base)
    except SourceError:
        return None  # lost: planned from the listing alone, as at first


def _store(uri: str, data: Data, stands: Callable[[Data], bool]) -> Data:
    """Put an object that is named for its content, over a damaged one too; what then is there.

    One that `stands` keeps its bytes. It is written again all the same: it becomes young, and so
    safe from a collection that runs beside this build.
    """
    if storage.create(uri, data):
        return data
    there = storage.read_on_disk(uri)
    kept = there if stands(there) else data
    storage.replace(uri, kept)
    return kept


def store_manifest(uri: str, data: Data, digest: str) -> Data:
    """A sound one stays as it is, since its notes on the listing are in no digest."""

    def stands(there: Data) -> bool:
        try:
            return Manifest.decode(there, uri).digest == digest
        except CorruptFile:
            return False

    return _store(uri, data, stands)


def _store_version(
    catalogue: Catalogue, name: str, spec: str, digest: str, files: Mapping[str, bytes]
) -> dict[str, Data]:
    """What commits state of a version stays as it is: where the dataset comes back to an earlier
    state, another release of a library may write the same numbers in other bytes.
    """

    @functools.cache
    def committed() -> Mapping[str, str]:
        for commit in catalogue.log():
            version = commit.datasets.get(name, {}).get(spec)
            if version is not None and version.dna == digest:
                return version.sha256
        return {}

    def store(kind: str, data: bytes) -> Data:
        def stands(there: Data) -> bool:
            found = sha256(there)
            return found != sha256(data) and found == committed().get(kind)

        return _store(catalogue.uri(kind, spec, name, digest), data, stands)

    return {kind: store(kind, data) for kind, data in files.items()}


# Counting.


@dataclass(frozen=True)
class Ran:
    """What became of a job's shards: how many were missing, and which could not be done now."""

    shards: int
    errors: tuple[Receipt, ...]


def run_missing(
    work: Sequence[tuple[ShardJob, Manifest]], engine: Engine, progress: Progress
) -> list[Ran]:
    """Run the shards of all jobs that nothing is committed of, those that fail once again."""
    sizes = {(job.manifest_uri, h.index): h.candidates for job, plan in work for h in plan.heads}
    todo = [_missing(one) for one in work]
    left = [(job, i) for (job, _), missing in zip(work, todo, strict=True) for i in missing]
    jobs = {job.manifest_uri: job for job, _ in work}
    progress.start(
        images=sum(sizes[job.manifest_uri, index] for job, index in left),
        shards=len(left),
        present=len(sizes) - len(left),
    )
    errors: dict[str, list[Receipt]] = {}
    for _ in range(TRIES):
        errors = {}
        for receipt in engine.run_shards(left) if left else ():
            if receipt.error:
                errors.setdefault(receipt.manifest_uri, []).append(receipt)
                progress.say(f"shard {receipt.index} not counted: {receipt.error}")
            else:
                key = (receipt.manifest_uri, receipt.index)
                progress.advance(sizes[key], receipt.failures)
        left = [(jobs[uri], r.index) for uri, receipts in errors.items() for r in receipts]
        if not left:
            break
    progress.finish()
    return [
        Ran(len(missing), tuple(errors.get(job.manifest_uri, ())))
        for (job, _), missing in zip(work, todo, strict=True)
    ]


def _missing(one: tuple[ShardJob, Manifest]) -> list[int]:
    """Shards of which nothing is committed, found by one listing."""
    job, manifest = one
    prefix = storage.join(job.work_uri, "partials")
    try:
        present = {item.uri.rpartition("/")[2] for item in storage.walk(prefix)}
    except SourceError:
        present = set()
    keys = manifest.keys(job.recipe.spec.digest, job.recipe.products)
    return [index for index, key in enumerate(keys) if f"{key}.parquet" not in present]


@dataclass(frozen=True)
class _Counted:
    """What became of a plan's shards: how many were counted now, and which could not be."""

    plan: _Plan
    shards: int = 0
    errors: tuple[Receipt, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether all that stands in the way is that the source is no longer as it was listed."""
        return bool(self.errors) and all(receipt.changed for receipt in self.errors)


def _count(plans: Sequence[_Plan], engine: Engine, progress: Progress) -> dict[str, _Counted]:
    """Run the missing shards of all plans; what became of each, by the name of its dataset."""
    pending = [p for p in plans if not p.up_to_date]
    ran = run_missing([(p.job, p.manifest) for p in pending], engine, progress)
    counted = {p.request.name: _Counted(p) for p in plans}
    for p, its in zip(pending, ran, strict=True):
        counted[p.request.name] = _Counted(p, its.shards, its.errors)
    return counted


# Committing.


def _finish(
    catalogue: Catalogue, p: _Plan, counted: int, engine: Engine, progress: Progress
) -> Result:
    name, job = p.request.name, p.job
    composed = _reduce(p.manifest, job.work_uri, job.recipe, name, engine.map)
    _gate(p, composed)
    version = _store_all(catalogue, name, p.manifest, p.manifest_sha256, composed, job.recipe)
    whole = replace(version, by=p.request.by or "")
    parts = _finish_parts(catalogue, p, engine, progress)
    commit = catalogue.put_version(name, whole, p.base, parts=parts)
    return Result(
        name,
        commit.datasets[name][whole.spec],
        True,
        counted,
        composed.failures,
        dict(p.manifest.ignored),
        p.manifest.duplicates,
        parts_of(commit, name, whole.spec),
    )


def _reduce(
    manifest: Manifest,
    work_uri: str,
    recipe: Recipe,
    name: str,
    spread: Callable[[Callable[[Node], str], Sequence[Node]], Iterator[str]],
) -> Composed:
    levels, folds = plan_folds(manifest, work_uri, recipe.spec.digest, recipe.products)
    try:
        for level in levels:
            for _ in spread(add_up, level):
                pass
        return compose(folds, manifest, recipe.products, name)
    except (CorruptFile, ConservationError, OverlapError, SpecMismatch) as error:
        raise type(error)(
            f"{name}: {error}\nNothing was committed. If that file is damaged, delete it and rerun "
            "the same command: what it held is counted again"
        ) from error


def _store_all(
    catalogue: Catalogue,
    name: str,
    manifest: Manifest,
    manifest_sha256: str,
    composed: Composed,
    recipe: Recipe,
) -> Version:
    """What is to be committed of it, all its files being stored."""
    spec = recipe.spec.digest
    files = {**composed.files, "failures": encode_failures(composed.failures)}
    stored = _store_version(catalogue, name, spec, composed.digest, files)
    hashes = {kind: sha256(data) for kind, data in stored.items()}
    return Version(
        dna=composed.digest,
        manifest=manifest.digest,
        spec=spec,
        images=composed.images,
        failed=len(composed.failures),
        products=recipe.products,
        sha256=hashes | {"manifests": manifest_sha256},
        footers=footers_of(stored),
        source=storage.readable(manifest.source),
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        software=software(),
        numerics=composed.numerics,
    )


@dataclass(frozen=True)
class _PartJob:
    """A part to be summed up: of which shards of the whole's manifest."""

    root: str
    whole: str
    job: ShardJob
    by: str
    label: str
    value: str
    shards: tuple[int, ...]


def _finish_parts(
    catalogue: Catalogue, p: _Plan, engine: Engine, progress: Progress
) -> dict[str, Version]:
    """The parts' versions by their names, all their files stored; none of what cannot be read."""
    by, label = p.request.by, p.request.rules.label
    if by is None or label is None:
        return {}
    jobs = [
        _PartJob(catalogue.root, p.request.name, p.job, by, label, value, tuple(shards))
        for value, shards in p.parts.items()
    ]
    found: dict[str, Version] = {}
    started = said = monotonic()
    for done, (name, version) in enumerate(engine.map(_finish_part, jobs), 1):
        if version is None:
            progress.say(f"{name}: no part, as none of its images could be read")
        else:
            found[name] = version
        if (now := monotonic()) - said >= SAY_SECONDS:
            said, rate = now, done / (now - started)
            left = (len(jobs) - done) / rate
            progress.say(
                f"{p.request.name}: {done:,} of {len(jobs):,} parts, {rate:.1f} a second, "
                f"{left:,.0f} s left"
            )
    return dict(sorted(found.items()))


def _finish_part(part: _PartJob) -> tuple[str, Version | None]:
    catalogue, recipe = Catalogue(part.root), part.job.recipe
    name = part_name(part.whole, part.value)
    with storage.open_random(part.job.manifest_uri) as file:
        manifest = read_part(file, part.shards, part.label, part.value, part.job.manifest_uri)
    composed = _reduce(manifest, part.job.work_uri, recipe, name, map)
    if not composed.images:
        return name, None
    uri = catalogue.uri("manifests", recipe.spec.digest, name, manifest.digest)
    stored = store_manifest(uri, manifest.data, manifest.digest)
    version = _store_all(catalogue, name, manifest, sha256(stored), composed, recipe)
    return name, replace(version, by=part.by, part_of=part.whole, value=part.value)


def _gate(p: _Plan, composed: Composed) -> None:
    failed = len(composed.failures)
    if not composed.images:
        raise SourceError(
            f"{p.request.name}: none of {failed} candidates is an image that can be read. First: "
            f"{composed.failures[0]}"
        )
    if failed > allowed_failures(p.request.max_failures, p.manifest.candidates):
        some = "\n  ".join(str(failure) for failure in composed.failures[:5])
        raise GateError(
            f"{p.request.name}: {failed} of {p.manifest.candidates} images could not be read; the "
            f"limit is {p.request.max_failures:g}. Nothing was committed; mend them, or rerun with "
            f"a higher --max-failures, which commits at once. First:\n  {some}"
        )


def allowed_failures(limit: float, candidates: int) -> int:
    """A limit below 1 is a fraction of the candidates (rounded down), from 1 up a number."""
    return int(limit * candidates) if limit < 1 else int(min(limit, candidates))


def _unchanged(catalogue: Catalogue, p: _Plan, head: Commit) -> Result:
    if p.base is None:
        raise CorruptFile(f"{p.request.name} has no version to be unchanged from")
    failures = tuple(catalogue.failures(p.request.name, p.base)) if p.base.failed else ()
    return Result(
        p.request.name,
        p.base,
        False,
        0,
        failures,
        dict(p.manifest.ignored),
        p.manifest.duplicates,
        parts_of(head, p.request.name, p.base.spec),
    )


# In process, without a catalogue.


def make_dna(
    source: str | os.PathLike[str] | Sequence[NDArray[np.uint8] | Image.Image],
    *,
    extractor: str = "efficientnet_lite0",
    weights: str | None = None,
    bins: int = 1000,
    precision: Precision = "fp32",
    ranges: str | None = None,
    resize: Resize = "clean",
    exif: Exif = "apply",
    crop: Crop = "none",
    taps: str | None = None,
    limit: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    image_column: str | None = None,
    max_failures: float = DEFAULT_MAX_FAILURES,
    layer_gaussian: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> DNA:
    """The DNA of a source (as `vdna build` takes it), or of images in memory, in this process.

    Images in memory: uint8 arrays (height, width, 3) or (height, width), or PIL images. Raises
    `GateError` where more than `max_failures` candidates cannot be read; fewer are warned of, and
    `DNA.failed` counts them. Leaves torch's TF32 and cuDNN switches, and glibc's allocator, set as
    exact and quick counting needs them.
    """
    import torch

    from pipeline.extractor import Extractor
    from pipeline.spec import available_cpus

    held: dict[str, NDArray[np.uint8]] = {}
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        listing = list_source(name, Rules(include, exclude, image_column=image_column))
    else:
        held = {f"memory-{i:09d}": _pixels(image, i, exif) for i, image in enumerate(source)}
        entries = [Entry(uri, "", pixels.nbytes, "") for uri, pixels in held.items()]
        name, listing = "images in memory", Listing.of(entries[:limit], "memory")
    request = Request(
        "in-process",
        name,
        extractor=extractor,
        weights=weights,
        bins=bins,
        precision=precision,
        ranges=ranges,
        resize=resize,
        exif=exif,
        crop=crop,
        taps=taps,
        max_failures=max_failures,
        layer_gaussian=layer_gaussian,
        exemplars=0,
    )
    network = describe(extractor, weights, taps)
    found = ranges_module.resolve(network, ranges, {})
    spec = make_spec(request, network, found.digest, "cpu")
    manifest = plan(listing, limit=None if held else limit)
    resources = Resources(threads=threads or available_cpus())
    threads_before = torch.get_num_threads()
    products = _products(request, network, None)
    counter = Counter(Extractor(network, precision), spec, found, resources, products)
    progress = progress or Silent()
    progress.start(images=manifest.candidates, shards=len(manifest.heads), present=0)
    total = Partial.empty(spec, found, layer_gaussian=layer_gaussian)

    def count(shard: Shard) -> Partial:
        key = shard.key(spec.digest, products)
        if held:
            return counter.count(shard, key, lambda entry: held[entry.uri])
        return counter.count(shard, key)

    try:
        with ThreadPoolExecutor(OVERLAP, "shard") as pool:
            for partial in pool.map(count, manifest.shards):
                total += partial
                progress.advance(partial.candidates, len(partial.failures))
    finally:
        counter.close()
        torch.set_num_threads(threads_before)
        progress.finish()
    if total.failures:
        listed = "; ".join(str(failure) for failure in total.failures[:5])
        message = f"{len(total.failures)} of {total.candidates} images could not be read: {listed}"
        if len(total.failures) > allowed_failures(max_failures, total.candidates):
            raise GateError(f"{name}: {message} (the limit is {max_failures:g})")
        warnings.warn(message, stacklevel=2)
    return total.dna


def _pixels(image: NDArray[np.uint8] | Image.Image, index: int, exif: Exif) -> NDArray[np.uint8]:
    """(height, width, 3) uint8. Raises `UsageError` naming the image that is something else."""
    import numpy as np
    from PIL import Image

    if isinstance(image, np.ndarray):
        array = image
    elif isinstance(image, Image.Image):
        try:
            array = images.pixels_of(image, exif)
        except BadImage as bad:
            raise UsageError(f"image {index} cannot be counted: {bad}") from bad
    else:
        raise UsageError(
            f"image {index} is a {type(image).__name__}; give arrays or PIL images (files are read "
            "by a folder, a glob, or a .txt list of their names)"
        )
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise UsageError(
            f"image {index} has shape {array.shape} and type {array.dtype}; give uint8 of "
            "(height, width, 3) or (height, width)"
        )
    return np.ascontiguousarray(array)
