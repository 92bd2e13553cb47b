"""Finds what the modules of a network put out, by running it once without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UsageError
from pipeline.networks.batch_norms import foldable
from pipeline.networks.network import Architecture
from pipeline.networks.taps import default_modules, matching, no_default_taps, parse, rows
from pipeline.networks.weights import without_random_values
from pipeline.spec import Tap
from pipeline.wording import option

BATCH = 2
"""Images of a trial run. With a single one, windows or tokens could be taken for the batch."""

LARGER = 64
"""By how many pixels a second trial run is larger, to tell channels from positions."""


@dataclass(frozen=True)
class FoundTaps:
    """The taps that a trial run has found. The fields are those of a `Network`."""

    taps: tuple[Tap, ...]
    modules: tuple[str, ...]
    spare: tuple[str, ...]
    folded: bool
    depthwise: bool


def discover_taps(name: str, known: Architecture, patterns: str | None) -> FoundTaps:
    """Runs an architecture once, and finds the shape of what each tap puts out.

    Args:
        name: The name of the network, for messages.
        known: Its architecture.
        patterns: Globs of the layers to tap, or None for the default layers.

    Returns:
        The taps, their modules, the classifier's parts that none needs, whether norms can be
            folded, and whether there are depthwise convolutions.

    Raises:
        UsageError: If the network does not run on images of its size, or if a pattern matches
            nothing, or a module's output cannot be read as activations.
    """
    try:
        model, on_meta = _bare(known, None)
    except Exception as error:  # architectures assert what they need of their size
        refusal = _unable(name, known, error)
        raise refusal from error
    _require_whole_patches(name, known, model)
    names = tuple(module for module, _ in model.named_modules() if module)
    layers = dict(known.layers)
    if patterns is not None and layers:
        chosen = {n: layers[n.removesuffix("[0]")] for n in matching(patterns, tuple(layers))}
        chosen = {n: f"{parse(m)[0]}[0]" if n.endswith("[0]") else m for n, m in chosen.items()}
    elif patterns is not None:
        chosen = {n: n for n in matching(patterns, names)}
    else:
        chosen = layers or {n: n for n in default_modules(model)}
    observed = tuple(dict.fromkeys(parse(module)[0] for module in chosen.values()))
    shown = _shown(name, known, model, on_meta, observed)
    taps, modules = [], []
    for tap, module in chosen.items():
        path, part = parse(module)
        notation = module if part else path + shown.layouts[path]
        try:
            activations = rows(shown.outputs[path], notation, BATCH)
        except UsageError as error:
            if patterns is not None or layers:
                raise
            refusal = no_default_taps(model, f", since {str(error).partition(';')[0]}")
            raise refusal from error
        taps.append(Tap(tap, activations.shape[2], activations.shape[1]))
        modules.append(notation)
    own_names = all(tap.name == module for tap, module in zip(taps, modules, strict=True))
    return FoundTaps(
        tuple(taps),
        () if own_names else tuple(modules),
        shown.spare,
        # A user's class may run its modules in another order than the class that it derives from.
        not known.built_by and foldable(model, observed),
        _has_depthwise(model),
    )


def _has_depthwise(model: Any) -> bool:
    """Tells whether any convolution has as many groups as channels, and more than one."""
    from torch import nn

    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    return any(each.groups == each.in_channels > 1 for each in convolutions)


@dataclass(frozen=True)
class _Shown:
    """Holds the outputs of modules, their layouts as notation, and the heads that no tap needs."""

    outputs: dict[str, Any]
    layouts: dict[str, str]
    spare: tuple[str, ...]


def _shown(
    name: str, known: Architecture, model: Any, on_meta: bool, observed: tuple[str, ...]
) -> _Shown:
    try:
        outputs, order = _run(model, known.height, known.width, observed, known.heads)
    except UsageError:
        raise
    except Exception as error:
        if not on_meta:
            raise _unable(name, known, error) from error
        try:  # something in it does not run on the meta device
            model = known.build(None).eval()
            outputs, order = _run(model, known.height, known.width, observed, known.heads)
        except UsageError:
            raise
        except Exception as other:
            raise _unable(name, known, other) from other
    last = max(order[path] for path in observed)
    present = {path for path, _ in model.named_modules()}
    spare = tuple(
        head
        for head in known.heads
        if head in present
        and order.get(head, last + 1) > last
        and not any(path.startswith(f"{head}.") or path == head for path in observed)
    )
    square = [path for path in observed if getattr(outputs[path], "ndim", 0) == 4]
    layouts = dict.fromkeys(observed, "")
    if square:
        larger = _larger(known, square)
        for path in square:
            layouts[path] = _layout(path, model, outputs[path], larger.get(path))
    return _Shown(outputs, layouts, spare)


def _unable(name: str, known: Architecture, error: Exception) -> UsageError:
    why = " ".join(str(error).split())[:300]
    return UsageError(
        f"{name} does not run on images of {known.height} x {known.width}: {why}. Ask for "
        "another size by NAME@SIZE"
    )


def _require_whole_patches(name: str, known: Architecture, model: Any) -> None:
    """Checks that patches cover the image; timm would leave the rest unseen.

    Raises:
        UsageError: If they do not.
    """
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and len(patch) == 2:
        rows_left, columns_left = known.height % patch[0], known.width % patch[1]
        if rows_left or columns_left:
            raise UsageError(
                f"{name} cuts images into patches of {patch[0]} x {patch[1]}, but its size "
                f"{known.height} x {known.width} is not a multiple of them"
            )


def _bare(known: Architecture, side: int | None) -> tuple[Any, bool]:
    """Returns the architecture without weights, and whether it is on the meta device."""
    import torch

    try:
        with torch.device("meta"), without_random_values():
            return known.build(side).eval(), True
    except Exception:  # it computes with its parameters as it is built
        return known.build(side).eval(), False


def _run(
    model: Any, height: int, width: int, observed: Iterable[str], heads: Iterable[str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Runs the model, and keeps what the observed modules put out.

    Returns:
        The outputs, and the order in which the observed modules and the heads finished.

    Raises:
        UsageError: If an observed module does not run exactly once.
    """
    import torch

    modules = dict(model.named_modules())
    outputs: dict[str, list[Any]] = {path: [] for path in observed}
    order: dict[str, int] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            order[path] = len(order)
            if path in outputs:
                outputs[path].append(output)

        return hook

    handles = [
        modules[path].register_forward_hook(watch(path))
        for path in dict.fromkeys([*observed, *heads])
        if path in modules
    ]
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            model(torch.zeros(BATCH, 3, height, width, device=device))
    finally:
        for handle in handles:
            handle.remove()
    for path, seen in outputs.items():
        if len(seen) != 1:
            times = f"runs {len(seen)} times" if seen else "does not run"
            raise UsageError(
                f"{path} ({type(modules[path]).__name__}) {times} in a forward pass; tap a module "
                f"that runs once by {option('taps')}, such as the block around it"
            )
    return {path: seen[0] for path, seen in outputs.items()}, order


def _larger(known: Architecture, observed: Iterable[str]) -> dict[str, Any]:
    """Returns the outputs on larger images, or none if the network takes no others."""
    try:
        model, on_meta = _bare(known, known.height + LARGER)
        if not on_meta:
            return {}
        height, width = known.height + LARGER, known.width + LARGER
        return _run(model, height, width, observed, ())[0]
    except Exception:  # a network of one size: its stated layout must do
        return {}


def _layout(path: str, model: Any, output: Any, larger: Any) -> str:
    """Tells channels from positions: the number of channels stays when the image grows.

    Returns:
        `[hwc]` if the last axis is the channels, else nothing.

    Raises:
        UsageError: If the channels are in the middle.
    """
    shape = tuple(output.shape)
    same = [i for i in (1, 2, 3) if larger is not None and larger.shape[i] == shape[i]]
    if len(same) != 1:  # pooled to one size whatever the image's
        same = [i for i in (1, 2, 3) if shape[i] > 1]
    if len(same) != 1:
        same = [3 if getattr(model, "output_fmt", "") == "NHWC" else 1]
    if same == [2]:
        raise UsageError(
            f"module {path} returns shape {shape}, with channels in the middle; tap another "
            f"module by {option('taps')}"
        )
    return "[hwc]" if same == [3] else ""
