"""networks.registry: TODO-DOC"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pipeline.errors import UsageError
from pipeline.networks.families import timm_architecture, torchvision_architecture
from pipeline.networks.lite0 import efficientnet_lite0
from pipeline.networks.network import Architecture
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
from pipeline.networks.weights import Hub, Web

# Names.


def architecture(name: str) -> Architecture:
    """What a name means. Raises `UsageError` for an unknown one, with those that are known."""
    if name in NAMED:
        return NAMED[name]()
    family, _, rest = name.partition(":")
    if family not in ("timm", "torchvision") or not rest:
        raise UsageError(
            f"no extractor {name!r}; there are: {', '.join(NAMED)}, timm:NAME[.TAG][@SIZE] and "
            "torchvision:NAME[.WEIGHTS][@SIZE]"
        )
    model, at, size = rest.partition("@")
    if at and not re.fullmatch(r"[1-9]\d{0,4}", size):
        raise UsageError(f"{name}: the size {size!r} is no number of pixels; write {model}@224")
    return (timm_architecture if family == "timm" else torchvision_architecture)(
        name, model, int(size) if at else None
    )


NAMED: Mapping[str, Callable[[], Architecture]] = {
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
"""Every name that is no family's."""
