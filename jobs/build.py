"""Build a dataset's DNA and commit it to the catalogue."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shell import (
    CatalogueOption,
    GpusOption,
    ImageColumnOption,
    JsonOption,
    LogFormat,
    LogFormatOption,
    RayOption,
    RelistOption,
    ThreadsOption,
    WorkersOption,
    guarded,
    print_json,
    progress,
    run_alone,
)

if TYPE_CHECKING:
    from pipeline.building import Result
    from pipeline.engine import Engine
    from pipeline.spec import Resources


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"


class Resize(StrEnum):
    clean = "clean"
    fast = "fast"


class Exif(StrEnum):
    apply = "apply"
    ignore = "ignore"


class Crop(StrEnum):
    none = "none"
    centre = "center"


@guarded
def build(
    name: Annotated[str, typer.Argument(help="Name of the dataset in the catalogue.")],
    source: Annotated[str, typer.Argument(help="Folder, glob, list, table or archive of images.")],
    catalogue: CatalogueOption,
    extractor: Annotated[str, typer.Option(help="The network.")] = "efficientnet_lite0",
    weights: Annotated[str | None, typer.Option(help="Url of other weights for it.")] = None,
    bins: Annotated[int, typer.Option(help="Bins of each neuron's histogram.")] = 1000,
    precision: Annotated[Precision, typer.Option(help="Of the network.")] = Precision.fp32,
    limit: Annotated[int | None, typer.Option(help="So many images, the same each run.")] = None,
    ranges: Annotated[str | None, typer.Option(help="File or digest of ranges.")] = None,
    resize: Annotated[Resize, typer.Option(help="How images are resized.")] = Resize.clean,
    exif: Annotated[Exif, typer.Option(help="Whether EXIF turns images.")] = Exif.apply,
    crop: Annotated[Crop, typer.Option(help="To a square, before the resize.")] = Crop.none,
    taps: Annotated[
        str | None, typer.Option(help="Globs of modules to observe: 'blocks.*,norm'.")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option(help="Name of an image decoder of your own.")
    ] = None,
    include: Annotated[str | None, typer.Option(help="Only names that match this glob.")] = None,
    exclude: Annotated[str | None, typer.Option(help="No names that match this glob.")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(help="What is kept in one fold: by leading folders (1), or a table's column."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="Each value's images are a dataset NAME/VALUE too: of a table's column, or of so "
            "many leading folders (1)."
        ),
    ] = None,
    image_column: ImageColumnOption = None,
    max_failures: Annotated[
        float, typer.Option(help="Unreadable images allowed: a fraction, or a number from 1 up.")
    ] = 0.01,
    shard_images: Annotated[int | None, typer.Option(help="Images a shard, of new shards.")] = None,
    layer_gaussian: Annotated[
        bool, typer.Option("--layer-gaussian", help="Keep each layer's covariance too, for FD.")
    ] = False,
    exemplars: Annotated[
        int | None,
        typer.Option(help="Images to remember by name of each neuron, those it reacts to most."),
    ] = None,
    exemplar_taps: Annotated[
        str | None, typer.Option(help="Globs of the layers that remember any: 'blocks.*,head'.")
    ] = None,
    relist: RelistOption = False,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    gpus_per_worker: GpusOption = 0.0,
    ray_address: RayOption = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Build a dataset's DNA and commit it. The same command again does only what is missing."""
    from pipeline.building import Request, build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.spec import Resources

    request = Request(
        name,
        source,
        extractor=extractor,
        weights=weights,
        bins=bins,
        precision=precision.value,
        ranges=ranges,
        resize=resize.value,
        exif=exif.value,
        crop=crop.value,
        taps=taps,
        decoder=decoder,
        limit=limit,
        include=include,
        exclude=exclude,
        group_by=group_by,
        image_column=image_column,
        max_failures=max_failures,
        shard_images=shard_images,
        layer_gaussian=layer_gaussian,
        exemplars=exemplars,
        exemplar_taps=exemplar_taps,
        by=by,
    )
    resources = Resources(workers=workers, threads=threads, gpus_per_worker=gpus_per_worker)
    with engine_for(resources, ray_address) as engine:
        (result,) = build_datasets(
            Catalogue(catalogue), [request], engine, resources, progress(), relist=relist
        )
    if as_json:
        print_json(summary(result))
    else:
        print(sentence(result))
        for failure in result.failures[:10]:
            print(f"  not counted: {failure}")
        for part in list(result.parts)[:10]:
            print(f"  {part}: {result.parts[part].images:,} images")
        if len(result.parts) > 10:
            print(f"  … and {len(result.parts) - 10:,} more (`vdna ls`)")


@contextlib.contextmanager
def engine_for(resources: Resources, ray_address: str | None) -> Iterator[Engine]:
    """Ray, or this process where no workers are asked for."""
    if resources.workers == 0:
        from pipeline.engine import InProcess

        with InProcess() as engine:
            yield engine
        return
    from pipeline.engine import RayEngine

    # Ray prints on stdout that a worker died; that is the command's own, and may be JSON.
    with contextlib.redirect_stdout(sys.stderr), RayEngine(resources, ray_address) as engine:
        yield engine


def summary(result: Result) -> dict[str, object]:
    return {
        "name": result.name,
        "changed": result.changed,
        "counted_shards": result.counted_shards,
        "ignored": result.ignored,
        "duplicates": result.duplicates,
        "failures": [asdict(failure) for failure in result.failures],
        "parts": {name: asdict(version) for name, version in result.parts.items()},
        **asdict(result.version),
    }


def sentence(result: Result) -> str:
    from pipeline.sources import label_of

    version = result.version
    ignored = sum(result.ignored.values())
    notes = [f"{version.images:,} images"]
    notes += [f"{version.failed:,} could not be read"] if version.failed else []
    notes += [f"{ignored:,} files of other kinds ignored"] if ignored else []
    notes += [f"{result.duplicates:,} duplicates dropped"] if result.duplicates else []
    notes += [f"{len(result.parts):,} parts by {label_of(version.by)}"] if result.parts else []
    state = "committed" if result.changed else "nothing to do, the source has not changed"
    return f"{result.name}: {', '.join(notes)}; {state} (dna {version.dna[:12]})"


if __name__ == "__main__":
    run_alone(build)
