"""Bring every dataset of a datasets.yaml up to date, then the matrix, then the gate."""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.build import engine_for, sentence, summary
from jobs.compare import effort_for, print_notes, rows_of
from jobs.shell import (
    GpusOption,
    JsonOption,
    LogFormat,
    LogFormatOption,
    MemoryOption,
    RayOption,
    RelistOption,
    Rows,
    ThreadsOption,
    WorkersOption,
    guarded,
    print_json,
    progress,
    run_alone,
    tell_error,
)

if TYPE_CHECKING:
    from pipeline.building import Result
    from pipeline.comparing import Matrix
    from pipeline.refreshing import Judged


@guarded
def refresh(
    config: Annotated[str, typer.Option(help="The datasets.")] = "datasets.yaml",
    catalogue: Annotated[
        str | None,
        typer.Option(
            "--catalogue",
            "-c",
            envvar="VDNA_CATALOGUE",
            help="Folder or url of the catalogue (default: the one that the file names).",
        ),
    ] = None,
    workers: WorkersOption = None,
    threads: ThreadsOption = None,
    gpus_per_worker: GpusOption = 0.0,
    ray_address: RayOption = None,
    relist: RelistOption = False,
    memory: MemoryOption = 4.0,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """List every dataset, build what changed, compare all pairs, and judge the gate."""
    from rich.console import Console

    from pipeline.building import build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import compare
    from pipeline.errors import UsageError, VdnaError
    from pipeline.refreshing import judge, load_config, require_held, require_known
    from pipeline.reporting import print_matrix, summary_sentence
    from pipeline.spec import Resources

    settings = load_config(config)
    root = catalogue or settings.catalogue
    if root is None:
        raise UsageError(f"{config} names no catalogue; add `catalogue:`, or give --catalogue")
    place = Catalogue(root)
    try:
        require_known(settings.gate, place, settings.requests())
    except UsageError as error:
        raise UsageError(f"{config}: {error}") from error
    resources = Resources(workers=workers, threads=threads, gpus_per_worker=gpus_per_worker)
    results: list[Result] = []
    failed: VdnaError | None = None
    with engine_for(resources, ray_address) as engine:
        try:
            build_datasets(
                place,
                settings.requests(),
                engine,
                resources,
                progress(),
                done=results.append,
                relist=relist,
            )
        except VdnaError as error:
            failed = error
    effort = effort_for(root, workers, ray_address, memory)
    # One matrix a spec: datasets built under different ones are not to be compared.
    matrices: list[Matrix] = []
    judged: list[Judged] = []
    try:
        for spec in sorted({result.version.spec for result in results}):
            if len(place.names(spec=spec)) > 1:
                matrices.append(compare(place, spec=spec, effort=effort))
        judged = judge(place, settings.gate, settings.requests(), results, matrices, effort)
        require_held(judged, config)
    except VdnaError as error:
        failed = failed or error
    if as_json:
        print_json(
            {
                "gate": [one.row for one in judged],
                "datasets": [summary(result) for result in results],
                "matrix": Rows(chain.from_iterable(map(rows_of, matrices))) or None,
                "error": str(failed) if failed else None,
            }
        )
    else:
        for result in results:
            print(sentence(result))
        for matrix in matrices:
            print_matrix(matrix, Console())
            print(summary_sentence(matrix))
        for one in judged:
            print(f"gate: {one}")
    for matrix in matrices:
        versions = place.find_all(matrix.names, spec=matrix.spec_digest)
        print_notes(versions, to=sys.stderr if as_json else None)
    if failed is not None:
        tell_error(failed, as_json=as_json)
        raise typer.Exit(failed.exit_code)


if __name__ == "__main__":
    run_alone(refresh)
