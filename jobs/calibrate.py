"""Measure the ranges of an extractor's neurons over images."""

from __future__ import annotations

from jobs.output import print_json, say
from jobs.shell import JsonOption, RayOption, engine_for, guarded, run_alone
from pipeline.building import CalibrationRequest
from pipeline.events import Listener
from pipeline.spec import Resources


@guarded
def calibrate(
    request: CalibrationRequest,
    resources: Resources,
    progress: Listener,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure each neuron's range, widen it by 1.2 about the centre, and write all to a file.

    The same command again does only what is missing.
    """
    from pipeline import api
    from pipeline.reporting import calibration_json, calibration_sentence

    with engine_for(resources, ray_address, progress) as engine:
        measured = api.calibrate(request, engine=engine, resources=resources, progress=progress)
    if as_json:
        print_json(calibration_json(measured) | {"out": request.out})
    else:
        say(f"{calibration_sentence(measured)} in {request.out}")


if __name__ == "__main__":
    run_alone(calibrate)
