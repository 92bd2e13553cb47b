"""reporting.html.page_data: TODO-DOC"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.comparing import Matrix


@dataclass(frozen=True)
class Sample:
    """An image of a dataset, small: `image` is its `data:` URI."""

    name: str
    image: str


@dataclass(frozen=True)
class Panel:
    """What the page tells of one dataset. `line`: its heading, after its name.

    `reasons`: how many images failed for which; `failures`: some of them. `notes`: what is not
    there, and why.
    """

    line: str
    facts: tuple[tuple[str, str], ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    failures: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Neuron:
    """A neuron and its distance, in bins, between a pair; shares of activations in equal parts.

    `a`, `b`: of either dataset, 0 to 999 of the larger's most; from `low` to `high`, a part of the
    neuron's range that leaves out next to nothing. `weight`: what the lens gives it. `corrected`:
    the distance for the sizes of the samples, with the ends of its 95% interval; `q`: over all
    neurons of the pair; None where that is not known.
    """

    layer: str
    neuron: int
    emd: float
    low: float
    high: float
    a: tuple[int, ...]
    b: tuple[int, ...]
    weight: float = 1.0
    corrected: tuple[float, float, float] | None = None
    q: float | None = None


@dataclass(frozen=True)
class Seen:
    """What one matrix's lens shows. `neurons`: pairs (i < j) -> the neurons that differ most;
    `note` stands where a pair has none. `weightless`: layers that the lens gives no weight.
    """

    neurons: Mapping[tuple[int, int], Sequence[Neuron]] = field(default_factory=dict)
    note: str = "No histograms were read for this page."
    weightless: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Page:
    """`matrices`: of the same datasets, through different lenses; `seen`: of each, or none.
    `shared`: facts that are the same for every dataset.
    """

    matrices: Sequence[Matrix]
    panels: Sequence[Panel]
    seen: Sequence[Seen] = ()
    about: str = ""
    notes: tuple[str, ...] = ()
    title: str = ""
    shared: tuple[tuple[str, str], ...] = ()
