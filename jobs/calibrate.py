"""Measure the ranges of an extractor's neurons over images."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.build import engine_for
from jobs.shell import (
    JsonOption,
    LogFormat,
    LogFormatOption,
    RayOption,
    guarded,
    print_json,
    progress,
    run_alone,
)
from pipeline.building import CalibrationRequest
from pipeline.spec import Resources

if TYPE_CHECKING:
    from pipeline.building import Calibration


@guarded
def calibrate(
    request: CalibrationRequest,
    resources: Resources,
    ray_address: RayOption = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Measure each neuron's range, widen it by 1.2 about the centre, and write all to a file.

    The same command again does only what is missing.
    """
    from pipeline.building import calibrate as measure

    with engine_for(resources, ray_address) as engine:
        measured = measure(request, engine, resources, progress())
    if as_json:
        print_json(summary(measured) | {"out": request.out})
    else:
        print(f"{sentence(measured)} in {request.out}")


def summary(measured: Calibration) -> dict[str, object]:
    return {
        "digest": measured.ranges.digest,
        "images": measured.images,
        "failed": len(measured.failures),
        "failures": [asdict(failure) for failure in measured.failures],
        "ignored": measured.ignored,
        "duplicates": measured.duplicates,
        "nonfinite": measured.nonfinite,
        "quantile": measured.quantile,
        **(measured.found.stated if measured.found else {}),
    }


def sentence(measured: Calibration) -> str:
    ignored = sum(measured.ignored.values())
    notes = [f"{len(measured.failures):,} could not be read"]
    notes += [f"{ignored:,} files of other kinds ignored"] if ignored else []
    notes += [f"{measured.duplicates:,} duplicates dropped"] if measured.duplicates else []
    notes += [f"{measured.nonfinite:,} activations not finite"] if measured.nonfinite else []
    if found := measured.found:
        notes += [f"from quantile {measured.quantile:g}, to {found.resolution:.1%} of the range"]
        notes += [f"{found.unresolved:,} neurons less closely"] if found.unresolved else []
    return f"ranges {measured.ranges.digest} of {measured.images:,} images ({', '.join(notes)})"


if __name__ == "__main__":
    run_alone(calibrate)
