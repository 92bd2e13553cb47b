"""Plans a request: looks up its network and ranges, lists its source, and cuts it into shards."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial

from pipeline import storage
from pipeline.buffers import sha256
from pipeline.building.counted_way import make_spec, products_of, require_room_for_hashes
from pipeline.building.counting_ahead import CountingAhead
from pipeline.building.earlier_plan import (
    kept_plan,
    named_alike,
    paired_as,
    plan_to_change,
    selection_of,
    without_lost,
)
from pipeline.building.request import Request, Result
from pipeline.building.shard_time import noted_seconds
from pipeline.building.shared_lookups import SharedLookups
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
    Recipe,
    ShardJob,
    choose_backend,
    counted_by,
    device_kind,
    expected_bytes,
)
from pipeline.engine import Engine
from pipeline.errors import CorruptFile, UsageError
from pipeline.events import DatasetBegun, Listener, Said, Started, StepDone, about, ignore, phase
from pipeline.mapper import Mapper, NotOpened, map_in_order
from pipeline.networks import Network, encode_ranges
from pipeline.sources import (
    ChangeCounts,
    Entries,
    ImageChanges,
    Listing,
    ListingCheckpoint,
    Manifest,
    NewShardSizes,
    PlanAhead,
    list_changed,
    list_source,
    same_plan,
)
from pipeline.sources import plan as plan_shards
from pipeline.spec import LEAST_FOLDS, Backend, Resources, digest_of
from pipeline.wording import count_of, option

PLANNED_AT_ONCE = 8
"""How many datasets are planned at a time. Each mostly waits for the store."""

MOST_BESIDE = 100_000
"""A dataset that had more images is planned by itself."""

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
        head: The commit that `base` was read from.
        up_to_date: Whether `base` is of the same manifest and products, and all its files exist.
        manifest_sha256: The hash of the manifest's stored bytes; empty if up to date.
        changes: What a change list did to the plan before. None if the source was listed.
        erasure: Number of the commit that had erased images last when the plan was begun.
        image_changes: How the manifest differs from that of `base`. None if nobody has compared
            them.
    """

    request: Request
    manifest: Manifest
    job: ShardJob
    base: Version | None
    parts: Mapping[str, Sequence[int]]
    head: Commit
    up_to_date: bool = False
    manifest_sha256: str = ""
    changes: ChangeCounts | None = None
    erasure: int = 0
    image_changes: ImageChanges | None = None

    def read_from_images(self, missing: Sequence[int]) -> list[int]:
        """Leaves out shards that are put together of others, as no image is read for them.

        Args:
            missing: The numbers of shards that are to be made.

        Returns:
            The numbers of those whose images are read.
        """
        if self.base is None or self.base.products != self.job.recipe.products:
            return list(missing)
        return [index for index in missing if not self.manifest.heads[index].is_merged]


@dataclass(frozen=True)
class _FoundPlan:
    """The plan of a source.

    Attributes:
        manifest: Every image once, in shards.
        changes: What a change list did to the plan before. None if the source was listed.
        is_same: Whether the manifest was read from the catalogue with all its candidates, which are
            those of the source.
        image_changes: How the manifest differs from that of the dataset's version under the spec.
            None if nobody has compared them.
    """

    manifest: Manifest
    changes: ChangeCounts | None = None
    is_same: bool = False
    image_changes: ImageChanges | None = None


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
        shared: Looks up what the plans share.
        noted: What was said of backends, so that it is said once.
    """

    catalogue: Catalogue
    engine: Engine
    resources: Resources
    progress: Listener
    listings: Mapping[str, Listing]
    relist: bool
    shared: SharedLookups
    noted: set[str] = field(default_factory=set)

    def plans(
        self,
        requests: Sequence[Request],
        ahead: CountingAhead,
        failed: Callable[[str, Exception], None],
    ) -> list[DatasetPlan]:
        """Plans the requests, each by itself, and several at a time.

        Those that are known to be large are planned one after the other, and so are those that need
        an engine that only this thread may open.

        Args:
            requests: What to plan.
            ahead: Counts shards of large sources while they are listed.
            failed: Is called with the name of each request that cannot be planned, and why.

        Returns:
            The plans of the other requests, in their order.
        """
        plans: dict[str, DatasetPlan] = {}
        alone = [request for request in requests if len(requests) == 1 or self._is_large(request)]
        beside = [request for request in requests if request not in alone]

        def planned(request: Request) -> DatasetPlan | Exception:
            try:
                self.progress(DatasetBegun(request.name))
                with about(dataset=request.name), phase(self.progress, request.name, "planning"):
                    return self._plan(request, ahead)
            except Exception as error:
                ahead.drop(request.name)  # what it would count would be of no use
                return error

        def note(request: Request, found: DatasetPlan | Exception) -> None:
            if isinstance(found, DatasetPlan):
                plans[request.name] = found
            else:
                failed(request.name, found)
            tell(StepDone(1, name=request.name))

        started = Started(len(requests), len(requests), unit="datasets", step="plans")
        with ahead.planning(started) if len(requests) > 1 else nullcontext(ignore) as tell:
            threads = min(PLANNED_AT_ONCE, len(beside)) or 1
            for request, found in zip(beside, map_in_order(planned, beside, threads), strict=True):
                if isinstance(found, NotOpened):
                    alone.append(request)
                else:
                    note(request, found)
            for request in alone:
                note(request, planned(request))
        return [plans[request.name] for request in requests if request.name in plans]

    def _is_large(self, request: Request) -> bool:
        """Tells whether a dataset was large, so that planning it takes much memory."""
        versions = self.shared.head().datasets.get(request.name, {}).values()
        return any(version.images + version.failed > MOST_BESIDE for version in versions)

    def _plan(self, request: Request, ahead: CountingAhead) -> DatasetPlan:
        catalogue = self.catalogue
        counted_with = self.shared.network(request)
        network, found = counted_with.network, counted_with.ranges
        head = self.shared.head()
        device, micro_batch = device_kind(self.resources), self.resources.micro_batch
        spec = make_spec(request, network, found.digest, device, micro_batch)
        base = head.datasets.get(request.name, {}).get(spec.digest)
        require_own(head, request.name)
        require_same_way(catalogue, head, request, spec)
        begun = base is None or base.imported
        planned = catalogue.planned_products(request.name, spec.digest) if begun else None
        products = products_of(request, network, base, planned)
        ranges_uri = catalogue.ranges_uri(found.digest)
        recipe = Recipe(spec, network, ranges_uri, self.resources, products)
        spec_uri = catalogue.spec_uri(spec.digest)
        self.shared.require_exclusive()
        self.shared.store_once(
            ranges_uri, lambda: encode_ranges(found, network, **counted_with.provenance)
        )
        self.shared.store_once(spec_uri, lambda: canonical_json(spec.to_json()))
        plan, parts = self._plan_and_parts(request, recipe, base, head, ahead)
        manifest, changes = plan.manifest, plan.changes
        require_room_for_hashes(request.name, manifest.candidates, products)
        pair_by = manifest.pairing.by if manifest.pairing is not None else request.pair_by
        request = replace(request, by=_effective_by(request, base), pair_by=pair_by)
        uri = catalogue.uri("manifests", spec.digest, request.name, manifest.digest)
        work_uri = catalogue.work_uri(request.name, spec.digest)
        job = ShardJob(recipe, uri, work_uri, catalogue.entries_uri, dataset=request.name)
        if base is not None and _is_up_to_date(catalogue, request, base, plan, job, head):
            self._note_committed(request, base, manifest, products)
            return DatasetPlan(
                request, manifest, job, base, parts, head, up_to_date=True, changes=changes
            )
        former = _former(head, request.name)
        if former is not None:
            _require_meant(request, former, manifest)
        self._note_few_groups(request, manifest)
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
            head,
            manifest_sha256=sha256(stored),
            changes=changes,
            erasure=head.erasure,
            image_changes=plan.image_changes,
        )

    def _note_committed(
        self, request: Request, base: Version, manifest: Manifest, products: tuple[str, ...]
    ) -> None:
        """Notes a plan that is committed, if another was noted: a change list goes by the note."""
        catalogue, name, spec = self.catalogue, request.name, base.spec
        if base.manifest_file:  # an erasure has stored it there, and the note names the digest
            store_manifest(catalogue.uri("manifests", spec, name, manifest.digest), manifest)
        selection = selection_of(request)
        if not catalogue.notes_plan(name, spec, manifest.digest, products, selection):
            if request.replace and not named_alike(catalogue.manifest(name, base), request.pair_by):
                raise UsageError(
                    f"{name}: under pair_by {request.pair_by!r} all images happen to be in the "
                    "same folds, so that no new version can state their new names; build it under "
                    "another name"
                )
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

    def _note_few_groups(self, request: Request, manifest: Manifest) -> None:
        """Says that a dataset will not be tested, as its images are in few groups."""
        folds = {head.fold for head in manifest.heads}
        few = min(LEAST_FOLDS, manifest.candidates)
        if request.group_by is None or len(folds) >= few:
            return
        grouping = option("group_by", request.group_by)
        if len(folds) == 1:
            lost = "one group, so its distances will have no error bars and no tests"
        else:
            lost = (
                f"groups that fill {len(folds)} folds. Tests need {LEAST_FOLDS}, so its distances "
                "will have none"
            )
        self.progress(
            Said(
                f"{request.name}: {grouping} puts all {manifest.candidates:,} images into {lost}; "
                "if that is not meant, group by something that differs more"
            )
        )

    def _say_once(self, message: str) -> None:
        if message not in self.noted:
            self.noted.add(message)
            self.progress(Said(message))

    def _plan_and_parts(
        self,
        request: Request,
        recipe: Recipe,
        base: Version | None,
        head: Commit,
        ahead: CountingAhead,
    ) -> tuple[_FoundPlan, Mapping[str, Sequence[int]]]:
        """Returns the plan of the source, and the indices of each part's shards by its value."""
        kept = kept_plan(self.catalogue, request.name, recipe.spec.digest, base)
        former = _former(head, request.name)
        pair_by, before = paired_as(self.catalogue, request, kept, base, former)
        asked = replace(request, by=_effective_by(request, base), pair_by=pair_by)
        try:
            found = self._find_plan(asked, recipe, base, before, ahead)
            return found, _parts(asked, found.manifest, head)
        except UsageError as error:
            if not asked.by or request.by is not None:
                raise
            raise UsageError(
                f"{error} (the dataset has parts by {asked.by!r}; {option('by', '')} removes them)"
            ) from error

    def _sizes(self, request: Request, recipe: Recipe) -> NewShardSizes:
        return NewShardSizes(
            request.shard_images,
            noted_seconds(self.catalogue, recipe.spec.digest, device_kind(self.resources)),
            request.cell_images,
            expected_bytes(recipe.spec, recipe.products),
        )

    def _find_plan(
        self,
        request: Request,
        recipe: Recipe,
        base: Version | None,
        before: Manifest | None,
        ahead: CountingAhead,
    ) -> _FoundPlan:
        checkpoint, changes = self._checkpoint(request), None
        sizes = cache(partial(self._sizes, request, recipe))
        previous = None if before is None else cache(partial(without_lost, before))
        spec = recipe.spec.digest
        planning = None
        compares = before is not None and not request.pair_by and not before.labels
        if request.limit is None and (before is None or compares):
            planning = self._plan_ahead(request, recipe, base, sizes, previous, ahead)
        if request.changes is not None:
            by_tasks = planning if compares else None
            listing, changes = self._apply(request, request.changes, spec, base, by_tasks, ahead)
        else:
            listing = self.listings.get(request.name) or self._list(
                request, checkpoint, planning, ahead
            )
            if listing.planned is None:
                ahead.drop(request.name)
        same = None
        if before is not None and request.limit is None and listing.planned is None:
            same = same_plan(listing, before, request.rules.label)
        manifest = listing.planned or same
        if manifest is None:
            manifest = plan_shards(
                listing,
                previous=previous and previous(),
                limit=request.limit,
                by=request.rules.label,
                entries=Entries(self.catalogue.entries_uri),
                **vars(sizes()),
            )
        if checkpoint is not None:
            checkpoint.remove()
        self._say_merged(request.name, before, manifest)
        known, differs = listing.difference, None
        # Tasks may have compared it with a plan that was never committed, or without lost shards.
        if known is not None and base is not None and known.former == base.manifest:
            differs = known.images
        return _FoundPlan(manifest, changes, is_same=same is not None, image_changes=differs)

    def _say_merged(self, name: str, before: Manifest | None, manifest: Manifest) -> None:
        """Says how many small shards a plan puts together."""
        known = {head.content for head in before.heads} if before else set()
        merged = [head for head in manifest.heads if head.is_merged and head.content not in known]
        if merged:
            small = count_of(sum(len(head.runs or head.cells) for head in merged), "small shard")
            self.progress(
                Said(f"{name}: {small} become {len(merged)}, by adding up what is kept of them")
            )

    def _plan_ahead(
        self,
        request: Request,
        recipe: Recipe,
        base: Version | None,
        sizes: Callable[[], NewShardSizes],
        previous: Callable[[], Manifest] | None,
        ahead: CountingAhead,
    ) -> PlanAhead:
        """Returns how tasks plan a source that turns out to be very large.

        The network's backend is chosen and noted before anything is counted, so that a build that
        goes on after a crash takes the same. What was noted of an earlier plan stays, as this one
        keeps its shards. Nothing is counted ahead of another source than before, as that is refused
        once it is planned.
        """
        catalogue, name, spec = self.catalogue, request.name, recipe.spec.digest
        former = _former(self.shared.head(), name)

        @cache
        def noted() -> Backend:
            backend = self._backend(request, recipe.network, spec, base)
            digest, _ = catalogue.noted_plan(name, spec) or ("", ())
            selection, began_with = catalogue.planned_selection(name, spec) or ({}, "")
            catalogue.note_plan(
                *(name, spec, digest, recipe.products, backend, selection, began_with), ahead=True
            )
            return backend

        def planned(some: Manifest) -> None:
            if former is not None and not request.replace and _is_another(former, some):
                return
            backend = noted()
            ahead.add(name, partial(job_of, replace(recipe, backend=backend)), some)

        def job_of(its: Recipe, some: Manifest) -> ShardJob:
            uri = catalogue.uri("manifests", spec, name, some.digest)
            store_manifest(uri, some)
            work = catalogue.work_uri(name, spec)
            return ShardJob(its, uri, work, catalogue.entries_uri, dataset=name)

        return PlanAhead(sizes, Entries(catalogue.entries_uri), planned, previous)

    def _apply(
        self,
        request: Request,
        changes: str,
        spec: str,
        base: Version | None,
        ahead: PlanAhead | None,
        mapper: Mapper,
    ) -> tuple[Listing, ChangeCounts]:
        """Applies a change list to the plan before."""
        place = self.catalogue.listing_uri(digest_of("changes", request.name, spec))
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
            ahead=ahead,
            folder=f"{place}-parts/{secrets.token_hex(8)}",
        )
        self.progress(Said(f"{request.name}: of {changes}: {counts}"))
        return listing, counts

    def _checkpoint(self, request: Request) -> ListingCheckpoint | None:
        """Returns where listed pages are kept; None if a listing cannot go on from a key."""
        listed = request.name in self.listings or request.changes is not None
        if listed or not storage.store_of(request.source).lists_in_key_order:
            return None
        # Of another number are listings of versions whose parts have other columns.
        named = request.rules.canonical(request.source), asdict(request.rules)
        place = digest_of("listing 3", *named)
        uri = self.catalogue.listing_uri(place)
        may_exist = self.shared.has_parts(uri)
        return ListingCheckpoint(uri, datetime.now(UTC), relist=self.relist, may_exist=may_exist)

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


def _former(head: Commit, name: str) -> Version | None:
    """Returns the newest version of a dataset that was built here, of whatever spec."""
    versions = (each for each in head.datasets.get(name, {}).values() if not each.imported)
    return max(versions, key=lambda version: version.built, default=None)


def _is_another(former: Version, manifest: Manifest) -> bool:
    """Tells whether a manifest is of another source than a version."""
    return former.source != storage.readable(manifest.source)


def _require_meant(request: Request, base: Version, manifest: Manifest) -> None:
    """Refuses to replace a dataset by another, or by a small rest of it, unless asked to.

    A version of another spec counts, too, if there is none of this one.

    Raises:
        UsageError: The source is another than before, or has lost more than `MOST_LOST` of what
            there was.
    """
    if request.replace:
        return
    source, had = storage.readable(manifest.source), base.images + base.failed
    if _is_another(base, manifest):
        what = f"its source was {base.source}, and is {source} now"
    elif manifest.candidates < (1 - MOST_LOST) * had:
        what = f"it had {count_of(had, 'image')} of {source}, and has {manifest.candidates:,} now"
    else:
        return
    raise UsageError(
        f"{request.name}: {what}; if it is to become this, give {option('replace', True)}, or else "
        "another name or source"
    )


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
    plan: _FoundPlan,
    job: ShardJob,
    head: Commit,
) -> bool:
    """Returns whether `base` has this manifest, and all its files and its parts' files exist."""
    stated = (base.manifest, base.products, base.by)
    if stated != (plan.manifest.digest, job.recipe.products, request.by or ""):
        return False
    if not plan.is_same:
        if missing_files(catalogue, KeptVersion(request.name, base, head.number)):
            return False
    elif not all(
        storage.exists(uri)
        for kind, uri in catalogue.files(request.name, base).items()
        if kind != "manifests"  # it was read, and all its candidates
    ):
        return False
    parts = parts_of(head, request.name, base.spec)
    files = (uri for name, part in parts.items() for uri in catalogue.files(name, part).values())
    return all(map_in_order(storage.exists, files))


def unchanged_result(catalogue: Catalogue, plan: DatasetPlan) -> Result:
    """Returns the result of a request whose dataset is up to date.

    Args:
        catalogue: Where the dataset is.
        plan: Its plan.

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
        parts=parts_of(plan.head, name, base.spec),
        commit=plan.head.number,
    )
