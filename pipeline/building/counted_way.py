"""Decides how a request is counted: its spec, and what is kept beside the histograms.

>>> make_spec(request, network, ranges.digest, "cpu").bins                    # doctest: +SKIP
1000
"""

from __future__ import annotations

import glob
from collections.abc import Sequence

from pipeline.building.request import Request
from pipeline.catalogue import Version
from pipeline.counting import numerics
from pipeline.dna import DEFAULT_EXEMPLARS, ExemplarSettings
from pipeline.errors import UsageError
from pipeline.images import is_nvjpeg, stated_decoder
from pipeline.networks import Network
from pipeline.spec import IMAGE_HASHES, LAYER_GAUSSIAN, PRODUCTS, Preprocess, Spec
from pipeline.wording import count_of, option

MOST_HASHED = 250_000_000
"""The most images whose hashes a version keeps: 17 bytes each, in one object of 5 GB at most."""


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


def products_of(
    request: Request,
    network: Network,
    base: Version | None,
    planned: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """Returns the products to keep: those asked for, and those that the dataset has.

    A refresh must not drop what others read. Nor should it count all images of a dataset again for
    exemplars or image hashes that nobody has asked for: a dataset without them stays without,
    unless asked. A first build that died keeps its shards, so the next one goes by its plan.

    Args:
        request: What was asked for.
        network: The network, whose layers `exemplar_taps` chooses from.
        base: The catalogue's version of the dataset, or None.
        planned: The products of the build that began last; None if none is noted.

    Returns:
        The names of the products, in their fixed order.
    """
    had = base.products if base is not None and not base.imported else None
    products = PRODUCTS
    if request.layer_gaussian or LAYER_GAUSSIAN in (had or ()):
        products = (*products, LAYER_GAUSSIAN)
    settings = ExemplarSettings.from_products(had or ())
    if had is None or request.exemplars is not None or request.exemplar_taps is not None:
        number, taps = request.exemplars, request.exemplar_taps
        if number is None:
            number = settings.number if settings else DEFAULT_EXEMPLARS
        if taps is None and settings:
            taps = ",".join(map(glob.escape, settings.layers)) or None
        settings = ExemplarSettings.from_options(number, taps, network.taps)
    if settings:
        products = (*products, settings.product)
    asked = request.image_hashes
    before = planned if had is None and not request.replace else had
    hashed = asked if asked is not None else before is None or IMAGE_HASHES in before
    return (*products, IMAGE_HASHES) if hashed else products


def require_room_for_hashes(name: str, candidates: int, products: Sequence[str]) -> None:
    """Refuses to keep the hashes of more images than one object of any store holds.

    Args:
        name: The dataset.
        candidates: How many images it lists.
        products: What is to be kept.

    Raises:
        UsageError: There are too many.
    """
    if IMAGE_HASHES in products and candidates > MOST_HASHED:
        raise UsageError(
            f"{name} has {count_of(candidates, 'image')}, and the hashes of at most "
            f"{MOST_HASHED:,} are kept; build it with {option(IMAGE_HASHES, False)}"
        )
