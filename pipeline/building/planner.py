"""building.planner: TODO-DOC"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

from pipeline import storage
from pipeline.buffers import Data, sha256
from pipeline.building.request import Request, Result
from pipeline.catalogue import (
    Catalogue,
    Commit,
    Version,
    canonical_json,
    part_name,
    parts_of,
    require_free,
    require_own,
)
from pipeline.counting import Recipe, ShardJob, device_kind, numerics
from pipeline.dna import DEFAULT_KEPT, Keep
from pipeline.engine import Engine
from pipeline.errors import CorruptFile, SourceError, UsageError, VdnaError
from pipeline.events import Listener, Said
from pipeline.images import stated_decoder
from pipeline.networks import Network, describe, require_fit
from pipeline.networks import ranges_file as ranges_module
from pipeline.sources import Listing, ListingCheckpoint, Manifest, list_source, plan
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS, Preprocess, Resources, Spec, digest_of

MAX_PARTS = 4096
"""Of a dataset: a commit names them all."""

SAY_SECONDS = 10.0


@dataclass(frozen=True)
class DatasetPlan:
    """`parts`: of each value, the indices of its shards."""

    request: Request
    manifest: Manifest
    job: ShardJob
    base: Version | None
    parts: Mapping[str, Sequence[int]]
    up_to_date: bool = False
    manifest_sha256: str = ""


# Planning.


@dataclass(frozen=True)
class Planner:
    """Lists sources, and plans what is to be counted."""

    catalogue: Catalogue
    engine: Engine
    resources: Resources
    progress: Listener
    listings: Mapping[str, Listing]
    relist: bool

    def plans(self, requests: Sequence[Request], problems: list[VdnaError]) -> list[DatasetPlan]:
        """Of the requests that can be planned; `problems` is told of the others, for good."""
        plans = []
        for request in requests:
            try:
                plans.append(self._plan(request))
            except VdnaError as error:
                problems.append(type(error)(f"{request.name}: {error}"))
        return plans

    def _plan(self, request: Request) -> DatasetPlan:
        catalogue = self.catalogue
        network = describe(request.extractor, request.weights, request.taps)
        if network.weights_uri:
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
        products = products_of(request, network, base)
        recipe = Recipe(spec, network, ranges_uri, self.resources, products)
        job = ShardJob(recipe, uri, work_uri)
        if base is not None and _holds(catalogue, request, base, manifest, job, head):
            return DatasetPlan(request, manifest, job, base, parts, up_to_date=True)
        source = storage.readable(manifest.source)
        if base is not None and not base.imported and base.source != source:
            self.progress(Said(f"{request.name}: was of {base.source}, and is of {source} now"))
        storage.create(ranges_uri, ranges_module.encode(found, network, **provenance))
        storage.create(catalogue.spec_uri(spec.digest), canonical_json(spec.to_json()))
        stored = store_manifest(uri, manifest.data, manifest.digest)
        catalogue.note_plan(request.name, spec.digest, manifest.digest, products)
        return DatasetPlan(request, manifest, job, base, parts, manifest_sha256=sha256(stored))

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
        checkpoint = self._checkpoint(request)
        listing = self.listings.get(request.name) or self._list(request, checkpoint)
        manifest = plan(
            listing,
            shard_images=request.shard_images,
            previous=_previous(self.catalogue, request.name, spec, base),
            limit=request.limit,
            by=request.rules.label,
        )
        if checkpoint is not None:
            checkpoint.remove()
        return manifest

    def _checkpoint(self, request: Request) -> ListingCheckpoint | None:
        """Where parts of the listing are kept: of S3, whose listing can go on from a key."""
        if request.name in self.listings or not storage.store_of(request.source).lists_in_key_order:
            return None
        place = digest_of("listing", storage.canonical(request.source), asdict(request.rules))
        uri = self.catalogue.listing_uri(place)
        return ListingCheckpoint(uri, datetime.now(UTC), relist=self.relist)

    def _list(self, request: Request, checkpoint: ListingCheckpoint | None) -> Listing:
        if request.source:
            storage.canonical(request.source)  # refuses what must not be shown
        self.progress(Said(f"{request.name}: listing {request.source}"))
        return list_source(
            request.source,
            request.rules,
            checkpoint=checkpoint,
            mapper=self.engine,
            cache=self.catalogue.archives_uri,
            progress=self.progress,
        )


def make_spec(request: Request, network: Network, ranges_digest: str, device: str) -> Spec:
    """Returns the spec of what a request counts.

    Args:
        request: What was asked for.
        network: The network as it was looked up.
        ranges_digest: Digest of the ranges to count in.
        device: Kind of the device that computes (`cpu`, `cuda`); part of the spec in bf16 only.
    """
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
            decoder=stated_decoder(request.decoder) if request.decoder else None,
        ),
        ranges_digest=ranges_digest,
        bins=request.bins,
        precision=request.precision,
        bf16_numerics=numerics(network, device) if request.precision == "bf16" else None,
    )


def products_of(request: Request, network: Network, base: Version | None) -> tuple[str, ...]:
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


def store_version(
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


def unchanged_result(catalogue: Catalogue, p: DatasetPlan, head: Commit) -> Result:
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
