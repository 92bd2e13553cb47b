"""Orders images by their distance to a dataset of the catalogue.

    >>> request = RankRequest("photos/", "cityscapes")
    >>> rank(Catalogue("dnas"), request, InProcess()).nearest                      # doctest: +SKIP

It runs as a build does: the source is listed and cut into shards, and each shard commits one
object, so that a rerun only does what is missing. Then all images are checked and sorted on disk,
by their scores, and by name if these are equal. So the same images give the same bytes, whatever
the shards and workers.

The score is the distance, less a share of the distance to a background: the other datasets of the
catalogue, unless some are named (see `measured_dataset`).

If the images are the dataset's own, and no lens, order or background is chosen, the farthest are
kept in the catalogue as the outliers of that version (see `pipeline.catalogue.kept_outliers`).
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from mmap import ACCESS_READ, mmap

from pipeline import storage
from pipeline.building import (
    Request,
    make_spec,
    require_apart,
    require_counted,
    require_few_failures,
    require_shared,
    run_missing,
    store_manifest,
)
from pipeline.catalogue import (
    MOST_OUTLIERS,
    Catalogue,
    Commit,
    Outliers,
    Version,
    dataset_of,
    keep_outliers,
    software,
)
from pipeline.comparing import is_nested, lens_notes
from pipeline.counting import (
    Recipe,
    ShardJob,
    ShardReceipt,
    choose_backend,
    counted_by,
    device_kind,
    numerics,
)
from pipeline.dna import UNIFORM, Lens
from pipeline.engine import Engine
from pipeline.errors import SourceError, SpecMismatch, UsageError
from pipeline.events import Listener, Said, ignore
from pipeline.explaining.measured_dataset import MeasuredDataset, background_of
from pipeline.explaining.rank_request import RankRequest
from pipeline.explaining.rank_result import Ranking
from pipeline.explaining.rank_shard import RANKS, Target
from pipeline.explaining.ranking_file import reported_images
from pipeline.explaining.ranking_order import RankingOrder, UnrankedImage
from pipeline.networks import network_of
from pipeline.options import shared_values
from pipeline.sources import Entries, Manifest, list_source, plan
from pipeline.spec import Numerics, Resources, Spec, flat_numerics
from pipeline.wording import count_of, option, some_of


def rank(
    catalogue: Catalogue,
    request: RankRequest,
    engine: Engine,
    *,
    lens: Lens | None = None,
    at: int | str | None = None,
    spec: str | None = None,
    resources: Resources | None = None,
    progress: Listener | None = None,
) -> Ranking:
    """Orders images of a source by the distance of their own DNA to that of a dataset.

    Images are read and counted as the dataset's own were, by its spec. What was computed is kept:
    the same call goes on from there. The outliers of a dataset are kept for `vdna show`.

    Args:
        catalogue: Where the dataset is.
        request: Which images, which dataset, and what is reported.
        engine: Where shards are ranked.
        lens: Weighs the neurons. Layers without weight cost nothing.
        at: The commit or time to look at; None for the newest.
        spec: Digest of the dataset's spec; None for the default.
        resources: How much workers may use; None for the defaults.
        progress: Is told of each shard.

    Returns:
        The numbers of images, those at either end, and notes.

    Raises:
        NotFound: If the catalogue does not have the dataset.
        SourceError: If the source cannot be listed, or has changed.
        SpecMismatch: If the dataset was counted in a way that cannot be repeated here; the message
            names the fields.
        GateError: If too many images cannot be read.
        TransientError: If some could not be read for now.
        VdnaError: If some shards could not be counted, and a rerun would not help.
        UsageError: If an argument is wrong.
        CorruptFile: If a file of the catalogue is damaged.
    """
    resources = resources or Resources()
    progress = progress or ignore
    top = request.top
    output = None if request.out is None else storage.canonical(request.out)
    resources.require_engine(engine.in_process)
    is_kept = _is_plain(request, lens)
    erasure = catalogue.head().erasure if is_kept else 0
    dataset = MeasuredDataset.find(catalogue, request.to, at, spec)
    name = dataset.name
    source = request.source or dataset.listed_source
    if not engine.in_process:
        require_shared(catalogue.root, source)
    if request.source is not None:
        require_apart(catalogue.root, source, request.rules)
    chosen = tuple(dict.fromkeys(request.layers))
    _require_weight(dataset.spec, lens, chosen)
    shared = shared_values(request, Request) | {"source": source}
    build = Request(dataset_of(name), **dataset.settings, **shared)
    background = []
    if request.order == "score":
        background = background_of(catalogue, dataset, request.against, at)
    measured = dataset, background
    target, recipe = _recipe(catalogue, measured, build, lens, chosen, resources, progress)
    if request.source is None:
        manifest = catalogue.manifest(dataset.stored.name, dataset.version)
    else:
        try:
            manifest = _planned(catalogue, build, engine, progress)
        except SourceError as error:
            told = _dataset_of_name(catalogue, source)
            if not told:
                raise
            raise SourceError(f"{error}. {told}") from error
    job = _job(catalogue, recipe, manifest, name)
    if request.source is None:
        (ran,) = run_missing([(job, manifest)], engine, progress, final=_changed_error)
        _require_unchanged(name, source, ran.errors)
    else:
        (ran,) = run_missing([(job, manifest)], engine, progress)
    require_counted(f"{source} to {name}", len(manifest.heads), ran.errors, ran.untried)
    with RankingOrder(manifest, job, chosen) as order:
        order.load()
        ranked, failed, undefined = order.totals()
        unranked = order.unranked()
        _gate(request, source, (ranked, failed, manifest.candidates), unranked)
        readable = storage.readable(manifest.source)
        ranking = Ranking(
            name=name,
            version=dataset.version,
            source=readable,
            commit=dataset.commit.number,
            lens=lens.name if lens else UNIFORM,
            layers=chosen,
            background={other.name: other.version.dna for other in background},
            ranked=ranked,
            failed=failed,
            undefined=undefined,
            nearest=order.nearest(top),
            farthest=order.farthest(top),
            unranked=unranked,
            counted_shards=ran.shards,
            ignored=dict(manifest.ignored),
            duplicates=manifest.duplicates,
            notes=(
                *_numerics_notes(name, dataset.version, target.numerics),
                *_lens_notes(lens, dataset.commit, readable),
                *(lens_notes(lens, {name: dataset.version}) if lens else ()),
            ),
        )
        if output is not None:
            _write(order, ranking, lens, target.numerics, output)
        if is_kept:
            _keep(catalogue, order, ranking, erasure)
    return ranking


def _is_plain(request: RankRequest, lens: Lens | None) -> bool:
    """Tells whether a dataset's own images are ordered as they are if no option says how."""
    is_own = request.source is None and lens is None
    return is_own and request.order == "score" and not request.against


def _keep(catalogue: Catalogue, order: RankingOrder, ranking: Ranking, erasure: int) -> None:
    """Keeps the farthest images beside the version, whatever number of them is reported."""
    found = Outliers(
        spec=ranking.version.spec,
        dna=ranking.version.dna,
        ranked=ranking.ranked,
        failed=ranking.failed,
        undefined=ranking.undefined,
        median=order.median(),
        background=dict(ranking.background),
        images=order.outliers(MOST_OUTLIERS),
    )
    keep_outliers(catalogue, found, erasure)


def _recipe(
    catalogue: Catalogue,
    measured: tuple[MeasuredDataset, Sequence[MeasuredDataset]],
    request: Request,
    lens: Lens | None,
    layers: tuple[str, ...],
    resources: Resources,
    progress: Listener,
) -> tuple[Target, Recipe]:
    """Checks that images can be counted as the dataset's were, and says what workers need for it.

    Args:
        catalogue: Where the datasets are.
        measured: The dataset that images are ranked by, and those of the background.
        request: The settings that images are counted by.
        lens: Weighs the neurons.
        layers: Layers with a distance of their own.
        resources: How much workers may use.
        progress: Is told what runs the network.

    Returns:
        The target and the recipe.

    Raises:
        CorruptFile: If the catalogue's ranges are damaged.
    """
    dataset, background = measured
    _require_known(catalogue, dataset.version, dataset.spec, dataset.name)
    spec, device = dataset.spec, device_kind(resources)
    network = network_of(spec, request.weights)
    micro_batch, stated = resources.micro_batch, spec.bf16_numerics
    if micro_batch is None and stated is not None:
        micro_batch = stated.micro_batch
    repeated = make_spec(request, network, spec.ranges_digest, device, micro_batch)
    spec.require_same(repeated, dataset.name, "an image that is counted here")
    runner = choose_backend(
        resources.backend,
        network,
        spec.precision,
        device,
        counted_by(dataset.version.numerics),
        lambda message: progress(Said(message)),
        micro_batch,
    )
    if runner.note:
        progress(Said(runner.note))
    storage.require_exclusive(catalogue.root)
    target = Target(
        root=catalogue.root,
        dataset=dataset.stored,
        background=tuple(other.stored for other in background),
        numerics=numerics(
            network, device, runner.backend, micro_batch=micro_batch, precision=spec.precision
        ),
        layers=layers,
        lens=lens.encode() if lens else b"",
    )
    ranges_uri = catalogue.ranges_uri(spec.ranges_digest)
    ranges = catalogue.ranges(spec.ranges_digest)
    target.histograms(spec, ranges)  # raises here once, instead of in every worker
    products = (RANKS, target.digest(spec))
    return target, Recipe(
        spec, network, ranges_uri, resources, products, target, backend=runner.backend
    )


def _changed_error(receipt: ShardReceipt) -> str:
    """Returns the error of a shard if its images are not as they were listed; else nothing."""
    return receipt.error.removeprefix(f"{receipt.kind}: ") if receipt.changed else ""


def _require_unchanged(name: str, source: str, failed: Sequence[ShardReceipt]) -> None:
    """Checks that the images of a version are as they were when it was built.

    Raises:
        SourceError: If some have changed or are gone.
    """
    changed = list(filter(None, map(_changed_error, failed)))
    if changed:
        raise SourceError(
            f"not all images of {name} are as they were when it was built: {some_of(changed)}. "
            f"Build {dataset_of(name)} again first, or rank what is there now: vdna rank "
            f"{shlex.quote(source)} {option('to', name)}"
        )


def _job(catalogue: Catalogue, recipe: Recipe, manifest: Manifest, name: str) -> ShardJob:
    """Returns the job, and stores its manifest where workers read it."""
    work = catalogue.ranks_uri(recipe.products[-1])
    uri = storage.join(work, "manifests", f"{manifest.digest}.parquet")
    store_manifest(uri, manifest)
    return ShardJob(recipe, uri, work, catalogue.entries_uri, dataset=name)


def _write(
    order: RankingOrder, ranking: Ranking, lens: Lens | None, here: Numerics, uri: str
) -> None:
    """Writes the whole ranking to a file, which appears whole or not at all."""
    stated = {
        "source": ranking.source,
        "dataset": ranking.name,
        "dna": ranking.version.dna,
        "spec_digest": ranking.version.spec,
        "lens": ranking.lens,
        "lens_digest": lens.digest if lens else "",
        "layers": ranking.layers,
        "background": dict(ranking.background),
        "ranked": ranking.ranked,
        "failed": ranking.failed,
        "undefined": ranking.undefined,
        "numerics": here.to_json(),
        "software": software(),
        **reported_images(ranking),
    }
    with tempfile.TemporaryFile() as file:
        order.write(file, stated)
        storage.replace(uri, mmap(file.fileno(), 0, access=ACCESS_READ))


def _require_weight(spec: Spec, lens: Lens | None, layers: Sequence[str]) -> None:
    """Checks that the spec has these layers, and that the lens gives them weight.

    Raises:
        UsageError: If a layer has no weight in sum.
    """
    for layer in layers:
        spec.tap(layer)
    if lens is None:
        return
    lens.require_fit(spec)
    for layer in layers:
        if not lens.has_positive_weight(layer):
            raise UsageError(
                f"lens {lens.name} gives the neurons of {layer} no weight in sum, so that "
                "there are no distances in it; leave that layer out"
            )


def _require_known(catalogue: Catalogue, version: Version, spec: Spec, name: str) -> None:
    """Checks that the catalogue says how images are to be counted.

    Raises:
        SpecMismatch: If it does not.
    """
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
    """Says under which other numerics the dataset was counted.

    Yields:
        A sentence for each.
    """
    now = flat_numerics(here.to_json())
    for entry in version.numerics:
        then = flat_numerics(entry["numerics"])
        both = [name for name in now if name in then]
        differing = [f"{k} {then[k]}, {now[k]} here" for k in both if then[k] != now[k]]
        if differing:
            yield f"numerics differ: {name} was counted under {'; '.join(differing)}"


def _lens_notes(lens: Lens | None, commit: Commit, source: str) -> Iterator[str]:
    """Says if images may be among those that the lens was fitted on.

    Yields:
        A sentence.
    """
    fitted_on = lens.fitted_on if lens else {}
    shared = [
        name
        for name, dna in fitted_on.items()
        for version in commit.datasets.get(dataset_of(name), {}).values()
        if version.dna == dna and not version.imported and is_nested(version.source, source)
    ]
    if lens and shared:
        yield (
            f"lens {lens.name} was fitted on {some_of(shared)}, of the same source: it does better "
            f"on those images than on others (vdna lens show {lens.name} has its scores held out)"
        )


def _planned(
    catalogue: Catalogue, request: Request, engine: Engine, progress: Listener
) -> Manifest:
    """Returns the manifest of the source, listed and cut into shards."""
    request.rules.canonical(request.source)  # refuses what must not be shown
    progress(Said(f"listing {request.source}"))
    listing = list_source(
        request.source,
        request.rules,
        mapper=engine,
        cache=catalogue.archives_uri,
        outside=catalogue.root,
        progress=progress,
    )
    return plan(
        listing,
        shard_images=request.shard_images,
        limit=request.limit,
        entries=Entries(catalogue.entries_uri),
    )


def _dataset_of_name(catalogue: Catalogue, source: str) -> str:
    """Says where the images of a dataset are, if a source that cannot be listed has its name."""
    versions = catalogue.head().datasets.get(source, {}).values()
    places = sorted({version.source for version in versions if not version.imported})
    if not places:
        return ""
    return (
        f"{source} is also a dataset of the catalogue; if its images are meant, give their "
        f"place: {some_of(places)}"
    )


def _gate(
    request: RankRequest,
    source: str,
    totals: tuple[int, int, int],
    unranked: Sequence[UnrankedImage],
) -> None:
    """Checks that enough images could be read.

    Args:
        request: What was asked for.
        source: What messages call the images.
        totals: How many images are ranked, failed, and were listed.
        unranked: The first images without a distance.

    Raises:
        SourceError: If no image has a distance.
        GateError: If more failed than are allowed.
    """
    ranked, failed, candidates = totals
    some = "\n  ".join(str(of) for of in unranked[:5])
    if not ranked:
        raise SourceError(
            f"{source}: none of {count_of(candidates, 'candidate')} is an image with a "
            f"distance to {request.to}. First:\n  {some}"
        )
    rerun = "rank them" if request.source is None else "rerun"  # `vdna show` may have asked
    require_few_failures(source, failed, candidates, request.max_failures, unranked, rerun=rerun)
