"""What the gate says of a bound: a number, whether the bound holds, and how often chance breaks it.

>>> str(CountVerdict(ImagesBound(dataset="photos", min_images=100), images=120, failed=0))
'photos, images: 120, at least 100: holds'
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, Literal

from pipeline.comparing import CONFIDENCE
from pipeline.errors import VdnaError
from pipeline.refreshing.bound_kinds import (
    AnyBound,
    DistanceBound,
    FailedBound,
    ImagesBound,
    MoveBound,
)
from pipeline.refreshing.break_reasons import BreakReason
from pipeline.refreshing.former_versions import FormerVersion
from pipeline.wording import digits_that_tell, in_bins

Outcome = Literal["holds", "broken", "no earlier version yet", "not judged"]

BY_CHANCE = round((1 - CONFIDENCE) / 2, 9)
"""How often noise alone breaks a bound that is just met and is judged by `low`, at most."""


@dataclass(frozen=True)
class Judged:
    """The version that a `MoveBound` judges, and the earlier one.

    Attributes:
        commit: Number of the commit that made the version.
        against: Number of a commit that holds the earlier version; None if there is none yet.
        new: Whether this refresh made the version.
        former: The earlier version under a name that the dataset had before it was renamed, if
            there is none under its present name.
    """

    commit: int
    against: int | None
    new: bool
    former: FormerVersion | None = None


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a bound on a distance. Numbers that are not known are NaN.

    Attributes:
        bound: The bound.
        emd: The distance, in bins.
        emd_corrected: The distance without what two samples of one distribution would show.
        low: The lower end of its 95% interval.
        high: The upper end.
        shared: Why there is no valid interval, if both sides share images; empty otherwise.
        error: Why the bound could not be judged; None if it was.
        judged: Of a `MoveBound`, what was judged; None if that is not known.
        reasons: If the bound is broken, the neurons that differ most, with images that show it.
        unexplained: Why there are none; empty if that was not asked, or they were found.
    """

    bound: DistanceBound
    emd: float = nan
    emd_corrected: float = nan
    low: float = nan
    high: float = nan
    shared: str = ""
    error: VdnaError | None = None
    judged: Judged | None = None
    reasons: tuple[BreakReason, ...] = ()
    unexplained: str = ""

    @property
    def value(self) -> float:
        """The distance that is judged: `low` if it is known, else `emd`."""
        return self.low if isfinite(self.low) else self.emd

    @property
    def limit(self) -> float:
        """The number that it is judged by."""
        return self.bound.most

    @property
    def outcome(self) -> Outcome:
        """What became of the bound."""
        if self.error:
            return "not judged"
        if self.judged and self.judged.against is None:
            return "no earlier version yet"
        return "holds" if self.value <= self.bound.most else "broken"

    @property
    def holds(self) -> bool:
        """Whether the bound is kept."""
        return self.outcome == "holds"

    @property
    def false_alarm_rate(self) -> float | None:
        """How often noise alone breaks the bound if it is just met, at most; None if not known."""
        return BY_CHANCE if isfinite(self.low) else None

    @property
    def row(self) -> dict[str, Any]:
        """The verdict for JSON, with None for NaN."""
        numbers = ("emd", "emd_corrected", "low", "high", "value")
        values = {name: float(getattr(self, name)) for name in numbers}
        row: dict[str, Any] = {"kind": self.bound.kind, **self.bound.model_dump()}
        row["sides"] = list(self.bound.names)
        row |= {name: value if isfinite(value) else None for name, value in values.items()}
        if isinstance(self.bound, MoveBound):
            known = self.judged
            row["commit"] = known and known.commit
            row["against_commit"] = known and known.against
            row["new_version"] = known and known.new
        row["reasons"] = [reason.row for reason in self.reasons]
        row["unexplained"] = self.unexplained or None
        return row | _ending(self)

    def __str__(self) -> str:
        bound, what = self.bound, self.bound.subject
        if self.error:
            return f"{what}: not judged: {self.error}"
        if self.judged and self.judged.against is None:
            if self.judged.former:
                why = self.judged.former.advice
                return f"{what}: no earlier version of this name, so nothing is judged: {why}"
            return f"{what}: no earlier version yet, so nothing is judged"
        if isfinite(self.low):
            distance = f"{in_bins(self.emd_corrected)} [{self.low:.4g}, {self.high:.4g}]"
            outcome = "surely more" if not self.holds else "holds"
            if self.holds and self.emd_corrected > bound.most:
                outcome = "holds, as it is not surely more"
        elif isfinite(self.emd):
            distance = f"{in_bins(self.emd)}, without an interval"
            distance += f", as {self.shared}" if self.shared else ""
            outcome = "holds" if self.holds else "more"
        else:
            distance, outcome = "a distance that is not defined", "cannot hold"
        if self.judged and not self.judged.new:
            outcome += (
                f"; this refresh made no new version, so that of commit {self.judged.commit} "
                "is judged"
            )
        most = f"{bound.most:.{digits_that_tell(bound.most)}g}"
        return f"{what}: {distance}, at most {most}: {outcome}"


@dataclass(frozen=True)
class CountVerdict:
    """What the gate says of a bound on a number of images.

    Attributes:
        bound: The bound.
        images: How many images were counted; None if that is not known.
        failed: How many images could not be read.
        error: Why the bound could not be judged; None if it was.
    """

    bound: FailedBound | ImagesBound
    images: int | None = None
    failed: int | None = None
    error: VdnaError | None = None

    @property
    def value(self) -> int | None:
        """The number that is judged."""
        return self.failed if isinstance(self.bound, FailedBound) else self.images

    @property
    def limit(self) -> int | None:
        """The number that it is judged by; None if that is not known."""
        if isinstance(self.bound, ImagesBound):
            return self.bound.min_images
        if self.images is None or self.failed is None:
            return None
        return self.bound.allowed(self.images + self.failed)

    @property
    def outcome(self) -> Outcome:
        """What became of the bound."""
        if self.value is None or self.limit is None:
            return "not judged"
        fewest = isinstance(self.bound, ImagesBound)
        kept = self.value >= self.limit if fewest else self.value <= self.limit
        return "holds" if kept else "broken"

    @property
    def holds(self) -> bool:
        """Whether the bound is kept."""
        return self.outcome == "holds"

    @property
    def false_alarm_rate(self) -> float | None:
        """How often noise alone breaks the bound: never, as the number is exact."""
        return None if self.error else 0.0

    @property
    def row(self) -> dict[str, Any]:
        """The verdict for JSON."""
        numbers = {"images": self.images, "failed": self.failed, "value": self.value}
        return {"kind": self.bound.kind, **self.bound.model_dump(), **numbers, **_ending(self)}

    def __str__(self) -> str:
        bound, what = self.bound, f"{self.bound.dataset}, "
        what += "failed images" if isinstance(bound, FailedBound) else "images"
        if self.images is None or self.failed is None:
            return f"{what}: not judged: {self.error}"
        if isinstance(bound, FailedBound):
            candidates, outcome = self.images + self.failed, "more"
            number, limit = f"{self.failed:,} of {candidates:,}", bound.max_failed
            share = f" ({100 * limit:g}%)" if 0 < limit < 1 else ""
            limited = f"at most {bound.allowed(candidates):,}{share}"
        else:
            number, outcome = f"{self.images:,}", "fewer"
            limited = f"at least {bound.min_images:,}"
        return f"{what}: {number}, {limited}: {'holds' if self.holds else outcome}"


AnyVerdict = Verdict | CountVerdict


def _ending(verdict: AnyVerdict) -> dict[str, Any]:
    """Returns what the rows of all verdicts end with."""
    waits = verdict.outcome == "no earlier version yet"
    return {
        "name": verdict.bound.label,
        "limit": verdict.limit,
        "holds": None if waits else verdict.holds,
        "outcome": verdict.outcome,
        "false_alarm_rate": verdict.false_alarm_rate,
        "error": str(verdict.error) if verdict.error else None,
        "text": str(verdict),
    }


def unjudged(bound: AnyBound, error: VdnaError) -> AnyVerdict:
    """Returns the verdict on a bound that could not be judged, and why."""
    if isinstance(bound, DistanceBound):
        return Verdict(bound, error=error)
    return CountVerdict(bound, error=error)
