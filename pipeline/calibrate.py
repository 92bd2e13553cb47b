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

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np

from pipeline import ranges as files
from pipeline import storage
from pipeline.build import (
    DEFAULT_MAX_FAILURES,
    Engine,
    Request,
    allowed_failures,
    build_datasets,
    require_shared,
)
from pipeline.catalogue import Catalogue, software
from pipeline.dna import DNA, Floats, Ints, Ranges, neuron_name
from pipeline.errors import ConservationError, GateError, UsageError
from pipeline.listing import Listing
from pipeline.networks import Network, describe
from pipeline.partial import Failure
from pipeline.progress import Progress, Silent
from pipeline.source import Rules, list_source
from pipeline.spec import Crop, Exif, Resize, Resources

NAME = "calibration"
"""Of the dataset in the scratch catalogue."""
FOLDER = "vdna-calibrate"
"""Of the scratch catalogue; whatever else stands in `<out>.work` is left alone."""
MAX_BINS = 4096
MAX_CELLS = 2**25
"""Of one thread's table: 256 MiB. Larger networks are counted in fewer bins."""
PASSES = 4
RESOLUTION = 0.01
"""Of a quantile, in widths of the range between the two."""

Count = Callable[[Ranges, int], DNA]
"""Counts the same activations in these ranges and so many bins."""


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
    limit: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    image_column: str | None = None,
    max_failures: float = DEFAULT_MAX_FAILURES,
    shard_images: int | None = None,
    resources: Resources | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Measure over all images of the sources, widen about the centre, write the file `out`.

    An image that several sources list counts once. `limit`: so many of all images together, the
    same ones on every run. The other arguments are those of `Request`. The same call again, after
    whatever ended it, does what is missing; the same sources give the same bytes.

    Raises `UsageError` where a neuron had no finite activation, `GateError` where too many images
    could not be read, and whatever `build_datasets` raises.
    """
    progress = progress or Silent()
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
        progress.say(f"listing {source}")
        listings.append(
            list_source(
                source,
                Rules(include, exclude, image_column=image_column),
                spread=None if engine.in_process else engine.map,
                cache=place.archives_uri,
                progress=progress,
            )
        )
    listing = Listing.all(listings)
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

    progress.say("pass 1: each neuron's least and greatest activation")
    first = count(_points(network), 2)
    for failure in failures[:10]:
        progress.say(f"not measured: {failure}")
    measured = extremes(first)
    found: Quantiles | None = None
    if quantile is not None:

        def again(ranges: Ranges, bins: int) -> DNA:
            progress.say(f"a further pass: the quantiles {quantile:g} and {1 - quantile:g}")
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
        preprocess=asdict(first.spec.preprocess),
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
    is_folder = storage.protocol_of(target) == "file" and Path(storage.local_path(target)).is_dir()
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
    local = storage.protocol_of(uri) == "file"
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


def extremes(dna: DNA) -> Ranges:
    """The least and greatest finite activation of every neuron.

    Raises `UsageError` naming the first neuron that had none.
    """
    taps = tuple((tap.name, tap.neurons) for tap in dna.spec.taps)
    silent = np.flatnonzero(~(np.isfinite(dna.min) & np.isfinite(dna.max)))
    if len(silent):
        raise UsageError(
            f"neuron {neuron_name(taps, int(silent[0]))} of {dna.spec.extractor} had no finite "
            f"activation in {dna.images} images, nor had {len(silent) - 1} others; these weights "
            "(--weights) cannot be calibrated"
        )
    return Ranges(taps, dna.min.astype(np.float64), dna.max.astype(np.float64))


# Quantiles.


@dataclass(frozen=True, eq=False)
class Quantiles:
    """Per neuron, the activations below which, and above which, less than a share of all lie.

    Each end stands outside of the true one, by at most `resolution` of the width between the two in
    the worst of the neurons that were resolved to `RESOLUTION`. `unresolved` others were not; none
    is off by more than `coarsest` of its width from the least activation to the greatest.
    """

    ranges: Ranges
    resolution: float
    unresolved: int
    coarsest: float
    passes: int

    @property
    def stated(self) -> dict[str, float | int]:
        """For a file's metadata."""
        return {
            "resolution": self.resolution,
            "unresolved": self.unresolved,
            "coarsest": self.coarsest,
            "passes": self.passes,
        }


@dataclass(frozen=True, eq=False)
class _Brackets:
    """(N,) each: the lower quantile is in [a, b], the upper one in [c, d].

    All are float32 numbers, as activations are, held in float64.
    """

    a: Floats
    b: Floats
    c: Floats
    d: Floats

    @property
    def width(self) -> Floats:
        return np.maximum(self.b - self.a, self.d - self.c)

    @property
    def between(self) -> Floats:
        """The least that the quantiles lie apart."""
        return np.maximum(self.c - self.b, 0.0)

    @property
    def resolved(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        return self.width <= RESOLUTION * self.between


def quantiles(
    least_to_greatest: Ranges, finite: Ints, quantile: float, count: Count, bins: int = MAX_BINS
) -> Quantiles:
    """Between the `quantile` and the `1 - quantile` quantile of each neuron's activations.

    `finite` (N,): how many activations a neuron has. A quantile is an activation that was observed:
    the one at rank `ceil(quantile * finite)`, from below and from above (numpy's method
    `inverted_cdf`). At most `PASSES` calls of `count`.
    """
    share = Fraction(str(quantile))
    distinct, where = np.unique(finite, return_inverse=True)
    rank = np.array([ceil(share * int(n)) for n in distinct], np.int64)[where]
    low, high = least_to_greatest.low, least_to_greatest.high
    brackets = _Brackets(low, high, low, high)
    passes = 0
    while passes < PASSES and not brackets.resolved.all():
        passes += 1
        window = Ranges(least_to_greatest.taps, *_window(brackets))
        brackets = _narrowed(brackets, count(window, bins), rank)
    resolved, width = brackets.resolved, brackets.width
    return Quantiles(
        # Adding zero makes -0.0 into 0.0, which would have another digest.
        Ranges(least_to_greatest.taps, brackets.a + 0.0, brackets.d + 0.0),
        _worst(width[resolved], brackets.between[resolved]),
        int((~resolved).sum()),
        _worst(width, high - low),
        passes,
    )


def _worst(width: Floats, whole: Floats) -> float:
    share = np.divide(width, whole, out=np.zeros_like(width), where=width > 0)
    return float(share.max(initial=0.0))


def _window(brackets: _Brackets) -> tuple[Floats, Floats]:
    """Where to count next: from the lower quantile's bracket to the upper one's, ends left out.

    The ends fall to underflow and overflow, which thus tell whether a quantile is the end itself,
    as where a neuron is mostly at the floor of its activation function.
    """
    low, high = _next(brackets.a, 1), _next(brackets.d, -1)
    room = low < high
    return np.where(room, low, brackets.a), np.where(room, high, brackets.d)


def _narrowed(old: _Brackets, dna: DNA, rank: Ints) -> _Brackets:
    low, high, bins = dna.low, dna.high, dna.counts.shape[1]
    step = (high - low) / bins
    slack = 8 * np.spacing(np.maximum(abs(low), abs(high)))  # more than all rounding of the rule
    below, above = _next(low, -1), _next(high, 1)

    def edges(index: Ints) -> tuple[Floats, Floats]:
        lower = _round32(low + index * step - slack, 1)
        upper = _round32(low + (index + 1) * step + slack, -1)
        return np.maximum(lower, low), np.minimum(upper, high)

    index = _reached(dna.underflow, dna.counts, rank)
    lower, upper = edges(index)
    a = np.select([index < 0, index == bins], [old.a, above], lower)
    b = np.select([index < 0, index == bins], [below, old.b], upper)
    index = bins - 1 - _reached(dna.overflow, dna.counts[:, ::-1], rank)
    lower, upper = edges(index)
    c = np.select([index == bins, index < 0], [above, old.c], lower)
    d = np.select([index == bins, index < 0], [old.d, below], upper)
    a, d = np.maximum(a, old.a), np.minimum(d, old.d)
    b, c = np.maximum(np.minimum(b, old.b), a), np.minimum(np.maximum(c, old.c), d)
    point = old.a == old.d
    return _Brackets(*(np.where(point, old.a, new) for new in (a, b, c, d)))


def _reached(before: Ints, counts: Ints, rank: Ints) -> Ints:
    """The bin in which the sum of `before` and the bins comes to `rank`: -1 for `before` itself,
    the number of bins where it never does."""
    short = before[:, None] + np.cumsum(counts, axis=1) < rank[:, None]
    index: Ints = short.sum(axis=1)
    return np.where(before >= rank, -1, index)


def _next(values: Floats, direction: int) -> Floats:
    """The float32 number next to each, upwards or downwards."""
    with np.errstate(over="ignore"):
        near = np.nextafter(values.astype(np.float32), np.float32(direction * np.inf))
    return near.astype(np.float64)


def _round32(values: Floats, direction: int) -> Floats:
    """The nearest float32 number that is not below (1), or not above (-1)."""
    near = values.astype(np.float32).astype(np.float64)
    return np.where((values - near) * direction > 0, _next(near, direction), near)
