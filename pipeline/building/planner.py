"""Plans a request: looks up its network and ranges, lists its source, and cuts it into shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.building.counting_ahead import CountingAhead
from pipeline.building.earlier_plan import kept_plan, plan_to_change, selection_of
from pipeline.building.request import Request, Result
from pipeline.building.shard_time import most_shard_images
from pipeline.building.spec_change import require_same_way
from pipeline.building.storing import store_manifest
from pipeline.catalogue import (
    Catalogue,
    Commit,
    KeptVersion,
    Version,
    canonical_json,
    missing_files,
    part_name,
    parts_of,
    require_free,
    require_own,
)
from pipeline.counting import (
    LEAST_CELL_IMAGES,
    Recipe,
    ShardJob,
    choose_backend,
    counted_by,
    device_kind,
    expected_bytes,
    numerics,
)
from pipeline.dna import DEFAULT_EXEMPLARS, ExemplarSettings
from pipeline.engine import Engine
from pipeline.errors import CorruptFile, UsageError
from pipeline.events import Listener, Said
from pipeline.images import is_nvjpeg, stated_decoder
from pipeline.mapper import Mapper
from pipeline.networks import Network, describe, encode_ranges, find_ranges, require_loadable
from pipeline.sources import (
    ChangeCounts,
    Entries,
    Listing,
    ListingCheckpoint,
    Manifest,
    NewShardSizes,
    PlanAhead,
    list_changed,
    list_source,
)
from pipeline.sources import plan as plan_shards
from pipeline.spec import LAYER_GAUSSIAN, PRODUCTS, Backend, Preprocess, Resources, Spec, digest_of
from pipeline.wording import count_of, option

MAX_PARTS = 4096
"""The most parts of a dataset. Every commit lists all of them."""

MOST_LOST = 0.5
"""The share of its images that a dataset may lose without being asked whether that is meant."""


@dataclass(frozen=True)
class DatasetPlan:
    """What is to be counted for a request.

    Attributes:
        request: The request; its `by` is what applies, asked for or kept from before.
        manifest: Every image once, in shards.
        job: What the workers need to count the shards.
        base: The catalogue's version of the dataset under this spec, or None.
        parts: The indices of each part's shards, by the part's value.
        up_to_date: Whether `base` is of the same manifest and products, and all its files exist.
        manifest_sha256: The hash of the manifest's stored bytes; empty if up to date.
        changes: What a change list did to the plan before. None if the source was listed.
    """

    request: Request
    manifest: Manifest
    job: ShardJob
    base: Version | None
    parts: Mapping[str, Sequence[int]]
    up_to_date: bool = False
    manifest_sha256: str = ""
    changes: ChangeCounts | None = None


@dataclass(frozen=True)
class Planner:
    """Lists sources, and plans what is to be counted.

    Attributes:
        catalogue: Where the datasets are, or will be.
        engine: Where archives are listed.
        resources: How fast the shards are counted.
        progress: Is told what is listed.
        listings: Listings that the caller has, by the request's name.
        relist: Whether to ignore what an interrupted listing has left.
        noted: What was said of backends, so that it is said once.
    """

    catalogue: Catalogue
    engine: Engine
    resources: Resources
    progress: Listener
    listings: Mapping[str, Listing]
    relist: bool
    noted: set[str] = field(default_factory=set)

    def plans(
        self,
        requests: Sequence[Request],
        ahead: CountingAhead,
        failed: Callable[[str, Exception], None],
    ) -> list[DatasetPlan]:
        """Plans the requests, each by itself.

        Args:
            requests: What to plan.
            ahead: Counts shards of large sources while they are listed.
            failed: Is called with the name of each request that cannot be planned, and why.

        Returns:
            The plans of the other requests, in their order.
        """
        plans = []
        for request in requests:
            try:
                plans.append(self._plan(request, ahead))
            except Exception as error:
                failed(request.name, error)
        return plans

    def _plan(self, request: Request, ahead: CountingAhead) -> DatasetPlan:
        catalogue = self.catalogue
        network = describe(request.extractor, request.weights, request.taps)
        if network.weights_uri:
            require_loadable(network)  # wrong weights are found before anything is listed
        head = catalogue.head()
        known = _known_ranges(catalogue, request.ranges)
        found, provenance = find_ranges(network, request.ranges, known)
        device, micro_batch = device_kind(self.resources), self.resources.micro_batch
        spec = make_spec(request, network, found.digest, device, micro_batch)
        base = head.datasets.get(request.name, {}).get(spec.digest)
        require_own(head, request.name)
        require_same_way(catalogue, head, request, spec)
        products = products_of(request, network, base)
        ranges_uri = catalogue.ranges_uri(found.digest)
        recipe = Recipe(spec, network, ranges_uri, self.resources, products)
        spec_uri = catalogue.spec_uri(spec.digest)
        if not storage.exists(ranges_uri):
            storage.create(ranges_uri, encode_ranges(found, network, **provenance))
        if not storage.exists(spec_uri):
            storage.create(spec_uri, canonical_json(spec.to_json()))
        manifest, parts, changes = self._manifest_and_parts(request, recipe, base, head, ahead)
        request = replace(request, by=_effective_by(request, base))
        uri = catalogue.uri("manifests", spec.digest, request.name, manifest.digest)
        work_uri = catalogue.work_uri(request.name, spec.digest)
        job = ShardJob(recipe, uri, work_uri, catalogue.entries_uri)
        if base is not None and _is_up_to_date(catalogue, request, base, manifest, job, head):
            self._note_committed(request, base, manifest, products)
            return DatasetPlan(
                request, manifest, job, base, parts, up_to_date=True, changes=changes
            )
        if base is not None and not base.imported:
            _require_meant(request, base, manifest)
        stored = store_manifest(uri, manifest)
        backend = self._backend(request, network, spec.digest, base)
        job = replace(job, recipe=replace(recipe, backend=backend))
        selection = selection_of(request)
        catalogue.note_plan(
            request.name,
            spec.digest,
            manifest.digest,
            products,
            backend,
            selection,
            base.manifest if base is not None else "",
        )
        return DatasetPlan(
            request,
            manifest,
            job,
            base,
            parts,
            manifest_sha256=sha256(stored),
            changes=changes,
        )

    def _note_committed(
        self, request: Request, base: Version, manifest: Manifest, products: tuple[str, ...]
    ) -> None:
        """Notes a plan that is committed, if another was noted: a change list goes by the note."""
        catalogue, name, spec = self.catalogue, request.name, base.spec
        selection = selection_of(request)
        if not catalogue.notes_plan(name, spec, manifest.digest, products, selection):
            backend = counted_by(base.numerics) or "torch"
            catalogue.note_plan(
                name, spec, manifest.digest, products, backend, selection, base.manifest
            )

    def _backend(
        self, request: Request, network: Network, spec: str, base: Version | None
    ) -> Backend:
        """Chooses what runs the network, and says why if it is not what one expects."""
        before = (
            self.catalogue.planned_backend(request.name, spec)
            if base is None
            else counted_by(base.numerics)
        )
        chosen = choose_backend(
            self.resources.backend,
            network,
            request.precision,
            device_kind(self.resources),
            before,
            self._say_once,
            self.resources.micro_batch,
        )
        if chosen.note:
            self._say_once(chosen.note)
        return chosen.backend

    def _say_once(self, message: str) -> None:
        if message not in self.noted:
            self.noted.add(message)
            self.progress(Said(message))

    def _manifest_and_parts(
        self,
        request: Request,
        recipe: Recipe,
        base: Version | None,
        head: Commit,
        ahead: CountingAhead,
    ) -> tuple[Manifest, Mapping[str, Sequence[int]], ChangeCounts | None]:
        """Returns the manifest, the indices of each part's shards by its value, and the changes."""
        asked = replace(request, by=_effective_by(request, base))
        try:
            manifest, changes = self._manifest(asked, recipe, base, ahead)
            return manifest, _parts(asked, manifest, head), changes
        except UsageError as error:
            if not asked.by or request.by is not None:
                raise
            raise UsageError(
                f"{error} (the dataset has parts by {asked.by!r}; {option('by', '')} removes them)"
            ) from error

    def _manifest(
        self, request: Request, recipe: Recipe, base: Version | None, ahead: CountingAhead
    ) -> tuple[Manifest, ChangeCounts | None]:
        checkpoint, changes = self._checkpoint(request), None
        spec, device = recipe.spec.digest, device_kind(self.resources)
        sizes = NewShardSizes(
            request.shard_images,
            most_shard_images(self.catalogue, spec, device),
            request.cell_images,
            expected_bytes(recipe.spec, recipe.products),
            LEAST_CELL_IMAGES[device],
        )
        before = kept_plan(self.catalogue, request.name, spec, base)
        is_new = before is None and request.limit is None
        if request.changes is not None:
            listing, changes = self._apply(request, request.changes, spec, base, ahead)
        else:
            planning = self._plan_ahead(request, recipe, base, sizes, ahead) if is_new else None
            listing = self.listings.get(request.name) or self._list(
                request, checkpoint, planning, ahead
            )
            if listing.planned is None:
                ahead.drop(request.name)
        manifest = listing.planned or plan_shards(
            listing,
            previous=before,
            limit=request.limit,
            by=request.rules.label,
            entries=Entries(self.catalogue.entries_uri),
            **asdict(sizes),
        )
        if checkpoint is not None:
            checkpoint.remove()
        return manifest, changes

    def _plan_ahead(
        self,
        request: Request,
        recipe: Recipe,
        base: Version | None,
        sizes: NewShardSizes,
        ahead: CountingAhead,
    ) -> PlanAhead:
        """Returns how a source is planned while it is listed, if it turns out to be very large.

        The network's backend is chosen and noted before anything is counted, so that a build that
        goes on after a crash takes the same.
        """
        catalogue, name, spec = self.catalogue, request.name, recipe.spec.digest

        def planned(some: Manifest) -> None:
            backend = self._backend(request, recipe.network, spec, base)
            if catalogue.planned_backend(name, spec) != backend:
                catalogue.note_plan(name, spec, "", recipe.products, backend)
            ahead.add(name, partial(job_of, replace(recipe, backend=backend)), some)

        def job_of(its: Recipe, some: Manifest) -> ShardJob:
            uri = catalogue.uri("manifests", spec, name, some.digest)
            store_manifest(uri, some)
            return ShardJob(its, uri, catalogue.work_uri(name, spec), catalogue.entries_uri)

        return PlanAhead(sizes, Entries(catalogue.entries_uri), planned)

    def _apply(
        self, request: Request, changes: str, spec: str, base: Version | None, mapper: Mapper
    ) -> tuple[Listing, ChangeCounts]:
        """Applies a change list to the plan before."""
        before = plan_to_change(self.catalogue, request, spec, base)
        self.progress(Said(f"{request.name}: applying {changes} to {request.source}"))
        listing, counts = list_changed(
            request.source,
            changes,
            before,
            request.rules,
            mapper=mapper,
            cache=self.catalogue.archives_uri,
            outside=self.catalogue.root,
            progress=self.progress,
        )
        self.progress(Said(f"{request.name}: of {changes}: {counts}"))
        return listing, counts

    def _checkpoint(self, request: Request) -> ListingCheckpoint | None:
        """Returns where listed pages are kept; None if a listing cannot go on from a key."""
        listed = request.name in self.listings or request.changes is not None
        if listed or not storage.store_of(request.source).lists_in_key_order:
            return None
        place = digest_of("listing", request.rules.canonical(request.source), asdict(request.rules))
        uri = self.catalogue.listing_uri(place)
        return ListingCheckpoint(uri, datetime.now(UTC), relist=self.relist)

    def _list(
        self,
        request: Request,
        checkpoint: ListingCheckpoint | None,
        ahead: PlanAhead | None,
        mapper: Mapper,
    ) -> Listing:
        if request.source:
            request.rules.canonical(request.source)  # refuses what must not be shown
        self.progress(Said(f"{request.name}: listing {request.source}"))
        return list_source(
            request.source,
            request.rules,
            checkpoint=checkpoint,
            mapper=mapper,
            cache=self.catalogue.archives_uri,
            outside=self.catalogue.root,
            progress=self.progress,
            ahead=ahead,
        )


def _require_meant(request: Request, base: Version, manifest: Manifest) -> None:
    """Refuses to replace a dataset by another, or by a small rest of it, unless asked to.

    Raises:
        UsageError: The source is another than before, or has lost more than `MOST_LOST` of what
            there was.
    """
    if request.replace:
        return
    source, had = storage.readable(manifest.source), base.images + base.failed
    if base.source != source:
        what = f"its source was {base.source}, and is {source} now"
    elif manifest.candidates < (1 - MOST_LOST) * had:
        what = f"it had {count_of(had, 'image')} of {source}, and has {manifest.candidates:,} now"
    else:
        return
    raise UsageError(
        f"{request.name}: {what}; if it is to become this, give {option('replace', True)}, or else "
        "another name or source"
    )


def make_spec(
    request: Request,
    network: Network,
    ranges_digest: str,
    device: str,
    micro_batch: int | None = None,
) -> Spec:
    """Returns the spec of what a request counts.

    Args:
        request: What was asked for.
        network: The network as it was looked up.
        ranges_digest: Digest of the ranges to count in.
        device: Kind of the device that computes (`cpu`, `cuda`); part of the spec in bf16 only.
        micro_batch: Images that the network sees at a time, or None for the device's own number;
            part of the spec in bf16 only.

    Raises:
        UsageError: If the decoder is unknown, or needs a GPU that does not compute.
    """
    decoder = stated_decoder(request.decoder) if request.decoder else None
    if is_nvjpeg(decoder) and device != "cuda":
        raise UsageError(
            f"decoder is {request.decoder!r}, which decodes on a GPU, and the device is {device}; "
            "compute on a GPU (device 'cuda', gpus_per_worker 1), or leave the decoder out"
        )
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
            alpha=request.alpha,
            jpeg=request.jpeg,
            decoder=decoder,
        ),
        ranges_digest=ranges_digest,
        bins=request.bins,
        precision=request.precision,
        bf16_numerics=(
            numerics(network, device, micro_batch=micro_batch, precision="bf16").in_bf16
            if request.precision == "bf16"
            else None
        ),
    )


def products_of(request: Request, network: Network, base: Version | None) -> tuple[str, ...]:
    """Returns the products to keep: those asked for, and those that the dataset has.

    A refresh must not drop what others read. Nor should it count all images of a dataset again for
    exemplars that nobody has asked for: a dataset without them stays without, unless asked.

    Args:
        request: What was asked for.
        network: The network, whose layers `exemplar_taps` chooses from.
        base: The catalogue's version of the dataset, or None.

    Returns:
        The names of the products, in their fixed order.
    """
    had = base.products if base is not None and not base.imported else None
    products = PRODUCTS
    if request.layer_gaussian or LAYER_GAUSSIAN in (had or ()):
        products = (*products, LAYER_GAUSSIAN)
    if had is not None and request.exemplars is None and request.exemplar_taps is None:
        settings = ExemplarSettings.from_products(had)
    else:
        number = DEFAULT_EXEMPLARS if request.exemplars is None else request.exemplars
        settings = ExemplarSettings.from_options(number, request.exemplar_taps, network.taps)
    return (*products, settings.product) if settings else products


def _effective_by(request: Request, base: Version | None) -> str:
    """Returns what parts are made by: as asked, or else as the dataset has it; '' for no parts."""
    return request.by if request.by is not None else base.by if base is not None else ""


def _parts(request: Request, manifest: Manifest, head: Commit) -> dict[str, Sequence[int]]:
    """Returns the indices of each part's shards; raises `UsageError` for values that cannot be."""
    label = request.rules.label
    if label is None:
        return {}
    parts = manifest.parts(label)
    if not parts:
        raise UsageError(
            f"no image has a value of {label} (by is {request.by!r}); {option('by', '')} makes no "
            "parts"
        )
    if len(parts) > MAX_PARTS:
        raise UsageError(
            f"{label} has {len(parts):,} values ({', '.join(list(parts)[:3])}, …); a dataset can "
            f"have at most {MAX_PARTS:,} parts"
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


def _is_up_to_date(
    catalogue: Catalogue,
    request: Request,
    base: Version,
    manifest: Manifest,
    job: ShardJob,
    head: Commit,
) -> bool:
    """Returns whether `base` has this manifest, and all its files and its parts' files exist."""
    stated = (base.manifest, base.products, base.by)
    if stated != (manifest.digest, job.recipe.products, request.by or ""):
        return False
    if missing_files(catalogue, KeptVersion(request.name, base, head.number)):
        return False
    return all(
        storage.exists(catalogue.uri(kind, part.spec, name, part.digest_in(kind)))
        for name, part in parts_of(head, request.name, base.spec).items()
        for kind in part.sha256
    )


def _known_ranges(catalogue: Catalogue, asked: str | None) -> dict[str, str]:
    """Returns the uri of the ranges by their digest, if `asked` is a digest of the catalogue's."""
    uri = catalogue.ranges_uri(asked) if asked and asked.isalnum() else None
    return {asked: uri} if asked and uri and storage.exists(uri) else {}


def unchanged_result(catalogue: Catalogue, plan: DatasetPlan, head: Commit) -> Result:
    """Returns the result of a request whose dataset is up to date.

    Args:
        catalogue: Where the dataset is.
        plan: Its plan.
        head: The newest commit.

    Raises:
        CorruptFile: The plan has no version to be up to date with.
    """
    name, base = plan.request.name, plan.base
    if base is None:
        raise CorruptFile(f"{name} was planned as up to date, but has no version")
    return Result(
        name,
        base,
        changed=False,
        counted_shards=0,
        failures=tuple(catalogue.failures(name, base)) if base.failed else (),
        ignored=dict(plan.manifest.ignored),
        duplicates=plan.manifest.duplicates,
        parts=parts_of(head, name, base.spec),
        commit=head.number,
    )
