"""Refuses to submit a build that would cost more than it may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.output import tell

if TYPE_CHECKING:
    from pipeline.events import Listener


def require_budget(
    words: Sequence[str],
    options: Mapping[str, Any],
    budget: float,
    price: str | None,
    measured: str | None,
    progress: Listener,
) -> None:
    """Forecasts what a build costs, and refuses it if it may cost more than a budget.

    Args:
        words: The command and its arguments.
        options: What they were read as, by the names of the options.
        budget: What it may cost, in the currency of the prices.
        price: A file of prices.
        measured: A file with the speed of a machine of the cluster, or None to measure here.
        progress: Is told how the forecast goes on.

    Raises:
        UsageError: It may cost more, or its cost cannot be known.
    """
    from pipeline import api
    from pipeline.building import ForecastRequest
    from pipeline.errors import UsageError
    from pipeline.options import options_of
    from pipeline.reporting import cost_words
    from pipeline.spec import Resources

    if words[0] != "build":
        raise UsageError(f"--budget goes with build, and what {words[0]} costs is not known")
    if price is None:
        raise UsageError("--budget needs the prices; give a file of them by --price")
    given = {**options, "price": price, "measured": measured}

    request, resources = (
        {field.name: given[field.name] for field in options_of(model) if field.name in given}
        for model in (ForecastRequest, Resources)
    )
    found = api.forecast(
        ForecastRequest(**request), resources=Resources(**resources), progress=progress
    )
    cost = cost_words(found)
    if found.cost is None or found.cost.high > budget:
        raise UsageError(
            f"{found.source} would cost {cost}, and --budget is {budget:,.2f}; nothing was "
            "submitted"
        )
    tell(f"{found.source} will cost {cost}")
