"""Bring every dataset of a datasets.yaml up to date, then the matrix, then the gate."""

from __future__ import annotations

import sys
from itertools import chain
from typing import Annotated

import typer

from jobs.output import Rows, print_json, print_notes, say, tell_error
from jobs.shell import (
    ConfiguredCatalogueOption,
    JsonOption,
    RayOption,
    RelistOption,
    effort_for,
    engine_for,
    guarded,
    run_alone,
)
from pipeline.comparing import MemoryLimit
from pipeline.events import Listener
from pipeline.spec import Resources
from pipeline.wording import options_as_keys


@guarded
def refresh(
    resources: Resources,
    progress: Listener,
    memory: MemoryLimit,
    config: Annotated[str, typer.Option(help="File that names the datasets.")] = "datasets.yaml",
    catalogue: ConfiguredCatalogueOption = None,
    ray_address: RayOption = None,
    relist: RelistOption = False,
    as_json: JsonOption = False,
) -> None:
    """Build every dataset whose source changed, compare all pairs, and check the gate."""
    from rich.console import Console

    from pipeline.catalogue import Catalogue
    from pipeline.refreshing import load_config
    from pipeline.refreshing import refresh as refresh_datasets
    from pipeline.reporting import (
        build_json,
        build_sentence,
        failure_lines,
        matrix_rows,
        print_matrix,
        reason_lines,
        replacement_lines,
        summary_sentence,
        work_lines,
    )

    settings = load_config(config)
    root = settings.catalogue_url(catalogue)
    with options_as_keys(config):  # the options of a dataset
        done = refresh_datasets(
            settings,
            Catalogue(root),
            engine_for(resources, ray_address, progress),
            resources=resources,
            effort=effort_for(root, resources.workers, ray_address, memory, progress),
            progress=progress,
            relist=relist,
        )
    if as_json:
        print_json(
            {
                "gate": [verdict.row for verdict in done.verdicts],
                "datasets": [build_json(result) for result in done.datasets],
                "matrix": Rows(chain.from_iterable(map(matrix_rows, done.matrices))) or None,
                "unlisted": list(done.unlisted),
                "pruned": done.pruned,
                "error": str(done.error) if done.error else None,
                "failed": [
                    {"name": name, "error": type(error).__name__, "message": str(error)}
                    for name, error in done.failed.items()
                ],
            }
        )
    else:
        for result in done.datasets:
            say(build_sentence(result), *work_lines(result))
            say(*replacement_lines(result), *failure_lines(result))
        if done.unlisted:
            say(done.unlisted_note)
        for matrix in done.matrices:
            print_matrix(matrix, Console())
            say(summary_sentence(matrix))
        for verdict in done.verdicts:
            say(f"gate: {verdict}", *reason_lines(verdict.row))
    for matrix in done.matrices:
        versions = done.catalogue.find_all(matrix.names, spec=matrix.spec_digest)
        print_notes(versions, paired=matrix.paired(), to=sys.stderr if as_json else None)
    if done.error is not None:
        tell_error(done.error, as_json=as_json)
        raise typer.Exit(done.error.exit_code)


if __name__ == "__main__":
    run_alone(refresh)
