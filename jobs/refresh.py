"""Bring every dataset of a datasets.yaml up to date, then the matrix."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.build import engine_for, sentence, summary
from jobs.shell import (
    GpusOption,
    JsonOption,
    RayOption,
    ThreadsOption,
    WorkersOption,
    guarded,
    print_json,
    run_alone,
)


@guarded
def refresh(
    config: Annotated[str, typer.Option(help="The datasets.")] = "datasets.yaml",
    catalogue: Annotated[
        str | None,
        typer.Option(
            "--catalogue",
            "-c",
            envvar="VDNA_CATALOGUE",
            help="Folder or url of the catalogue [default: the one that the file names].",
        ),
    ] = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    gpus_per_worker: GpusOption = 0.0,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every dataset, build what changed, then compare all pairs."""
    from pipeline.build import build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.config import load_config
    from pipeline.errors import UsageError, VdnaError
    from pipeline.matrix import compare
    from pipeline.progress import Lines
    from pipeline.spec import Resources

    settings = load_config(config)
    root = catalogue or settings.catalogue
    if root is None:
        raise UsageError(f"{config} names no catalogue; add `catalogue:`, or give --catalogue")
    place = Catalogue(root)
    resources = Resources(workers=workers, threads=threads, gpus_per_worker=gpus_per_worker)
    failed: VdnaError | None = None
    results = []
    with engine_for(resources, ray_address) as engine:
        try:
            results = build_datasets(place, settings.requests(), engine, resources, Lines())
        except VdnaError as error:
            failed = error
    matrix = compare(place) if len(place.names()) > 1 else None
    if failed is not None:
        raise failed
    if as_json:
        print_json(
            {
                "datasets": [summary(result) for result in results],
                "matrix": matrix.table.to_pylist() if matrix else None,
            }
        )
        return
    for result in results:
        print(sentence(result))
    if matrix:
        from rich.console import Console

        from pipeline.report import print_matrix

        print_matrix(matrix, Console())


if __name__ == "__main__":
    run_alone(refresh)
