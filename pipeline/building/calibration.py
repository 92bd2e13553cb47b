"""Measures the ranges of a network's neurons over images.

    >>> request = CalibrationRequest(["photos/"], "ranges.parquet")
    >>> calibrate(request, InProcess()).images                                    # doctest: +SKIP

Nothing is counted here. A build records the least and greatest activation of every neuron beside
its histograms, exactly once, over any number of workers, and it resumes. So a calibration is a
build into a scratch catalogue beside the output, which is removed when the output is written.

A call with other options can safely use what an earlier call left there. A partial is named after
its spec (and so weights, resize and ranges) and its images, and a sum takes only the shards of the
plan at hand.

Quantiles are found by counting again in narrower ranges. Between low and high lie all activations
but a share `quantile` at either end. The first pass counts between the least and the greatest
activation; each further pass counts between the bins in which the two quantiles were found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import storage
from pipeline.building.datasets import build_datasets
from pipeline.building.failure_gate import require_few_failures
from pipeline.building.quantile_search import MAX_CELLS, SEARCH_BINS, Quantiles, extremes, quantiles
from pipeline.building.request import CalibrationRequest, Request, require_shared
from pipeline.catalogue import Catalogue, software
from pipeline.dna import DNA, Failure, Ranges
from pipeline.engine import Engine
from pipeline.errors import ConservationError, UsageError
from pipeline.events import Listener, Said, ignore
from pipeline.networks import WIDENING, Network, describe, encode_ranges, widen_ranges
from pipeline.notebook import Cells, data_frame, html_table, polars_frame
from pipeline.options import shared_values
from pipeline.sources import Listing, Rules, list_source
from pipeline.spec import Resources
from pipeline.wording import count_of, option

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

SCRATCH_NAME = "calibration"
"""Name of the dataset in the scratch catalogue."""

SCRATCH_FOLDER = "vdna-calibrate"
"""Folder of the scratch catalogue in `<out>.work`, where nothing else is touched."""


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        ranges: The widened ranges, as they were written.
        images: How many images were measured.
        failures: The images that could not be read.
        ignored: How many files of other kinds were left out, by their extension.
        duplicates: How many images were listed more than once.
        nonfinite: How many activations were left out because they were not finite.
        quantile: The share that was left out at either end, or None.
        found: How closely the quantiles are known, or None if none were asked for.
    """

    ranges: Ranges
    images: int
    failures: tuple[Failure, ...]
    ignored: dict[str, int]
    duplicates: int
    nonfinite: int
    quantile: float | None = None
    found: Quantiles | None = None

    def __repr__(self) -> str:
        failed = f", {len(self.failures):,} could not be read" if self.failures else ""
        neurons, layers = len(self.ranges.low), len(self.ranges.taps)
        return (
            f"<Calibration of {count_of(neurons, 'neuron')} in {count_of(layers, 'layer')} on "
            f"{count_of(self.images, 'image')}{failed}>"
        )

    def _repr_html_(self) -> str:
        rows, start = [], 0
        for layer, neurons in self.ranges.taps:
            here = slice(start, start + neurons)
            low, high = self.ranges.low[here].min(), self.ranges.high[here].max()
            rows.append((layer, f"{neurons:,}", f"{low:.4g}", f"{high:.4g}"))
            start += neurons
        return html_table(repr(self).strip("<>"), ("layer", "neurons", "lowest", "highest"), rows)

    def to_pandas(self) -> pd.DataFrame:
        """Returns a row for each neuron: layer, neuron, low, high."""
        return data_frame(*self._cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self._cells)

    @property
    def _cells(self) -> Cells:
        names = [(layer, at) for layer, neurons in self.ranges.taps for at in range(neurons)]
        ends = zip(self.ranges.low.tolist(), self.ranges.high.tolist(), strict=True)
        rows = [(*name, *end) for name, end in zip(names, ends, strict=True)]
        return ("layer", "neuron", "low", "high"), rows


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
    same = shared_values(request, Request)
    # An earlier call may have left counts of other sources there.
    build = Request(
        SCRATCH_NAME,
        "",
        bins=2,
        exemplars=0,
        image_hashes=False,
        replace=True,
        spec="new",
        **same,
    )
    if not engine.in_process:
        require_shared(target, *request.sources)
    for source in request.sources:
        _require_outside(work, source, request.rules)
    network = describe(request.extractor, request.weights, request.taps)
    place = Catalogue(storage.join(work, SCRATCH_FOLDER))
    listings = []
    for source in request.sources:
        progress(Said(f"listing {source}"))
        listings.append(
            list_source(
                source,
                request.rules,
                mapper=engine,
                cache=place.archives_uri,
                outside=work,
                progress=progress,
            )
        )
    listing = Listing.joined(listings)
    failures: tuple[Failure, ...] = ()
    duplicates = 0

    def count(ranges: Ranges, bins: int) -> DNA:
        nonlocal failures, duplicates
        # What is there may be for other weights, or by a writer that died.
        storage.replace(place.ranges_uri(ranges.digest), encode_ranges(ranges, network))
        asked = replace(build, bins=bins, ranges=ranges.digest)
        listings = {SCRATCH_NAME: listing}
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
        return place.load_version(SCRATCH_NAME, result.version)

    progress(Said("pass 1: each neuron's least and greatest activation"))
    first = count(_points(network), 2)
    for failure in failures[:10]:
        progress(Said(f"not measured: {failure}"))
    measured = extremes(first)
    found: Quantiles | None = None
    quantile = request.quantile
    if quantile is not None:

        def count_again(ranges: Ranges, bins: int) -> DNA:
            progress(Said(f"next pass: the quantiles {quantile:g} and {1 - quantile:g}"))
            dna = count(ranges, bins)
            _require_same(first, dna, work)
            return dna

        finite = first.images * first.positions - first.nonfinite
        found = quantiles(measured, finite, quantile, count_again, _bins(len(measured.low)))
        measured = found.ranges
    wide = widen_ranges(measured)
    nonfinite = int(first.nonfinite.sum())
    data = encode_ranges(
        wide,
        network,
        images=first.images,
        failed=first.failed,
        nonfinite=nonfinite,
        sources=sorted(
            {storage.readable(request.rules.canonical(source)) for source in request.sources}
        ),
        include=request.include,
        exclude=request.exclude,
        limit=request.limit,
        preprocess=first.spec.preprocess.to_json(),
        widened=WIDENING,
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


def _require_file(out: str, target: str) -> None:
    is_folder = storage.store_of(target).is_local and Path(storage.local_path(target)).is_dir()
    if not out or is_folder:
        raise UsageError(f"out is {out!r}, a folder; give the name of a file")


def _require_outside(work: str, source: str, rules: Rules) -> None:
    """Raises `UsageError` if the work folder would be listed with the source."""
    uri = rules.canonical(source)
    matched = fnmatchcase(storage.readable(f"{work}/{SCRATCH_FOLDER}"), storage.readable(uri))
    if matched or storage.lies_in(work, uri):
        raise UsageError(
            f"the folder for unfinished work, {storage.readable(work)}, would be inside the source "
            f"{source} and be listed with it; give another {option('out')}"
        )


def _require_same(first: DNA, other: DNA, work: str) -> None:
    if (other.images, other.failed) != (first.images, first.failed):
        raise ConservationError(
            f"one pass counted {first.images} images and {first.failed} failures, another "
            f"{other.images} and {other.failed}: some images fail now and then. Exclude them, or "
            f"delete {storage.readable(work)} and run the same command again"
        )


def _points(network: Network) -> Ranges:
    """Returns ranges of no width, for a build whose counts are not used."""
    taps = tuple((tap.name, tap.neurons) for tap in network.taps)
    zeros = np.zeros(sum(neurons for _, neurons in taps))
    return Ranges(taps, zeros, zeros)


def _bins(neurons: int) -> int:
    """Returns as many bins as the memory of one thread's table allows."""
    return max(256, min(SEARCH_BINS, MAX_CELLS // neurons))
