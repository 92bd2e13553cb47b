"""What a network is: the description that is shipped to workers, and what builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.networks.weights import Source
from pipeline.spec import Tap

if TYPE_CHECKING:
    import torch

Triple = tuple[float, float, float]

State = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Network:
    """What a network is, without its weights: enough for a spec, small enough to ship.

    Attributes:
        name: The name by which it is asked for, and which the spec states.
        weights_sha256: The digest of the file of weights, hex.
        taps: The layers that are observed.
        height: Of the input, in pixels.
        width: Of the input, in pixels.
        mean: Of each channel, scaled to [0, 1].
        std: The standard deviation of each channel, scaled to [0, 1].
        weights_uri: Where the weights are, unless they are those that come with the name.
        modules: The module observed for each tap, if that is not the tap's own name. `NAME[0]` is
            its first token only, `NAME[hwc]` a module whose channels come last.
        spare: Modules of the classifier that no tap needs.
        folded: Whether batch norms are folded into convolutions.
        built_by: `module:function` that builds it, for a network that a user has registered.
        depthwise: Whether it has convolutions of one channel each.
    """

    name: str
    weights_sha256: str
    taps: tuple[Tap, ...]
    height: int
    width: int
    mean: Triple
    std: Triple
    weights_uri: str | None = None
    modules: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    folded: bool = False
    built_by: str = ""
    depthwise: bool = False

    @property
    def observed(self) -> tuple[str, ...]:
        """The module of every tap, in the notation of `modules`."""
        return self.modules or tuple(tap.name for tap in self.taps)


@dataclass(frozen=True)
class Architecture:
    """What a name means: how its network is built, observed, and loaded.

    Attributes:
        build: Makes it with random weights, for square images of the side given. For None it is
            the size that the name says. Networks that take any size ignore the side.
        height: Of the input, in pixels.
        width: Of the input, in pixels.
        mean: Of each channel, scaled to [0, 1].
        std: The standard deviation of each channel, scaled to [0, 1].
        source: Where its own weights are, or None if it has none.
        heads: Its classifier's modules. Weights may lack them if no tap needs them.
        ignored: Modules that the weights may hold and the architecture does not have.
        layers: The reference's layer names with their modules. Without them, taps are chosen by
            the network's structure.
        taps: The globs that choose taps when none are asked for, or None for the choice by
            structure.
        convert: Turns a state dict of the weights' own layout into one of the model's.
        built_by: `module:function` that builds it, for a network that a user has registered.
    """

    build: Callable[[int | None], Any]
    height: int
    width: int
    mean: Triple
    std: Triple
    source: Source | None
    heads: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    layers: tuple[tuple[str, str], ...] = ()
    taps: str | None = None
    convert: Callable[[State, Any], State] = lambda state, model: state
    built_by: str = ""
