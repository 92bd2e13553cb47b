"""The networks of the reference package, as far as its files need: no weights are loaded.

>>> NETWORKS["vgg16"].positions["relu_1_1"]
50176
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.networks import CLIP_RULE, HALF_RULE, IMAGENET_RULE, Rule


@dataclass(frozen=True)
class ReferenceNetwork:
    """One network.

    Attributes:
        side: The side of its square input, in pixels.
        rule: Mean and standard deviation that channels are normalised by.
        positions: The spatial positions or tokens of each layer in an image.
    """

    side: int
    rule: Rule
    positions: Mapping[str, int]


def _vit(
    depth: int, patch: int = 16, rule: Rule = IMAGENET_RULE, last: int | None = None
) -> ReferenceNetwork:
    tokens = (224 // patch) ** 2 + 1
    blocks = {f"block_{i}": tokens for i in range(depth)}
    return ReferenceNetwork(224, rule, {**blocks, "last_norm": last or tokens})


def _grids(side: int, rule: Rule, grids: Mapping[str, int]) -> ReferenceNetwork:
    return ReferenceNetwork(side, rule, {layer: grid * grid for layer, grid in grids.items()})


_RESNET50 = _grids(
    224,
    IMAGENET_RULE,
    {
        f"layer{stage}_{i}": 112 >> stage
        for stage, blocks in enumerate((3, 4, 6, 3), 1)
        for i in range(blocks)
    },
)

_VGG16 = _grids(
    224,
    IMAGENET_RULE,
    {
        f"relu_{stage}_{i}": 448 >> stage
        for stage, relus in enumerate((2, 2, 3, 3, 3), 1)
        for i in range(1, relus + 1)
    },
)

_CLIP_RN50 = _grids(
    224,
    CLIP_RULE,
    {
        **{f"block_{i}": 56 for i in range(0, 4)},
        **{f"block_{i}": 28 for i in range(4, 8)},
        **{f"block_{i}": 14 for i in range(8, 14)},
        **{f"block_{i}": 7 for i in range(14, 17)},
        "last_norm": 1,
    },
)

_INCEPTION = _grids(299, HALF_RULE, {"block_0": 73, "block_1": 35, "block_2": 17, "block_3": 1})

NETWORKS: Mapping[str, ReferenceNetwork] = {
    **dict.fromkeys(
        ("mugs_vit_small", "mugs_vit_base", "dino_vit_small", "dino_vit_base"), _vit(12)
    ),
    "mugs_vit_large": _vit(24),
    "clip_im_vit_b16": _vit(12, 16, CLIP_RULE, last=1),
    "clip_im_vit_b32": _vit(12, 32, CLIP_RULE, last=1),
    "clip_im_vit_l14": _vit(24, 14, CLIP_RULE, last=1),
    "clip_im_rn50": _CLIP_RN50,
    **dict.fromkeys(("dino_resnet50", "rand_resnet50"), _RESNET50),
    "vgg16": _VGG16,
    "inception": _INCEPTION,
}

UNKNOWN_NETWORK = ReferenceNetwork(0, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), {})
"""A network of the user's own: its input's size is not known, and its values are not normalised."""
