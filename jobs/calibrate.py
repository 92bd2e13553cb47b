"""Measure the ranges of an extractor's neurons over images."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.build import Crop, Exif, Resize, engine_for
from jobs.shell import (
    GpusOption,
    ImageColumnOption,
    JsonOption,
    LogFormat,
    LogFormatOption,
    RayOption,
    ThreadsOption,
    WorkersOption,
    guarded,
    print_json,
    progress,
    run_alone,
)

if TYPE_CHECKING:
    from pipeline.building import Calibration


@guarded
def calibrate(
    sources: Annotated[list[str], typer.Argument(help="Folders, globs, lists or urls of images.")],
    extractor: Annotated[str, typer.Option(help="The network.")] = "efficientnet_lite0",
    weights: Annotated[str | None, typer.Option(help="Url of other weights for it.")] = None,
    out: Annotated[str, typer.Option(help="Where the ranges go.")] = "ranges.parquet",
    quantile: Annotated[
        float | None,
        typer.Option(help="Leave out this share of activations at either end (as 0.001)."),
    ] = None,
    max_failures: Annotated[
        float, typer.Option(help="Unreadable images allowed: a fraction, or a number from 1 up.")
    ] = 0.01,
    limit: Annotated[
        int | None, typer.Option(help="So many images of all sources, the same each run.")
    ] = None,
    include: Annotated[str | None, typer.Option(help="Only names that match this glob.")] = None,
    exclude: Annotated[str | None, typer.Option(help="No names that match this glob.")] = None,
    image_column: ImageColumnOption = None,
    resize: Annotated[Resize, typer.Option(help="How images are resized.")] = Resize.clean,
    exif: Annotated[Exif, typer.Option(help="Whether EXIF turns images.")] = Exif.apply,
    crop: Annotated[Crop, typer.Option(help="A square before the resize.")] = Crop.none,
    taps: Annotated[
        str | None, typer.Option(help="What to observe: globs of module names, by commas.")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option(help="Name of an image decoder of your own.")
    ] = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    gpus_per_worker: GpusOption = 0.0,
    ray_address: RayOption = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Measure each neuron's range, widen it by 1.2 about the centre, write it to a file.

    The same command again does only what is missing.
    """
    from pipeline.building import calibrate as measure
    from pipeline.spec import Resources

    resources = Resources(workers=workers, threads=threads, gpus_per_worker=gpus_per_worker)
    with engine_for(resources, ray_address) as engine:
        measured = measure(
            sources,
            out,
            engine,
            extractor=extractor,
            weights=weights,
            quantile=quantile,
            resize=resize.value,
            exif=exif.value,
            crop=crop.value,
            taps=taps,
            decoder=decoder,
            limit=limit,
            include=include,
            exclude=exclude,
            image_column=image_column,
            max_failures=max_failures,
            resources=resources,
            progress=progress(),
        )
    if as_json:
        print_json(summary(measured) | {"out": out})
    else:
        print(f"{sentence(measured)} in {out}")


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
