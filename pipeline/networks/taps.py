"""networks.taps: TODO-DOC"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch


# Taps: which modules.


def default_modules(model: Any) -> tuple[str, ...]:
    """The modules observed where none are asked for: the first rule that the structure fits.

    docs/networks.md has the rules as a table. Raises `UsageError` where none fits.
    """
    from torch import nn

    modules = dict(model.named_modules())
    containers = nn.Sequential | nn.ModuleList

    def like(pattern: str) -> tuple[str, ...]:
        return tuple(name for name in modules if re.fullmatch(pattern, name))

    def real(*names: str) -> tuple[str, ...]:
        return tuple(n for n in names if n in modules and not isinstance(modules[n], nn.Identity))

    blocks = like(r"blocks\.\d+")
    if "conv_stem" in modules and like(r"blocks\.\d+\.\d+"):  # timm's EfficientNet
        return (*real("bn1"), *like(r"blocks\.\d+\.\d+"), *real("bn2"))
    if blocks and not any(isinstance(modules[name], containers) for name in blocks):  # ViT
        return (*blocks, *(real("norm") or real("fc_norm")))  # where it comes after pooling
    if like(r"encoder\.layers\.\w+"):  # torchvision's ViT
        return (*like(r"encoder\.layers\.\w+"), *real("encoder.ln"))
    features = like(r"features\.\w+")
    if features and not any(list(modules[name].children()) for name in features):  # VGG
        relus = tuple(name for name in features if isinstance(modules[name], nn.ReLU))
        return relus or features
    if like(r"layer\d+\.\d+"):  # ResNet
        return like(r"layer\d+\.\d+")
    if "Mixed_6e" in modules:  # Inception v3
        pools = real("maxpool1", "maxpool2", "Pool1", "Pool2")
        return (*pools, "Mixed_6e", *real("avgpool", "global_pool"))
    if like(r"(stages|layers)\.\d+\.blocks\.\d+"):  # timm's ConvNeXt and Swin
        return like(r"(stages|layers)\.\d+\.blocks\.\d+")
    if features:  # torchvision's others
        return features
    raise no_default_taps(model, "")


def no_default_taps(model: Any, why: str) -> UsageError:
    from torch import nn

    some = [
        name
        for name, module in model.named_modules()
        if name and name.count(".") < 2 and not isinstance(module, nn.ModuleList)
    ][:12]
    return UsageError(
        f"no rule says what to tap in a {type(model).__name__}{why}; name modules by --taps, such "
        f"as {', '.join(some)}"
    )


def matching(patterns: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names that any of the comma-separated globs matches, in the order of `names`.

    `*` and `?` stay within a dotted part, `**` crosses dots. A glob ending in `[0]` asks for the
    first token only. Raises `UsageError` for a glob that matches nothing, with near names.
    """
    found: set[tuple[int, str]] = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        bare = pattern.removesuffix("[0]")
        rule = re.compile(_expression(bare))
        hits = [i for i, name in enumerate(names) if rule.fullmatch(name)]
        if not hits:
            near = difflib.get_close_matches(bare, names, 5, 0.4) or list(names[:5])
            raise UsageError(f"taps {pattern!r} match no module; near it: {', '.join(near)}")
        found |= {(i, names[i] + pattern[len(bare) :]) for i in hits}
    return tuple(name for _, name in sorted(found))


def _expression(glob: str) -> str:
    parts = re.split(r"(\*\*|\*|\?)", glob)
    meaning = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return "".join(meaning.get(part) or re.escape(part) for part in parts)


# Taps: what they show.


def parse(notation: str) -> tuple[str, str]:
    """A module's name and `0`, `hwc` or nothing, of the notation in `Network.modules`."""
    parts = re.fullmatch(r"(.*?)(?:\[(0|hwc)\])?", notation, re.DOTALL)
    return (parts[1], parts[2] or "") if parts else (notation, "")


def rows(output: Any, notation: str, batch: int) -> torch.Tensor:
    """What a module put out as (batch, positions, neurons); a view where it can be.

    (B, C, H, W), or (B, H, W, C) where the notation says `hwc`: positions row by row.
    (B, N, C): tokens. (B, C): one position. Raises `UsageError` for anything else.
    """
    import torch

    name, part = parse(notation)
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"{name} puts out a {type(output).__name__}, no tensor; tap another module by --taps"
        )
    shape = tuple(output.shape)
    if not shape or shape[0] != batch or not 2 <= len(shape) <= 4 or 0 in shape:
        raise UsageError(
            f"{name} puts out {shape} for {batch} images, which is none of (B, C, H, W), "
            "(B, H, W, C), (B, tokens, C) and (B, C); tap another module by --taps"
        )
    if part == "0":
        if len(shape) != 3:
            raise UsageError(f"{name}[0] asks for a token, and {name} puts out {shape}")
        return output[:, :1]
    if len(shape) == 2:
        return output[:, None]
    if len(shape) == 3:
        return output
    return (output if part == "hwc" else output.permute(0, 2, 3, 1)).flatten(1, 2)
