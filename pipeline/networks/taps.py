"""Chooses the modules to tap, and reads what they put out as (images, positions, neurons)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.errors import UsageError
from pipeline.wording import option

if TYPE_CHECKING:
    import torch


# Taps: which modules.


def default_modules(model: Any) -> tuple[str, ...]:
    """Chooses the modules to observe by the first rule that fits the network's structure.

    docs/networks.md has the rules as a table.

    Args:
        model: The network.

    Returns:
        The names of the modules.

    Raises:
        UsageError: If no rule fits.
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
    refusal = no_default_taps(model, "")
    raise refusal


def no_default_taps(model: Any, why: str) -> UsageError:
    """Makes the error that no rule chooses taps; it names some modules that could be tapped.

    Args:
        model: The network.
        why: A clause that ends the statement, or nothing.

    Returns:
        The error, to be raised.
    """
    from torch import nn

    some = [
        name
        for name, module in model.named_modules()
        if name and name.count(".") < 2 and not isinstance(module, nn.ModuleList)
    ][:12]
    return UsageError(
        f"no rule says what to tap in a {type(model).__name__}{why}; name modules by "
        f"{option('taps')}, such as {', '.join(some)}"
    )


def matching(patterns: str, names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names that any of the comma-separated globs matches.

    `*` and `?` stay within a dotted part, `**` crosses dots. A glob that ends in `[0]` asks for the
    first token only.

    Args:
        patterns: The globs.
        names: The names of all modules or layers.

    Returns:
        The matching names in the order of `names`, each with the `[0]` of its glob.

    Raises:
        UsageError: If a glob matches nothing; the message shows similar names.
    """
    found: set[tuple[int, str]] = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        bare = pattern.removesuffix("[0]")
        rule = re.compile(_expression(bare))
        hits = [i for i, name in enumerate(names) if rule.fullmatch(name)]
        if not hits:
            near = difflib.get_close_matches(bare, names, 5, 0.4) or list(names[:5])
            raise UsageError(f"taps {pattern!r} match no module; similar names: {', '.join(near)}")
        found |= {(i, names[i] + pattern[len(bare) :]) for i in hits}
    return tuple(name for _, name in sorted(found))


def _expression(glob: str) -> str:
    parts = re.split(r"(\*\*|\*|\?)", glob)
    meaning = {"**": ".*", "*": r"[^.]*", "?": r"[^.]"}
    return "".join(meaning.get(part) or re.escape(part) for part in parts)


# Taps: what they show.


def parse(notation: str) -> tuple[str, str]:
    """Splits a module's notation, as `Network.modules` has it.

    Args:
        notation: The name of a module, maybe with `[0]` or `[hwc]` after it.

    Returns:
        The name, and `0`, `hwc` or nothing.
    """
    parts = re.fullmatch(r"(.*?)(?:\[(0|hwc)\])?", notation, re.DOTALL)
    return (parts[1], parts[2] or "") if parts else (notation, "")


def rows(output: Any, notation: str, batch: int) -> torch.Tensor:
    """Reads a module's output as activations.

    Args:
        output: (B, C, H, W), or (B, H, W, C) if the notation says `hwc`, whose positions are taken
            row by row; (B, N, C), whose positions are tokens; or (B, C), which is one position.
        notation: The module's notation.
        batch: How many images it is of.

    Returns:
        (batch, positions, neurons); a view if possible.

    Raises:
        UsageError: If the output has another form.
    """
    import torch

    name, part = parse(notation)
    if not isinstance(output, torch.Tensor):
        raise UsageError(
            f"module {name} returns a value of type {type(output).__name__}, not a tensor; tap "
            f"another module by {option('taps')}"
        )
    shape = tuple(output.shape)
    if not shape or shape[0] != batch or not 2 <= len(shape) <= 4 or 0 in shape:
        raise UsageError(
            f"module {name} returns shape {shape} for {batch} images; it must be (B, C, H, W), "
            f"(B, H, W, C), (B, tokens, C) or (B, C). Tap another module by {option('taps')}"
        )
    if part == "0":
        if len(shape) != 3:
            raise UsageError(f"{name}[0] asks for a token, but module {name} returns shape {shape}")
        return output[:, :1]
    if len(shape) == 2:
        return output[:, None]
    if len(shape) == 3:
        return output
    return (output if part == "hwc" else output.permute(0, 2, 3, 1)).flatten(1, 2)
