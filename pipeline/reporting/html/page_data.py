"""The values that the page of a matrix shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.comparing import Matrix
from pipeline.explaining import PairNeuron


@dataclass(frozen=True)
class Sample:
    """A small image of a dataset.

    Attributes:
        name: The name of the image's file.
        image: Its `data:` URI.
    """

    name: str
    image: str


@dataclass(frozen=True)
class Panel:
    """What the page says about one dataset.

    Attributes:
        line: What stands after the dataset's name in its heading.
        facts: Names and values of its provenance.
        reasons: How many images failed for each reason.
        failures: Some of the failures.
        samples: Some of its images.
        notes: What is missing, and why.
    """

    line: str
    facts: tuple[tuple[str, str], ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    failures: tuple[str, ...] = ()
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """Leads to another page.

    Attributes:
        text: What it says.
        href: The address of the page.
    """

    text: str
    href: str


@dataclass(frozen=True)
class RankingLink:
    """Leads to the page of a ranking.

    Attributes:
        name: The dataset that images were ranked against.
        text: What was ranked, and by what.
        href: The address of the page.
    """

    name: str
    text: str
    href: str


@dataclass(frozen=True)
class Seen:
    """What one matrix shows through its lens.

    Attributes:
        neurons: For each pair (i < j), the neurons that differ most.
        note: What the page says for a pair without neurons.
        weightless: The layers that the lens gives no weight.
    """

    neurons: Mapping[tuple[int, int], Sequence[PairNeuron]] = field(default_factory=dict)
    note: str = "No histograms were read for this page."
    weightless: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Page:
    """All that the page of a snapshot shows.

    Attributes:
        matrices: Matrices of the same datasets, through different lenses.
        panels: One panel per dataset.
        seen: What each matrix shows, or nothing.
        about: Where all of it comes from.
        notes: What a reader should know first.
        title: The title; empty for the usual one.
        explained: For each explained pair (i < j), the address of its explanation.
        pair_pages: Where the explanation of every pair is, as `i-j.html`, or empty.
        rankings: The pages of rankings.
        dataset_pages: The address of each dataset's own page, or nothing.
        snapshot: The words by which a command reads the same datasets: their catalogue, and when.
        shared: Facts that are the same for every dataset.
        network: Layers that are spread over the whole network, which tell how deep each layer
            lies; none if that is not known, and then the page names no stages.
    """

    matrices: Sequence[Matrix]
    panels: Sequence[Panel]
    seen: Sequence[Seen] = ()
    about: str = ""
    notes: tuple[str, ...] = ()
    title: str = ""
    snapshot: tuple[str, ...] = ()
    pair_pages: str = ""
    explained: Mapping[tuple[int, int], str] = field(default_factory=dict)
    rankings: Sequence[RankingLink] = ()
    dataset_pages: Sequence[str] = ()
    shared: tuple[tuple[str, str], ...] = ()
    network: tuple[str, ...] = ()
