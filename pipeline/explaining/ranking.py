"""Images in order of their distance to a dataset of the catalogue.

    >>> rank(Catalogue("dnas"), "photos/", "cityscapes", InProcess()).nearest      # doctest: +SKIP

As a build: listing, shards, one committed object a shard, so that a rerun does what is missing.
Then all of them are checked and sorted, out of core, by distance, and by name where that is equal;
so the same images give the same bytes, whatever the shards and workers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from typing import Any

from pipeline import storage
from pipeline.building import (
    DEFAULT_MAX_FAILURES,
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
from pipeline.comparing import is_nested, lens_notes, some_of
from pipeline.counting import Recipe, ShardJob, device_kind, numerics
from pipeline.dna import UNIFORM, Lens
from pipeline.engine import Engine
from pipeline.errors import CorruptFile, GateError, NotFound, SourceError, SpecMismatch, UsageError
from pipeline.events import Listener, Said, ignore
from pipeline.explaining.rank_shard import RANKS, Target, counts_of
from pipeline.explaining.ranking_order import RankedImage, RankingOrder, UnrankedImage
from pipeline.networks import decode as decode_ranges
from pipeline.networks import network_of
from pipeline.sources import Manifest, list_source, plan
from pipeline.spec import Numerics, Resources, Spec

FORMAT = 1

TOP = 10
"""Images at either end that are told."""


@dataclass(frozen=True)
class Ranking:
    """What became of a source: every candidate is `ranked`, `failed` or `undefined`.

    `nearest`, `farthest`: the images at either end, that end first. `unranked`: the first few of
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
    nearest: tuple[RankedImage, ...]
    farthest: tuple[RankedImage, ...]
    unranked: tuple[UnrankedImage, ...]
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
    progress: Listener | None = None,
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
    progress = progress or ignore
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
    with RankingOrder(manifest, job, chosen) as all_of_them:
        all_of_them.load()
        ranked, failed, undefined = all_of_them.totals()
        unranked = all_of_them.unranked()
        _gate(request, ranked, failed, manifest.candidates, unranked)
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
            unranked,
            ran.shards,
            dict(manifest.ignored),
            manifest.duplicates,
            (
                *_numerics_notes(name, version, here),
                *_lens_notes(lens, commit, storage.readable(manifest.source)),
                *(lens_notes(lens, {name: version}) if lens else ()),
            ),
        )


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
    catalogue: Catalogue, request: Request, engine: Engine, progress: Listener
) -> Manifest:
    storage.canonical(request.source)  # refuses what must not be shown
    progress(Said(f"listing {request.source}"))
    listing = list_source(
        request.source,
        request.rules,
        mapper=engine,
        cache=catalogue.archives_uri,
        progress=progress,
    )
    return plan(listing, shard_images=request.shard_images, limit=request.limit)


def _gate(
    request: Request, ranked: int, failed: int, candidates: int, unranked: Sequence[UnrankedImage]
) -> None:
    some = "\n  ".join(str(of) for of in unranked[:5])
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
