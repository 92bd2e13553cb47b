"""Forecast what a build will take, before it begins."""

from __future__ import annotations

from jobs.output import print_json, say
from jobs.shell import JsonOption, guarded, run_alone
from pipeline.building import ForecastRequest
from pipeline.events import Listener
from pipeline.spec import Resources


@guarded
def plan(
    request: ForecastRequest,
    resources: Resources,
    progress: Listener,
    as_json: JsonOption = False,
) -> None:
    """Forecast the time, the machines and the cost of a build, from a sample that is counted here.

    Nothing is kept. A build of the same source takes the same options.
    """
    from pipeline import api
    from pipeline.reporting import forecast_json, forecast_lines

    found = api.forecast(request, resources=resources, progress=progress)
    if as_json:
        print_json(forecast_json(found))
    else:
        say(*forecast_lines(found))


if __name__ == "__main__":
    run_alone(plan)
