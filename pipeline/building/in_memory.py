"""building.in_memory: TODO-DOC"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pipeline import images
from pipeline.building.committer import allowed_failures
from pipeline.building.planner import products_of
from pipeline.building.request import DEFAULT_MAX_FAILURES, Request, make_spec
from pipeline.counting import OVERLAP, Counter
from pipeline.dna import DNA, Partial
from pipeline.errors import BadImage, GateError, UsageError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.networks import describe
from pipeline.networks import ranges_file as ranges_module
from pipeline.sources import Entry, Listing, Rules, Shard, list_source, plan
from pipeline.spec import Crop, Exif, Precision, Resize, Resources

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image


# In process, without a catalogue.


def make_dna(
    source: str | os.PathLike[str] | Sequence[NDArray[np.uint8] | Image.Image],
    *,
    extractor: str = "efficientnet_lite0",
    weights: str | None = None,
    bins: int = 1000,
    precision: Precision = "fp32",
    ranges: str | None = None,
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
    layer_gaussian: bool = False,
    threads: int | None = None,
    progress: Listener | None = None,
) -> DNA:
    """The DNA of a source (as `vdna build` takes it), or of images in memory, in this process.

    Images in memory: uint8 arrays (height, width, 3) or (height, width), or PIL images. Raises
    `GateError` where more than `max_failures` candidates cannot be read; fewer are warned of, and
    `DNA.failed` counts them. Leaves torch's TF32 and cuDNN switches, and glibc's allocator, set as
    exact and quick counting needs them.
    """
    import torch

    from pipeline.counting import Extractor
    from pipeline.spec import available_cpus

    held: dict[str, NDArray[np.uint8]] = {}
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        listing = list_source(name, Rules(include, exclude, image_column=image_column))
    else:
        if decoder is not None:
            raise UsageError(
                f"decoder is {decoder!r}; images in memory are decoded already, so leave it out"
            )
        held = {f"memory-{i:09d}": _pixels(image, i, exif) for i, image in enumerate(source)}
        entries = [Entry(uri, "", pixels.nbytes, "") for uri, pixels in held.items()]
        name, listing = "images in memory", Listing.of(entries[:limit], "memory")
    request = Request(
        "in-process",
        name,
        extractor=extractor,
        weights=weights,
        bins=bins,
        precision=precision,
        ranges=ranges,
        resize=resize,
        exif=exif,
        crop=crop,
        taps=taps,
        decoder=decoder,
        max_failures=max_failures,
        layer_gaussian=layer_gaussian,
        exemplars=0,
    )
    network = describe(extractor, weights, taps)
    found = ranges_module.resolve(network, ranges, {})
    spec = make_spec(request, network, found.digest, "cpu")
    manifest = plan(listing, limit=None if held else limit)
    resources = Resources(threads=threads or available_cpus())
    threads_before = torch.get_num_threads()
    products = products_of(request, network, None)
    counter = Counter(Extractor(network, precision), spec, found, resources, products)
    progress = progress or ignore
    total = Partial.empty(spec, found, layer_gaussian=layer_gaussian)

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
    if total.failures:
        listed = "; ".join(str(failure) for failure in total.failures[:5])
        message = f"{len(total.failures)} of {total.candidates} images could not be read: {listed}"
        if len(total.failures) > allowed_failures(max_failures, total.candidates):
            raise GateError(f"{name}: {message} (the limit is {max_failures:g})")
        warnings.warn(message, stacklevel=2)
    return total.dna


def _pixels(image: NDArray[np.uint8] | Image.Image, index: int, exif: Exif) -> NDArray[np.uint8]:
    """(height, width, 3) uint8. Raises `UsageError` naming the image that is something else."""
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
