"""Images -> ranges: a build whose DNA holds every neuron's extremes, or several for its quantiles.

    >>> calibrate(["photos/"], "ranges.parquet", InProcess()).images              # doctest: +SKIP

There is no counting here. A build records the least and greatest activation of every neuron beside
its histograms, exactly once, over any number of workers, and resumes; so a calibration is a build
into a scratch catalogue beside the output, removed when the output is written. Nothing in it can be
mistaken: a partial is named by what was counted (spec, and so weights, resize and ranges) and of
which images, and a sum takes the shards of the plan at hand and no others. Other arguments hence
make use of what they share with an earlier call, and of nothing else.

Quantiles are found by counting again in narrower ranges. Between low and high lie all but a share
`q` of the activations at either end; the first range is from the least to the greatest, and each
next one from below the one quantile's bin to above the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.building.committer import allowed_failures
from pipeline.building.datasets import build_datasets
from pipeline.building.quantile_search import MAX_BINS, MAX_CELLS, Quantiles, extremes, quantiles
from pipeline.building.request import DEFAULT_MAX_FAILURES, Request, require_shared
from pipeline.catalogue import Catalogue, software
from pipeline.dna import DNA, Failure, Ranges
from pipeline.engine import Engine
from pipeline.errors import ConservationError, GateError, UsageError
from pipeline.events import Listener, Said, ignore
from pipeline.networks import Network, describe
from pipeline.networks import ranges_file as files
from pipeline.sources import Listing, Rules, list_source
from pipeline.spec import Crop, Exif, Resize, Resources

NAME = "calibration"
"""Of the dataset in the scratch catalogue."""

FOLDER = "vdna-calibrate"
"""Of the scratch catalogue; whatever else stands in `<out>.work` is left alone."""


@dataclass(frozen=True)
class Calibration:
    """What was measured. `ranges` are widened. `nonfinite`: activations that were left out.

    `found`: how closely the quantiles are known, where they were asked for.
    """

    ranges: Ranges
    images: int
    failures: tuple[Failure, ...]
    ignored: dict[str, int]
    duplicates: int
    nonfinite: int
    quantile: float | None = None
    found: Quantiles | None = None


def calibrate(
    sources: Sequence[str],
    out: str,
    engine: Engine,
    *,
    extractor: str = "efficientnet_lite0",
    weights: str | None = None,
    quantile: float | None = None,
    resize: Resize = "clean",
    exif: Exif = "apply",
    crop: Crop = "none",
    taps: str | None = None,
    decoder: str | None = None,
    limit: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    image_column: str | None = None,
    max_failures: float = DEFAULT_MAX_FAILURES,
    shard_images: int | None = None,
    resources: Resources | None = None,
    progress: Listener | None = None,
) -> Calibration:
    """Measure over all images of the sources, widen about the centre, write the file `out`.

    An image that several sources list counts once. `limit`: so many of all images together, the
    same ones on every run. The other arguments are those of `Request`. The same call again, after
    whatever ended it, does what is missing; the same sources give the same bytes.

    Raises `UsageError` where a neuron had no finite activation, `GateError` where too many images
    could not be read, and whatever `build_datasets` raises.
    """
    progress = progress or ignore
    target = storage.canonical(out)
    work = f"{target}.work"
    _require_sound(sources, out, quantile)
    request = Request(
        NAME,
        "",
        extractor=extractor,
        weights=weights,
        bins=2,
        resize=resize,
        exif=exif,
        crop=crop,
        taps=taps,
        decoder=decoder,
        limit=limit,
        max_failures=max_failures,
        shard_images=shard_images,
        exemplars=0,
    )
    if not engine.in_process:
        require_shared(target, *sources)
    for source in sources:
        _require_outside(work, source)
    network = describe(extractor, weights, taps)
    place = Catalogue(storage.join(work, FOLDER))
    listings = []
    for source in sources:
        progress(Said(f"listing {source}"))
        listings.append(
            list_source(
                source,
                Rules(include, exclude, image_column=image_column),
                mapper=engine,
                cache=place.archives_uri,
                progress=progress,
            )
        )
    listing = Listing.joined(listings)
    failures: tuple[Failure, ...] = ()
    duplicates = 0

    def count(ranges: Ranges, bins: int) -> DNA:
        nonlocal failures, duplicates
        # Whatever stands there is of other weights, or of a writer that died.
        storage.replace(place.ranges_uri(ranges.digest), files.encode(ranges, network))
        asked = replace(request, bins=bins, ranges=ranges.digest)
        listings = {NAME: listing}
        (result,) = build_datasets(place, [asked], engine, resources, progress, listings=listings)
        failures, duplicates = result.failures, result.duplicates
        _require_readable(failures, result.version.images + len(failures), max_failures)
        return place.load_version(NAME, result.version)

    progress(Said("pass 1: each neuron's least and greatest activation"))
    first = count(_points(network), 2)
    for failure in failures[:10]:
        progress(Said(f"not measured: {failure}"))
    measured = extremes(first)
    found: Quantiles | None = None
    if quantile is not None:

        def again(ranges: Ranges, bins: int) -> DNA:
            progress(Said(f"a further pass: the quantiles {quantile:g} and {1 - quantile:g}"))
            dna = count(ranges, bins)
            _require_same(first, dna, work)
            return dna

        finite = first.images * first.positions - first.nonfinite
        found = quantiles(measured, finite, quantile, again, _bins(len(measured.low)))
        measured = found.ranges
    wide = files.widen(measured)
    nonfinite = int(first.nonfinite.sum())
    data = files.encode(
        wide,
        network,
        images=first.images,
        failed=first.failed,
        nonfinite=nonfinite,
        sources=sorted({storage.readable(storage.canonical(source)) for source in sources}),
        include=include,
        exclude=exclude,
        limit=limit,
        preprocess=first.spec.preprocess.to_json(),
        widened=files.WIDEN,
        widened_about="centre",
        quantile=quantile,
        **(found.stated if found else {}),
        numerics=[
            {"numerics": numerics.to_json(), "images": images}
            for numerics, images in first.numerics
        ],
        software=software(),
    )
    storage.replace(target, data)
    storage.delete_tree(place.root)
    return Calibration(
        wide,
        first.images,
        failures,
        dict(listing.ignored),
        duplicates,
        nonfinite,
        quantile,
        found,
    )


# What may be asked for.


def _require_sound(sources: Sequence[str], out: str, quantile: float | None) -> None:
    if not sources:
        raise UsageError("ranges need at least one source of images")
    target = storage.canonical(out)
    is_folder = storage.store_of(target).is_local and Path(storage.local_path(target)).is_dir()
    if not out or is_folder:
        raise UsageError(f"out is {out!r}, a folder; give the name of a file")
    if quantile is not None and not 0 < quantile < 0.5:
        raise UsageError(f"quantile is {quantile}; it must be above 0 and below 0.5 (as 0.001)")


def _require_outside(work: str, source: str) -> None:
    """What is written during the work would be listed as images of the source."""
    uri = storage.canonical(source)
    inside = any(_below(real(work), real(uri)) for real in (str, _real)) or fnmatchcase(
        storage.readable(f"{work}/{FOLDER}"), storage.readable(uri)
    )
    if inside:
        raise UsageError(
            f"the work in progress, {storage.readable(work)}, would lie inside the source "
            f"{source}, and be listed with it; give another --out"
        )


def _below(place: str, folder: str) -> bool:
    return f"{place}/".startswith(f"{folder.rstrip('/')}/")


def _real(uri: str) -> str:
    """A local place without symbolic links."""
    local = storage.store_of(uri).is_local
    return Path(storage.local_path(uri)).resolve().as_uri() if local else uri


def _require_readable(failures: Sequence[Failure], candidates: int, limit: float) -> None:
    """A pass that an earlier call finished was let through by the limit of that call."""
    if len(failures) > allowed_failures(limit, candidates):
        raise GateError(
            f"{len(failures)} of {candidates} images could not be read; the limit is {limit:g}. "
            f"Mend them, or rerun with a higher --max-failures. First: {failures[0]}"
        )


def _require_same(first: DNA, other: DNA, work: str) -> None:
    if (other.images, other.failed) != (first.images, first.failed):
        raise ConservationError(
            f"one pass counted {first.images} images and {first.failed} failures, another "
            f"{other.images} and {other.failed}: some images fail now and then. Leave them out, or "
            f"delete {storage.readable(work)} and run the same command again"
        )


# What is counted, and of which images.


def _points(network: Network) -> Ranges:
    """Some ranges to build under, where the counts are not looked at."""
    taps = tuple((tap.name, tap.neurons) for tap in network.taps)
    zeros = np.zeros(sum(neurons for _, neurons in taps))
    return Ranges(taps, zeros, zeros)


def _bins(neurons: int) -> int:
    return max(256, min(MAX_BINS, MAX_CELLS // neurons))
