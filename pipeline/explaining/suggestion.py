"""Orders datasets by how near they are to a target, for choosing what to train on.

    >>> suggest(Catalogue("dnas"), "harbour", ["synthetic", "city"])         # doctest: +SKIP

The distance is that of the last layer that is observed. In the embedded network, these are the
features that a classifier learns from. The experiment `experiments.selection` measured how well
this order predicts accuracy there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Unpack

from pipeline.catalogue import Catalogue, Version, VersionName
from pipeline.comparing import ALL, Effort, nearest, spec_of
from pipeline.errors import UsageError
from pipeline.explaining.explain_options import SuggestKeywords, SuggestOptions
from pipeline.notebook import data_frame, html_table, polars_frame
from pipeline.wording import some_of

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

MEASURED_SPEC = "fc10cf4635cd7de480def16196698466"
"""Digest of the spec that the experiment measured: the default one of the embedded network."""

MEASURED_LAYER = "bn2"
"""The layer that the experiment measured: the last one of that network."""


@dataclass(frozen=True)
class Candidate:
    """A dataset that may be trained on.

    Attributes:
        name: Its name.
        rank: Its place in the order; 1 is the nearest. Those whose distance is not corrected come
            after all others.
        images: Number of its images.
        emd: Its distance to the target in bins.
        emd_corrected: The same, corrected for the sizes of both samples; NaN if it is not known.
        low: Lower end of the 95% interval of the distance; NaN if it is not known.
        high: Upper end of that interval.
        unclear: Whether it may be the nearest, too: its interval begins below the end of the first
            candidate's, or one of the two is not known. The first one is never so.
        q: How likely it is to look this different by chance, adjusted for the candidates.
        paired: Share of images in pairs with the target's; NaN if it is not known.
    """

    name: str
    rank: int
    images: int
    emd: float
    emd_corrected: float
    low: float
    high: float
    unclear: bool
    q: float
    paired: float

    @property
    def is_corrected(self) -> bool:
        """Whether its distance is corrected for the sizes of both samples."""
        return isfinite(self.emd_corrected)

    @property
    def distance(self) -> float:
        """The corrected distance if it is known, or else the plain one."""
        return self.emd_corrected if self.is_corrected else self.emd


@dataclass(frozen=True)
class Suggestion:
    """Candidates in the order of their distance to a target.

    Attributes:
        target: Name of the target.
        images: Number of its images.
        spec: Digest of the spec.
        extractor: Name of the network.
        layer: The layer that was compared, or `all`.
        is_measured: Whether the experiment measured distances of this network, layer and
            preprocessing.
        candidates: The candidates, the nearest first.
        undefined: Names of candidates without a distance.
        same: Names of candidates that are versions of the target's dataset, or have its DNA.
        apart: Names of datasets that were left out without being asked, as they have other specs.
    """

    target: str
    images: int
    spec: str
    extractor: str
    layer: str
    is_measured: bool
    candidates: tuple[Candidate, ...]
    undefined: tuple[str, ...]
    same: tuple[str, ...]
    apart: tuple[str, ...]

    @property
    def cells(self) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
        """Columns and rows of the table of `to_pandas`."""
        return tuple(of.name for of in fields(Candidate)), [astuple(of) for of in self.candidates]

    def to_pandas(self) -> pd.DataFrame:
        """Returns a table with one row a candidate, the nearest first."""
        return data_frame(*self.cells)

    def to_polars(self) -> pl.DataFrame:
        """Returns the table of `to_pandas` in Polars."""
        return polars_frame(*self.cells)

    def _repr_html_(self) -> str:
        columns, rows = self.cells
        return html_table(f"nearest to {self.target}, by {self.layer}", columns, rows)


def suggest(
    catalogue: Catalogue,
    target: str,
    candidates: Sequence[str] = (),
    *,
    effort: Effort | None = None,
    **options: Unpack[SuggestKeywords],
) -> Suggestion:
    """Orders candidates by their distance to a target, corrected for the samples' sizes.

    Args:
        catalogue: Where the datasets are.
        target: The dataset that a model is to do well on.
        candidates: The datasets that it may be trained on; none for all others.
        effort: How to compute; None for this process with all its cores.
        **options: The options of `SuggestOptions`.

    Returns:
        The candidates, the nearest first. Those whose distance cannot be corrected come last.

    Raises:
        NotFound: If a name is unknown.
        SpecMismatch: If a dataset is only known under other specs; the message names the fields.
        UsageError: If the target is one of the candidates, or there is none. For an unknown layer.
    """
    chosen = SuggestOptions(**options)
    if target in candidates:
        raise UsageError(f"{target} is the target, and a candidate, too; leave it out of these")
    at = chosen.at
    if at is None:  # all that is read is of one commit, whatever comes meanwhile
        at = catalogue.head().number or None
    names, apart, spec = [target, *candidates], list[str](), chosen.spec
    if not candidates:
        spec = catalogue.find(target, at, chosen.spec).spec
        names, apart = _all_others(catalogue, target, at, spec)
    layers = spec_of(catalogue, names, at=at, spec=spec).layers
    layer = layers[-1] if chosen.layer is None else chosen.layer
    found = nearest(
        catalogue,
        names,
        near=target,
        layer=None if layer == ALL else layer,
        effort=effort,
        at=at,
        spec=spec,
    )
    versions = catalogue.find_all(found.names, at, found.spec_digest)
    rows = found.table_of(layer).to_pylist()
    unknown = set(found.names) - {target} - {row["b"] for row in rows}
    own = VersionName.parse(target).dataset
    same = (
        name
        for name, version in versions.items()
        if name != target
        and (VersionName.parse(name).dataset == own or version.dna == versions[target].dna)
    )
    return Suggestion(
        target,
        versions[target].images,
        found.spec_digest,
        catalogue.spec(found.spec_digest).extractor,
        layer,
        (found.spec_digest, layer) == (MEASURED_SPEC, MEASURED_LAYER),
        _in_order(rows, versions),
        tuple(name for name in found.names if name in unknown),
        tuple(same),
        tuple(apart),
    )


def _all_others(
    catalogue: Catalogue, target: str, at: int | str | None, spec: str
) -> tuple[list[str], list[str]]:
    """Returns the target and all other datasets of its spec, and those that have other specs."""
    own = VersionName.parse(target).dataset
    others = [name for name in catalogue.names(at, spec) if name != own]
    apart = sorted(catalogue.at(at).datasets.keys() - {own, *others})
    if not others:
        elsewhere = f"; built under other specs: {some_of(apart)}" if apart else ""
        raise UsageError(
            f"there is no candidate: no other dataset than {own} has its spec "
            f"{spec[:12]}{elsewhere}"
        )
    return [target, *others], apart


def _in_order(
    rows: Sequence[Mapping[str, Any]], versions: Mapping[str, Version]
) -> tuple[Candidate, ...]:
    """Returns the candidates of a table's rows by their distance, and uncorrected ones last."""
    columns = ("emd", "emd_corrected", "low", "high", "q", "paired")
    made = []
    for row in rows:
        numbers = {name: nan if row[name] is None else row[name] for name in columns}
        images = versions[row["b"]].images
        made.append(Candidate(row["b"], row["rank"], images, unclear=False, **numbers))
    # Equal ones are by their plain distance.
    made.sort(key=lambda candidate: (not candidate.is_corrected, candidate.distance))
    return tuple(
        replace(one, rank=rank, unclear=rank > 1 and not one.low > made[0].high)  # NaN is unclear
        for rank, one in enumerate(made, 1)
    )
