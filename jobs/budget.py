"""Refuses to submit a build that would cost more than it may."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import chdir, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.output import tell
from jobs.submission import names_in_catalogue

if TYPE_CHECKING:
    from pipeline.events import Listener


def require_budget(
    command: str,
    options: Mapping[str, Any],
    budget: float,
    working_dir: str | None,
    progress: Listener,
) -> None:
    """Forecasts what a build costs, and refuses it if it may cost more than a budget.

    Args:
        command: The command.
        options: Its options by their names, with `price`, a file of prices, and `measured`, a file
            with the speed of a machine of the cluster, or None to measure here.
        budget: What it may cost, in the currency of the prices.
        working_dir: The folder that the build will start in, or None.
        progress: Is told how the forecast goes on.

    Raises:
        UsageError: It may cost more, or its cost cannot be known.
    """
    from pipeline import api, storage
    from pipeline.building import ForecastRequest
    from pipeline.catalogue import Catalogue
    from pipeline.errors import UsageError
    from pipeline.options import options_of
    from pipeline.reporting import cost_words, hours_or_money
    from pipeline.spec import Resources

    if command != "build":
        raise UsageError(f"--budget goes with build, and what {command} costs is not known")
    if options["price"] is None:
        raise UsageError("--budget needs the prices; give a file of them by --price")
    given = dict(options)
    for name in ("price", "measured"):  # files of this folder, whichever the build starts in
        given[name] = given[name] and storage.canonical(given[name])
    if names_in_catalogue("ranges", given["ranges"]):
        given["ranges"] = Catalogue(given["catalogue"]).ranges_uri(given["ranges"])
    request, resources = (
        {field.name: given[field.name] for field in options_of(model) if field.name in given}
        for model in (ForecastRequest, Resources)
    )
    with chdir(working_dir) if working_dir and Path(working_dir).is_dir() else nullcontext():
        found = api.forecast(
            ForecastRequest(**request), resources=Resources(**resources), progress=progress
        )
    cost = cost_words(found)
    if found.cost is None or found.cost.high > budget:
        raise UsageError(
            f"{found.source} would cost {cost}, and --budget is {hours_or_money(budget)}; nothing "
            "was submitted"
        )
    tell(f"{found.source} will cost {cost}")
