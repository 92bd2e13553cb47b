"""The options that choose versions of datasets, and how they are verified: each declared once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, TypedDict

from pipeline.errors import UsageError, shortened
from pipeline.options import Option, Options
from pipeline.wording import option, some_of

RECOUNTED_SHARDS = 3
"""How many shards of each dataset are counted again by default."""

MOST_DAYS = 36_500.0
"""A hundred years: more days than this are taken as these."""

MOST_OUTLIERS = 100
"""How many of a dataset's own images a ranking keeps as the farthest, at most."""

EVERY_SHARD = "all"


@dataclass(frozen=True, kw_only=True)
class SpecOptions(Options):
    """The option that chooses the spec."""

    spec: Annotated[
        str | None,
        Option(
            "Use versions of this spec: its digest, or the beginning of it "
            "(default: the catalogue's)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class CommitOptions(Options):
    """The option that chooses the commit."""

    at: Annotated[
        int | str | None,
        Option(
            "Look at the catalogue as of this commit: its number, or a month, day or ISO time "
            "(default: the newest)."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions(CommitOptions, SpecOptions):
    """The options that choose versions of datasets."""


class SnapshotKeywords(TypedDict, total=False):
    """The options of `SnapshotOptions` as keywords of a function, for type checkers.

    A test holds it equal to `SnapshotOptions`; defaults and help are there.
    """

    at: int | str | None
    spec: str | None


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(SpecOptions):
    """The options of a verification."""

    all_versions: Annotated[
        bool, Option("Check every version that is kept, and the log.", flag="--all")
    ] = False
    deep: Annotated[bool, Option("Count some shards again, from the images.")] = False
    sample: Annotated[
        int | str,
        Option("With --deep: number of shards of each dataset to count, or 'all'."),
    ] = RECOUNTED_SHARDS
    seed: Annotated[
        int | None,
        Option("With --deep: seed of the choice of shards (default: a random one, printed)."),
    ] = None
    weights: Annotated[
        str | None,
        Option("With --deep: file or url of the weights, if they are not the network's own."),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample != EVERY_SHARD and not re.fullmatch("0*[1-9][0-9]{0,17}", str(self.sample)):
            raise UsageError(
                f"sample is {shortened(self.sample)}; give a number of shards from 1 up, or 'all'"
            )
        given = {
            "sample": str(self.sample) != str(RECOUNTED_SHARDS),
            "seed": self.seed is not None,
            "weights": self.weights is not None,
        }
        if not self.deep and any(given.values()):
            named = [option(name) for name, is_given in given.items() if is_given]
            raise UsageError(
                f"{some_of(named)} {'needs' if len(named) == 1 else 'need'} {option('deep')}, "
                "which counts shards again"
            )

    @property
    def shards(self) -> int | None:
        """How many shards of each dataset are counted again; None for all."""
        return None if self.sample == EVERY_SHARD else int(self.sample)


@dataclass(frozen=True, kw_only=True)
class RetentionOptions(Options):
    """The options that say which versions are kept: those that one of them keeps, and tags."""

    keep: Annotated[
        int | None,
        Option(
            "Number of versions of each dataset to keep, and none of one that was taken out "
            "(default: all, unless days are given). What has a tag is kept, too.",
            least=1,
        ),
    ] = None
    days: Annotated[
        float | None,
        Option(
            "Keep versions, also of datasets that were taken out, for this many days after another "
            "took their place, beside those that are kept by their number.",
            least=0,
        ),
    ] = None

    def since(self, now: datetime) -> datetime | None:
        """Returns the moment after which versions were current that `days` keeps.

        Args:
            now: The time to count back from.

        Returns:
            The moment; None without `days`.
        """
        return None if self.days is None else now - timedelta(days=min(self.days, MOST_DAYS))


class VerifyKeywords(TypedDict, total=False):
    """The options of `VerifyOptions` as keywords of a function, for type checkers.

    A test holds it equal to `VerifyOptions`; defaults and help are there.
    """

    all_versions: bool
    deep: bool
    sample: int | str
    seed: int | None
    weights: str | None
    spec: str | None
