"""Decides whether so many unreadable images are allowed, for builds, calibrations and rankings."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pipeline.errors import GateError
from pipeline.wording import count_of, option

GATE_FAILURES = 5
"""How many failures the message lists."""


def allowed_failures(limit: float, candidates: int) -> int:
    """Returns how many of `candidates` may fail.

    Args:
        limit: Below 1, a fraction of the candidates, rounded down; from 1 up, a number.
        candidates: How many images there are, readable or not.
    """
    # Exactly, as 0.29 * 100 is less than 29 in floating point.
    return int(Fraction(str(limit)) * candidates) if limit < 1 else int(min(limit, candidates))


def require_few_failures(
    what: str,
    failed: int,
    candidates: int,
    limit: float,
    failures: Sequence[object],
    *,
    resumes: bool = True,
    rerun: str = "rerun",
) -> None:
    """Checks the number of failures against the limit.

    Args:
        what: The dataset or source that the message names.
        failed: How many images could not be read.
        candidates: How many images there are, readable or not.
        limit: `max_failures`, as `allowed_failures` takes it.
        failures: Some or all of the failures, to be listed.
        resumes: Whether the same call with a higher limit goes on from here.
        rerun: What to do with a higher limit, if the caller may have no such option.

    Raises:
        GateError: More images failed than are allowed.
    """
    if failed <= allowed_failures(limit, candidates):
        return
    first = "\n  ".join(str(failure) for failure in failures[:GATE_FAILURES])
    higher = ", which goes on from here" if resumes else ""
    share = f"{100 * limit:g}% of the images"
    allowed = share if 0 < limit < 1 else count_of(allowed_failures(limit, candidates), "image")
    raise GateError(
        f"{what}: {failed:,} of {count_of(candidates, 'image')} could not be read; the limit is "
        f"{allowed}. No result was written. Repair or exclude these images, or {rerun} with a "
        f"higher {option('max_failures')}{higher}. First:\n  {first}"
    )
