"""The options of an explanation, a suggestion, a path over versions and a lens's fit: each once.

>>> ExplainOptions().top, FitOptions(ignore=["foggy:clear"]).focus
(20, None)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

from pipeline.altered_pictures import PICTURE_CHANGES
from pipeline.building import Weights
from pipeline.catalogue import SnapshotKeywords, SnapshotOptions, SpecOptions
from pipeline.comparing import RATED_VERSIONS
from pipeline.options import Option

ATTRIBUTE = "WITH:WITHOUT"
"""How an attribute is written: two datasets, with it and without."""

CHANGE_OR_ATTRIBUTE = f"CHANGE|{ATTRIBUTE}"
"""How what a lens ignores or keeps is written: a word of `PICTURE_CHANGES`, or an attribute."""

SampleGrouping = Literal["build", "stem"]
"""What keeps images of a sample in one fold."""

LOOK = 60
"""The default number of images of each dataset that a page looks at again."""


@dataclass(frozen=True, kw_only=True)
class ExplainOptions(SnapshotOptions):
    """The options of an explanation."""

    top: Annotated[int, Option("Number of neurons to show.", least=1)] = 20
    layers: Annotated[
        Sequence[str] | None,
        Option(
            "Look at this layer only (all: the whole network). Can be repeated.", flag="--layer"
        ),
    ] = None
    look: Annotated[
        int | None,
        Option(
            "Number of images of each dataset to send through the network again, to find those "
            f"that show the difference (default: {LOOK} for a page or --describe, otherwise 0).",
            least=0,
        ),
    ] = None
    weights: Weights = None
    describe: Annotated[
        str | None,
        Option(
            "Command that is asked what the images of each shown neuron have in common. It reads "
            "JSON, and writes text.",
            metavar="COMMAND",
        ),
    ] = None

    @property
    def looked(self) -> int:
        """Number of images of each dataset to look at again; 0 for none."""
        return (LOOK if self.describe else 0) if self.look is None else self.look


class ExplainKeywords(SnapshotKeywords, total=False):
    """The options of `ExplainOptions` as keywords of a function, for type checkers.

    A test holds it equal to `ExplainOptions`; defaults and help are there.
    """

    top: int
    layers: Sequence[str] | None
    look: int | None
    weights: str | None
    describe: str | None


@dataclass(frozen=True, kw_only=True)
class SuggestOptions(SnapshotOptions):
    """The options of a suggestion."""

    layer: Annotated[
        str | None, Option("Compare this layer (default: the last; all: the whole network).")
    ] = None


class SuggestKeywords(SnapshotKeywords, total=False):
    """The options of `SuggestOptions` as keywords of a function, for type checkers.

    A test holds it equal to `SuggestOptions`; defaults and help are there.
    """

    layer: str | None


@dataclass(frozen=True, kw_only=True)
class FitOptions(SnapshotOptions):
    """The options of the fit of a lens.

    An attribute is two datasets, WITH:WITHOUT, or WITH=WITHOUT for the same images with a change
    and without. A change that has a word is made for the fit, to a sample of the datasets' images.
    """

    focus: Annotated[
        str | None,
        Option(
            "See this attribute: give equal weight to the few neurons that react to it most.",
            metavar=ATTRIBUTE,
        ),
    ] = None
    top: Annotated[
        int | None, Option("Number of neurons that --focus chooses (default: 20).", least=1)
    ] = None
    layers: Annotated[
        Sequence[str] | None,
        Option("Let --focus choose neurons of this layer only. Can be repeated.", flag="--layer"),
    ] = None
    ignore: Annotated[
        Sequence[str],
        Option(
            "Take this attribute out of the distance, or a change that is made here to images of "
            f"the datasets: {', '.join(PICTURE_CHANGES)}. Can be repeated.",
            metavar=CHANGE_OR_ATTRIBUTE,
        ),
    ] = ()
    keep: Annotated[
        Sequence[str],
        Option(
            "Keep the distance of this attribute, or of such a change, as it is (default, if a "
            "change is ignored: the distances between datasets). Can be repeated.",
            metavar=CHANGE_OR_ATTRIBUTE,
        ),
    ] = ()
    non_negative: Annotated[
        bool,
        Option("Allow no negative weights: distances stay a metric, but less is ignored."),
    ] = False
    by_layer: Annotated[bool, Option("Give all neurons of a layer the same weight.")] = False
    sample: Annotated[
        int | None,
        Option("Number of images that a change is made to (default: 200).", least=1),
    ] = None
    sample_of: Annotated[
        Sequence[str],
        Option(
            "Draw the images that a change is made to from this dataset only. Can be repeated.",
            metavar="NAME",
        ),
    ] = ()
    group_by: Annotated[
        SampleGrouping,
        Option(
            "What keeps images on one side when a lens is fitted to some and scored on others: "
            "their folds in the build; or the stem of their files' names, which ends at the first "
            "hyphen, underscore, dot or space."
        ),
    ] = "build"
    weights: Weights = None


class FitKeywords(SnapshotKeywords, total=False):
    """The options of `FitOptions` as keywords of a function, for type checkers.

    A test holds it equal to `FitOptions`; defaults and help are there.
    """

    focus: str | None
    top: int | None
    layers: Sequence[str] | None
    ignore: Sequence[str]
    keep: Sequence[str]
    non_negative: bool
    by_layer: bool
    sample: int | None
    sample_of: Sequence[str]
    group_by: SampleGrouping
    weights: str | None


@dataclass(frozen=True, kw_only=True)
class DriftOptions(SpecOptions):
    """The options of a dataset's path over its versions."""

    reference: Annotated[
        str | None,
        Option(
            "The version that all others are compared with: a commit's number, -1 for the one "
            "before, a day or time, or a tag (default: the oldest one that is kept). Of windows, "
            "the days of one.",
            numeral=True,
        ),
    ] = None
    limit: Annotated[int, Option("Number of versions to look at, the newest ones.", least=2)] = (
        RATED_VERSIONS
    )
    top: Annotated[int, Option("Number of neurons to show.", least=1)] = 10
    window: Annotated[
        str | None,
        Option(
            "Follow windows of so many days, end to end, instead of versions: 7d for days of the "
            "calendar, or 7 for days that have images.",
            metavar="DAYS",
            numeral=True,
        ),
    ] = None


class DriftKeywords(TypedDict, total=False):
    """The options of `DriftOptions` as keywords of a function, for type checkers.

    A test holds it equal to `DriftOptions`; defaults and help are there.
    """

    reference: str | None
    limit: int
    top: int
    window: str | None
    spec: str | None
