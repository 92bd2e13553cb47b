"""Folds batch norms into the convolutions before them, if the order of execution is known.

    >>> fold_batch_norms(torchvision.models.resnet18())               # doctest: +SKIP

A module says which parts it has, but not in which order it runs them. In the families below the
parts are registered in the order in which they run, so a norm belongs to the convolution just
before it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.errors import CorruptFile


@dataclass(frozen=True)
class _Pair:
    """Names a convolution and its norm inside their parent, and the path of the parent."""

    parent: Any
    convolution: str
    norm: str
    path: str

    def full(self, name: str) -> str:
        return f"{self.path}.{name}".lstrip(".")


def foldable(model: Any, observed: tuple[str, ...]) -> bool:
    """Tells whether every batch norm of a model can be folded without changing what the taps see.

    Args:
        model: The network.
        observed: Names of the tapped modules. None may be a convolution before a norm, which would
            show its output after the norm. None may be a part of a norm (timm's hold an
            activation), which would disappear with it.

    Returns:
        True if the model is of a known family and no norm is left over or visible.
    """
    if not _known_family(model):
        return False
    pairs = list(_pairs(model))
    if not pairs or _left(model, pairs):
        return False
    convolutions = {pair.full(pair.convolution) for pair in pairs}
    parts_of_norms = tuple(f"{pair.full(pair.norm)}." for pair in pairs)
    return not any(name in convolutions or name.startswith(parts_of_norms) for name in observed)


def fold_batch_norms(model: Any) -> Any:
    """Makes each batch norm a part of the convolution before it; a norm's activation stays.

    The folded module keeps the norm's name, so that taps on it still hold.

    Args:
        model: The network, which is changed.

    Returns:
        The same network.

    Raises:
        CorruptFile: If a norm follows no convolution.
    """
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    pairs = list(_pairs(model))
    left = _left(model, pairs)
    if left:
        raise CorruptFile(f"batch norms that follow no convolution: {left}")
    for pair in pairs:
        convolution, norm = getattr(pair.parent, pair.convolution), getattr(pair.parent, pair.norm)
        setattr(pair.parent, pair.convolution, fuse_conv_bn_eval(convolution, norm))
        setattr(pair.parent, pair.norm, getattr(norm, "act", nn.Identity()))  # timm's has one
    return model


def _pairs(model: Any) -> Iterator[_Pair]:
    from torch import nn

    from pipeline.networks.lite0_module import SamePaddedConv

    plain: tuple[type, ...] = (nn.Conv2d, SamePaddedConv)
    if "timm" in sys.modules:  # else the model has none of its modules
        from timm.layers.conv2d_same import Conv2dSame

        plain += (Conv2dSame,)
    for path, parent in model.named_modules():
        previous: str | None = None
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d) and previous is not None:
                yield _Pair(parent, previous, name, path)
                previous = None
            elif type(child) in plain:  # others compute their weights
                previous = name
            elif not isinstance(child, nn.Identity):
                previous = None


def _left(model: Any, pairs: list[_Pair]) -> list[str]:
    from torch import nn

    found = {id(getattr(pair.parent, pair.norm)) for pair in pairs}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and id(module) not in found
    ]


def _known_family(model: Any) -> bool:
    from pipeline.networks.lite0_module import EfficientNetLite0

    if isinstance(model, EfficientNetLite0):  # without timm, whose import takes seconds
        return True
    from timm.models import efficientnet, vgg
    from timm.models import resnet as timm_resnet
    from torchvision.models import Inception3
    from torchvision.models import resnet as torchvision_resnet
    from torchvision.models.vgg import VGG

    if isinstance(model, timm_resnet.ResNet | torchvision_resnet.ResNet):
        blocks = {
            type(block)
            for name, layer in dict[str, Any](model.named_children()).items()
            if name.startswith("layer")
            for block in layer
        }
        return blocks <= {
            timm_resnet.BasicBlock,
            timm_resnet.Bottleneck,
            torchvision_resnet.BasicBlock,
            torchvision_resnet.Bottleneck,
        }
    return isinstance(model, efficientnet.EfficientNet | vgg.VGG | VGG | Inception3)
