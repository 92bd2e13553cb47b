"""Images -> ranges: a build whose DNA holds every neuron's extremes, or several for its quantiles.

    >>> request = CalibrationRequest(["photos/"], "ranges.parquet")
    >>> calibrate(request, InProcess()).images                                    # doctest: +SKIP

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

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from pipeline import storage
from pipeline.building.datasets import build_datasets
from pipeline.building.failure_gate import require_few_failures
from pipeline.building.quantile_search import MAX_BINS, MAX_CELLS, Quantiles, extremes, quantiles
from pipeline.building.request import CalibrationRequest, Request, require_shared
from pipeline.catalogue import Catalogue, software
from pipeline.dna import DNA, Failure, Ranges
from pipeline.engine import Engine
from pipeline.errors import ConservationError, UsageError
from pipeline.events import Listener, Said, ignore
from pipeline.networks import Network, describe
from pipeline.networks import ranges_file as files
from pipeline.options import shared_values
from pipeline.sources import Listing, list_source
from pipeline.spec import Resources

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
    request: CalibrationRequest,
    engine: Engine,
    resources: Resources | None = None,
    progress: Listener | None = None,
) -> Calibration:
    """Measures the ranges of a network's neurons, widens them about the centre, and writes a file.

    The same call again, after whatever ended it, does only what is missing; the same images give
    the same bytes.

    Args:
        request: Which images, which network, and where the file goes.
        engine: Where the work runs.
        resources: How fast it runs.
        progress: Is told what happens.

    Returns:
        What was measured.

    Raises:
        UsageError: A neuron had no finite activation, or `out` is no place for the file.
        GateError: Too many images could not be read.
        VdnaError: Whatever `build_datasets` raises.
    """
    progress = progress or ignore
    target = storage.canonical(request.out)
    work = f"{target}.work"
    _require_file(request.out, target)
    build = Request(NAME, "", bins=2, exemplars=0, **shared_values(request, Request))
    if not engine.in_process:
        require_shared(target, *request.sources)
    for source in request.sources:
        _require_outside(work, source)
    network = describe(request.extractor, request.weights, request.taps)
    place = Catalogue(storage.join(work, FOLDER))
    listings = []
    for source in request.sources:
        progress(Said(f"listing {source}"))
        listings.append(
            list_source(
                source,
                request.rules,
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
        asked = replace(build, bins=bins, ranges=ranges.digest)
        listings = {NAME: listing}
        (result,) = build_datasets(place, [asked], engine, resources, progress, listings=listings)
        failures, duplicates = result.failures, result.duplicates
        # The pass may have been finished by an earlier call, under the limit of that call.
        require_few_failures(
            "calibration",
            len(failures),
            result.version.images + len(failures),
            request.max_failures,
            failures,
        )
        return place.load_version(NAME, result.version)

    progress(Said("pass 1: each neuron's least and greatest activation"))
    first = count(_points(network), 2)
    for failure in failures[:10]:
        progress(Said(f"not measured: {failure}"))
    measured = extremes(first)
    found: Quantiles | None = None
    quantile = request.quantile
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
        sources=sorted({storage.readable(storage.canonical(source)) for source in request.sources}),
        include=request.include,
        exclude=request.exclude,
        limit=request.limit,
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


def _require_file(out: str, target: str) -> None:
    is_folder = storage.store_of(target).is_local and Path(storage.local_path(target)).is_dir()
    if not out or is_folder:
        raise UsageError(f"out is {out!r}, a folder; give the name of a file")


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
