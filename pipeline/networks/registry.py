"""Looks up what a name means: a network of this package, of a library, or of the user's own."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import UsageError
from pipeline.networks.families import timm_architecture, torchvision_architecture
from pipeline.networks.lite0 import efficientnet_lite0
from pipeline.networks.network import Architecture, Network
from pipeline.networks.reference_networks import (
    DINO_URL,
    REFERENCE_REPO,
    clip_vit,
    dino_vit,
    mugs_vit,
    reference_inception,
    reference_resnet50,
    reference_vgg16,
)
from pipeline.networks.weights import File, Hub, Web
from pipeline.plugins import Registry, imported, reference_to
from pipeline.spec import Preprocess

if TYPE_CHECKING:
    import torch

_OWN: Registry[OwnNetwork] = Registry("vdna.networks", "network")


def register_network(
    name: str,
    build: Callable[[], torch.nn.Module],
    *,
    preprocess: Preprocess,
    taps: str | None = None,
    weights: str | os.PathLike[str] | None = None,
) -> None:
    """Makes a network of your own known by a name, for `extractor=` and `--extractor`.

    It is known in this process, and in every worker of the builds that this process starts. For
    the commands, an installed package makes it known by an entry point of the group
    `vdna.networks`: a function that calls this one (see docs/networks.md).

        >>> register_network(                                       # doctest: +SKIP
        ...     "small_convnet",
        ...     SmallConvNet,
        ...     preprocess=Preprocess(64, 64, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        ...     taps="features.*",
        ...     weights="s3://models/small_convnet.safetensors",
        ... )

    Args:
        name: The name of the network. Letters, digits, `.`, `_` and `-`.
        build: Builds the network, with any weights. A class or function without arguments, at the
            top level of a module that every worker can import.
        preprocess: The size of the input in pixels, and the mean and standard deviation of each
            channel. Its other fields are chosen by each build, and keep their defaults here.
        taps: The modules to observe unless a build asks for others: globs as `--taps` takes them.
            None chooses them by the network's structure, where a rule fits it.
        weights: Path or url of the weights, which every worker must be able to read: a state dict
            in a safetensors or PyTorch file. If None, each build must be given `weights=`.

    Raises:
        UsageError: If another network has the name, or workers cannot import `build`.
    """
    if name in BUILT_IN:
        raise UsageError(
            f"{name!r} is a network that comes with vdna-pipeline; register yours by another name"
        )
    plain = Preprocess(preprocess.height, preprocess.width, preprocess.mean, preprocess.std)
    if preprocess != plain:
        raise UsageError(
            f"the network {name!r} is registered with {preprocess}. It may state height, width, "
            "mean and std; a build chooses the rest, by resize=, crop=, exif= and the like"
        )
    uri = storage.canonical(os.fspath(weights)) if weights is not None else None
    reference = reference_to(build, f"the network {name!r} is built by a function")
    _OWN.add(name, OwnNetwork(reference, preprocess, taps, uri))


@dataclass(frozen=True)
class OwnNetwork:
    """A network of the user's own, as it was registered.

    Attributes:
        built_by: `module:function` that builds it.
        preprocess: The size of its input, mean and standard deviation.
        taps: The globs that choose its taps, or None for a choice by structure.
        weights: Uri of its weights, or None if each build gives them.
    """

    built_by: str
    preprocess: Preprocess
    taps: str | None
    weights: str | None

    def architecture(self) -> Architecture:
        """Describes it as other networks are described.

        Returns:
            The architecture.
        """
        rule = self.preprocess
        return Architecture(
            functools.partial(_build, self.built_by),
            *(rule.height, rule.width, rule.mean, rule.std),
            File(self.weights) if self.weights else None,
            taps=self.taps,
            built_by=self.built_by,
        )


def _build(reference: str, side: int | None) -> Any:
    return imported(reference)()


def architecture(name: str) -> Architecture:
    """Returns what a name means.

    Raises:
        UsageError: If the name is unknown; the message lists the known ones.
    """
    family, _, rest = name.partition(":")
    if family in FAMILIES and rest:
        model, at, size = rest.partition("@")
        if at and not re.fullmatch(r"[1-9]\d{0,4}", size):
            raise UsageError(
                f"{name}: the size {size!r} is not a number of pixels; write {model}@224"
            )
        return FAMILIES[family](name, model, int(size) if at else None)
    if name in BUILT_IN:
        return BUILT_IN[name]()
    own = _OWN.find(name)
    if own is None:
        raise UsageError(
            f"no extractor {name!r}; there are: {', '.join([*BUILT_IN, *_OWN.names()])}, "
            "timm:NAME[.TAG][@SIZE] and torchvision:NAME[.WEIGHTS][@SIZE]. To use a network of "
            "your own, register it: by `register_network` in Python, or by an entry point of the "
            "group vdna.networks for the commands (docs/networks.md shows both)"
        )
    return own.architecture()


def architecture_of(network: Network) -> Architecture:
    """Returns the architecture of a network that was described, maybe by another process."""
    if not network.built_by:
        return architecture(network.name)
    rule = Preprocess(network.height, network.width, network.mean, network.std)
    return OwnNetwork(network.built_by, rule, None, network.weights_uri).architecture()


FAMILIES = {"timm": timm_architecture, "torchvision": torchvision_architecture}
"""Libraries of networks, by the word before the colon."""

BUILT_IN: Mapping[str, Callable[[], Architecture]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "mugs_vit_small": lambda: mugs_vit("small"),
    "mugs_vit_base": lambda: mugs_vit("base"),
    "mugs_vit_large": lambda: mugs_vit("large", 24),
    "dino_vit_small": lambda: dino_vit("small", "dino_deitsmall16_pretrain"),
    "dino_vit_base": lambda: dino_vit("base", "dino_vitbase16_pretrain"),
    "dino_resnet50": lambda: reference_resnet50(
        Web(f"{DINO_URL}/dino_resnet50_pretrain/dino_resnet50_pretrain.pth")
    ),
    "rand_resnet50": lambda: reference_resnet50(
        Hub(REFERENCE_REPO, ("Random/rand_resnet50/weights.pth",))
    ),
    "clip_im_vit_b16": lambda: clip_vit("base_patch16"),
    "clip_im_vit_b32": lambda: clip_vit("base_patch32"),
    "clip_im_vit_l14": lambda: clip_vit("large_patch14", 24),
    "vgg16": reference_vgg16,
    "inception": reference_inception,
}
"""The networks that come with this package, by their names."""
