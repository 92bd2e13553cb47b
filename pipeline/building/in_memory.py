"""Makes a DNA in this process, without a catalogue.

>>> make_dna("photos/", bins=100).images                          # doctest: +SKIP
1200
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Unpack

from pipeline import images
from pipeline.building.failure_gate import require_few_failures
from pipeline.building.planner import make_spec, products_of
from pipeline.building.request import MemoryOptions, Request
from pipeline.counting import OVERLAP, Counter
from pipeline.dna import DNA, Partial
from pipeline.errors import BadImage, UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.networks import describe
from pipeline.networks import ranges_file as ranges_module
from pipeline.sources import Entry, Listing, Shard, list_source, plan
from pipeline.spec import Exif, Resources

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


def make_dna(
    source: str | os.PathLike[str] | Sequence[NDArray[np.uint8] | Image.Image],
    *,
    threads: int | None = None,
    progress: Listener | None = None,
    **options: Unpack[MemoryOptions],
) -> DNA:
    """Makes the DNA of a source, or of images in memory, in this process.

    It leaves torch's TF32 and cuDNN switches, and glibc's allocator, set as exact and quick
    counting needs them.

    Args:
        source: A source as `vdna build` takes it; or uint8 arrays (height, width, 3) or (height,
            width), or PIL images.
        threads: How many images are processed at a time. None takes all cores.
        progress: Is told of each shard as it is counted.
        **options: Options of `Request`: those that `MemoryOptions` names.

    Returns:
        The DNA. `DNA.failed` says how many images could not be read.

    Raises:
        GateError: More images than `max_failures` allows could not be read. If fewer could not,
            a warning lists the first of them.
        UsageError: An option is not allowed, or an image in memory is of the wrong kind.
        TypeError: An option is not known.
    """
    unknown = options.keys() - MemoryOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"make_dna() takes no option {', '.join(sorted(unknown))}")
    import torch

    from pipeline.counting import Extractor
    from pipeline.spec import available_cpus

    held: dict[str, NDArray[np.uint8]] = {}
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "images in memory"
    request = Request("in-process", name, exemplars=0, **options)
    if isinstance(source, str | os.PathLike):
        listing = list_source(name, request.rules)
    else:
        if request.decoder is not None:
            raise UsageError(
                f"decoder is {request.decoder!r}; images in memory are decoded already, so leave "
                "it out"
            )
        exif = request.exif
        held = {f"memory-{i:09d}": _pixels(image, i, exif) for i, image in enumerate(source)}
        entries = [Entry(uri, "", pixels.nbytes, "") for uri, pixels in held.items()]
        listing = Listing.of(entries[: request.limit], "memory")
    network = describe(request.extractor, request.weights, request.taps)
    found = ranges_module.resolve(network, request.ranges, {})
    spec = make_spec(request, network, found.digest, "cpu")
    manifest = plan(listing, limit=None if held else request.limit)
    resources = Resources(threads=threads or available_cpus())
    threads_before = torch.get_num_threads()
    products = products_of(request, network, None)
    counter = Counter(Extractor(network, request.precision), spec, found, resources, products)
    progress = progress or ignore
    total = Partial.empty(spec, found, layer_gaussian=request.layer_gaussian)

    def count(shard: Shard) -> Partial:
        key = shard.key(spec.digest, products)
        if held:
            return counter.count(shard, key, lambda entry: held[entry.uri])
        return counter.count(shard, key)

    try:
        with (
            stage(progress, Started(manifest.candidates, len(manifest.heads))),
            ThreadPoolExecutor(OVERLAP, "shard") as pool,
        ):
            for partial in pool.map(count, manifest.shards):
                total += partial
                progress(StepDone(partial.candidates, len(partial.failures)))
    finally:
        counter.close()
        torch.set_num_threads(threads_before)
    failures, candidates = total.failures, total.candidates
    require_few_failures(
        name, len(failures), candidates, request.max_failures, failures, resumes=False
    )
    if failures:
        listed = "; ".join(str(failure) for failure in failures[:5])
        warnings.warn(
            f"{len(failures)} of {candidates} images could not be read: {listed}", stacklevel=2
        )
    return total.dna


def _pixels(image: NDArray[np.uint8] | Image.Image, index: int, exif: Exif) -> NDArray[np.uint8]:
    """Returns uint8 pixels (height, width, 3); raises `UsageError` for anything else."""
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
