"""Bring every dataset of a datasets.yaml up to date, then the matrix, then the gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.output import (
    Rows,
    print_json,
    print_note,
    print_notes,
    say,
    tell_error,
    with_details_kept,
)
from jobs.shell import (
    ConfiguredCatalogueOption,
    JsonOption,
    RayOption,
    RelistOption,
    configured_catalogue,
    effort_for,
    engine_for,
    guarded,
    run_alone,
)
from pipeline.comparing import MemoryLimit
from pipeline.errors import VdnaError, known_error
from pipeline.events import Listener
from pipeline.options import options_of
from pipeline.spec import Resources
from pipeline.wording import options_as_keys

if TYPE_CHECKING:
    from pipeline.refreshing import Refreshed


@guarded
def refresh(
    resources: Resources,
    progress: Listener,
    memory: MemoryLimit,
    config: Annotated[str, typer.Option(help="File that names the datasets.")] = "datasets.yaml",
    catalogue: ConfiguredCatalogueOption = None,
    ray_address: RayOption = None,
    relist: RelistOption = False,
    junit: Annotated[
        str | None, typer.Option(help="JUnit file to write: a test for each bound (.xml).")
    ] = None,
    summary: Annotated[
        list[str] | None,
        typer.Option(help="Summary to write: a page (.html), or Markdown. Can be repeated."),
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="File of metrics to write, for Prometheus (.prom).")
    ] = None,
    pushgateway: Annotated[
        str | None, typer.Option(help="Url of a Prometheus push gateway to send the metrics to.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build every dataset whose source changed, compare all pairs, and check the gate."""
    from rich.console import Console

    from pipeline import storage
    from pipeline.building import Request
    from pipeline.catalogue import Catalogue
    from pipeline.refreshing import load_config
    from pipeline.refreshing import refresh as refresh_datasets
    from pipeline.reporting import (
        build_json,
        build_sentence,
        failure_lines,
        junit_xml,
        matrix_rows,
        metrics_text,
        night_sentence,
        print_matrix,
        push_metrics,
        reason_lines,
        render_night,
        replacement_lines,
        summary_markdown,
        summary_sentence,
        work_lines,
    )

    outputs = [(junit, junit_xml)]
    for place in summary or ():
        is_page = place.endswith((".html", ".htm"))
        outputs.append((place, render_night if is_page else summary_markdown))
    files = [(storage.canonical(place), made) for place, made in outputs if place is not None]
    metrics_file = None if metrics is None else storage.canonical(metrics)
    if pushgateway is not None:
        storage.require_web(pushgateway)
    settings = load_config(config)
    root = configured_catalogue(settings, catalogue)
    with options_as_keys(config, {option.name for option in options_of(Request)}):
        done = refresh_datasets(
            settings,
            Catalogue(root),
            engine_for(resources, ray_address, progress),
            resources=resources,
            effort=effort_for(root, resources.workers, ray_address, memory, progress),
            progress=progress,
            relist=relist,
        )
    undelivered: list[VdnaError] = [*filter(None, [done.undelivered])]
    for uri, made in files:
        with _noted(undelivered):
            storage.replace(uri, made(done.outcome))
    # Metrics come last, as they say whether all else was delivered.
    if metrics_file is not None:
        with _noted(undelivered):
            storage.replace(metrics_file, metrics_text(_with_undelivered(done, undelivered)))
    if pushgateway is not None:
        with _noted(undelivered):
            push_metrics(_with_undelivered(done, undelivered), pushgateway)
    if as_json:
        print_json(
            {
                "undelivered": [str(error) for error in undelivered],
                "gate": [verdict.row for verdict in done.verdicts],
                "datasets": [build_json(result) for result in done.datasets],
                "matrix": Rows(chain.from_iterable(map(matrix_rows, done.matrices))) or None,
                "summary": done.outcome["summary"],
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
        say(night_sentence(done.outcome))
    _print_notes(done, as_json=as_json)
    problems = [*([done.error] if done.error else []), *undelivered]
    for problem in problems:
        tell_error(with_details_kept(problem), as_json=as_json)
    if problems:
        raise typer.Exit(problems[0].exit_code)


def _print_notes(done: Refreshed, *, as_json: bool) -> None:
    """Prints the notes on each matrix, or why they are not known, which fails no refresh."""
    for matrix in done.matrices:
        try:
            versions = done.catalogue.find_all(matrix.names, spec=matrix.spec_digest)
        except Exception as error:  # such as that another job has taken out a dataset meanwhile
            unknown = f"the notes on these distances are not known: {known_error(error)}"
            print_note(unknown, as_json=as_json)
        else:
            print_notes(versions, paired=matrix.paired(), as_json=as_json)


@contextmanager
def _noted(undelivered: list[VdnaError]) -> Iterator[None]:
    """Notes an error of the block, so that what was done is printed and told elsewhere anyway."""
    from pipeline.refreshing import not_told

    try:
        yield
    except Exception as error:
        undelivered.append(not_told(with_details_kept(known_error(error))))


def _with_undelivered(done: Refreshed, undelivered: Sequence[VdnaError]) -> dict[str, Any]:
    """Returns the outcome, with all that could not be handed over so far."""
    return done.outcome | {"undelivered": "\n".join(map(str, undelivered)) or None}


if __name__ == "__main__":
    run_alone(refresh)
