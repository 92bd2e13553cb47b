"""Describes the networks of timm and torchvision by their names there."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.errors import UsageError
from pipeline.networks.network import Architecture, State, Triple
from pipeline.networks.weights import Hub, Source, Web


def timm_architecture(name: str, model: str, size: int | None) -> Architecture:
    """Describes a network of timm.

    Args:
        name: The whole name that was asked for, for messages.
        model: The name in timm, maybe with a tag of weights after a dot.
        size: The side of the input in pixels, or None for timm's.

    Returns:
        Its architecture, input and source of weights, as timm states them.

    Raises:
        UsageError: If timm has no such network or tag, or does not state its input.
    """
    import timm
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg

    base = model.partition(".")[0]
    if not timm.is_model(base):
        unknown = _unknown(name, base, timm.list_models(), "timm")
        raise unknown
    try:
        cfg = get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError as error:
        tags = [key.partition(".")[2] for key in get_arch_pretrained_cfgs(base)]
        raise UsageError(f"{name}: {error} Its tags: {', '.join(tags)}") from error
    if cfg is None:
        raise UsageError(f"{name}: timm does not state the size of its input or its mean")
    channels, height, width = cfg.input_size
    if channels != 3:
        raise UsageError(f"{name} takes images of {channels} channels, not of 3")
    heads = (cfg.classifier,) if isinstance(cfg.classifier, str) else tuple(cfg.classifier or ())
    return Architecture(
        functools.partial(build_timm, model, size),
        size or height,
        size or width,
        _triple(cfg.mean),
        _triple(cfg.std),
        _timm_source(cfg),
        heads,
        convert=timm_filter,
    )


def build_timm(model: str, size: int | None, side: int | None) -> Any:
    """Builds a network of timm with random weights.

    Args:
        model: The name in timm, maybe with a tag.
        size: The side of the input in pixels, or None for timm's.
        side: A side to use in place of `size`, or None.

    Returns:
        The module.

    Raises:
        TypeError: If timm cannot build it, unless only because it takes any size.
    """
    import timm

    square = side or size
    if square is not None:
        try:
            return timm.create_model(model, pretrained=False, img_size=square)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    return timm.create_model(model, pretrained=False)  # takes any size


def _timm_source(cfg: Any) -> Source | None:
    if cfg.hf_hub_id:
        files = ("model.safetensors", "pytorch_model.bin")
        if cfg.hf_hub_filename:
            stem = cfg.hf_hub_filename.rpartition(".")[0]
            files = (f"{stem}.safetensors", cfg.hf_hub_filename)
        return Hub(cfg.hf_hub_id, files)
    return Web(cfg.url) if isinstance(cfg.url, str) and cfg.url else None


def timm_filter(state: State, model: Any) -> State:
    """Converts a state dict as timm does (OpenAI's CLIP, DINOv2, other image sizes).

    Args:
        state: Tensors by the names of a foreign checkpoint, or of timm's own.
        model: The module of timm that they are for.

    Returns:
        Tensors by the model's names.
    """
    module = sys.modules[type(model).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None)
    return convert(state, model) if convert else state


def torchvision_architecture(name: str, model: str, size: int | None) -> Architecture:
    """Describes a network of torchvision.

    Args:
        name: The whole name that was asked for, for messages.
        model: The name in torchvision, maybe with a name of weights after a dot.
        size: The side of the input in pixels, or None for that of the weights.

    Returns:
        Its architecture, input and source of weights, as torchvision states them.

    Raises:
        UsageError: If torchvision has no such network or weights.
    """
    from torchvision import models

    base, _, tag = model.partition(".")
    known = models.list_models(module=models)
    if base not in known:
        unknown = _unknown(name, base, known, "torchvision")
        raise unknown
    choices = models.get_model_weights(base)
    if tag and tag not in choices.__members__:
        raise UsageError(f"{name}: no weights {tag}; there are {', '.join(choices.__members__)}")
    chosen = choices[tag] if tag else choices.DEFAULT
    rule = chosen.transforms()
    side = size or rule.crop_size[0]
    return Architecture(
        functools.partial(build_torchvision, base, side),
        side,
        side,
        _triple(rule.mean),
        _triple(rule.std),
        Web(chosen.url),
        ("fc", "classifier", "heads", "head", "AuxLogits", "aux1", "aux2"),
        convert=_torchvision_filter,
    )


def build_torchvision(base: str, size: int, side: int | None) -> Any:
    """Builds a network of torchvision with random weights.

    Args:
        base: The name in torchvision.
        size: The side of the input in pixels.
        side: A side to use in place of `size`, or None.

    Returns:
        The module.
    """
    from torchvision import models

    extra: dict[str, Any] = {}
    if base.startswith("vit_"):
        extra["image_size"] = side or size
    elif base.startswith("maxvit"):
        extra["input_size"] = (side or size,) * 2
    elif base in ("inception_v3", "googlenet"):
        # Its weights were trained on other means; torchvision sets this wherever it loads them.
        extra |= {"transform_input": True, "init_weights": False}
    elif base.startswith("vgg"):
        extra["init_weights"] = False
    return models.get_model(base, weights=None, **extra)


def _torchvision_filter(state: State, model: Any) -> State:
    """Returns the state as torchvision's own builders convert the files that they load."""
    from torchvision.models import DenseNet, VisionTransformer
    from torchvision.models.vision_transformer import interpolate_embeddings

    if isinstance(model, DenseNet):  # named for an older torch; the pattern is torchvision's
        old = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
        return {old.sub(r"\1\2", key): value for key, value in state.items()}
    if isinstance(model, VisionTransformer):
        return dict(interpolate_embeddings(model.image_size, model.patch_size, state))
    return state


def _unknown(name: str, base: str, known: Sequence[str], library: str) -> UsageError:
    near = difflib.get_close_matches(base, known, 5, 0.5)
    hint = f"; similar names: {', '.join(near)}" if near else ""
    return UsageError(f"no extractor {name!r}: {library} has no model {base!r}{hint}")


def _triple(values: Iterable[float]) -> Triple:
    a, b, c = (float(value) for value in values)
    return a, b, c
