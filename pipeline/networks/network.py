"""networks.network: TODO-DOC"""

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

    `modules`: the module observed for each tap, where that is not the tap's own name; `NAME[0]` is
    its first token only, `NAME[hwc]` one whose channels come last. `spare`: parts of the classifier
    that no tap needs. `folded`: whether batch norms are folded into convolutions.
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

    @property
    def observed(self) -> tuple[str, ...]:
        """The module of every tap, in the same notation."""
        return self.modules or tuple(tap.name for tap in self.taps)


@dataclass(frozen=True)
class Architecture:
    """What a name means. `build(side)` makes it with random weights, for square images of `side`.

    `side` None is the size that the name says; networks that take any size ignore it. `heads`: its
    classifier's modules, whose weights may be missing where no tap needs them. `ignored`: modules
    that the weights may hold and the architecture has not. `layers`: the reference's layer names
    with their modules, else the taps are chosen by structure.
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
    convert: Callable[[State, Any], State] = lambda state, model: state
