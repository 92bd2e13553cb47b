"""The options of the page of a snapshot: each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pipeline.catalogue import SnapshotKeywords, SnapshotOptions
from pipeline.comparing import FrechetOptions
from pipeline.options import Option

SHOWN_IMAGES = 6
"""The default number of images shown for a dataset."""

EXPLAINED_PAIRS = 12
"""The default number of pairs that a report of many pages explains."""


@dataclass(frozen=True, kw_only=True)
class ReportOptions(SnapshotOptions, FrechetOptions):
    """The options of the page of a snapshot."""

    samples: Annotated[int, Option("Number of images of each dataset on the page.", least=0)] = (
        SHOWN_IMAGES
    )
    explained: Annotated[
        int | None,
        Option(
            "Number of pairs that --site explains: the nearest of those that differ first, then "
            f"others (default: {EXPLAINED_PAIRS}).",
            least=0,
        ),
    ] = None


class ReportKeywords(SnapshotKeywords, total=False):
    """The options of `ReportOptions` as keywords of a function, for type checkers.

    A test holds it equal to `ReportOptions`; defaults and help are there.
    """

    fd: bool
    samples: int
    explained: int | None
