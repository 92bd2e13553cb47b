"""Write the page of a snapshot: every distance, and what is behind it, in one HTML file."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.output import print_json, print_note, say
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    RankingOption,
    RayOption,
    effort_for,
    guarded,
    run_alone,
)
from pipeline.comparing import MemoryLimit
from pipeline.events import Listener
from pipeline.reporting import ReportOptions
from pipeline.wording import count_of


@guarded
def report(
    options: ReportOptions,
    memory: MemoryLimit,
    progress: Listener,
    catalogue: CatalogueOption,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where to write the result: a page (.html; default: vdna-report.html, unless "
            "--site is given)."
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Folder to write the page to, as index.html, with a page for each dataset, for "
            "each of some pairs (--explained) that says why they differ, and for each --ranking. "
            "The page of a dataset has up to 60 of its images; of many datasets each has fewer, "
            "3,000 in all. Such pages of an earlier report there are replaced."
        ),
    ] = None,
    lens: Annotated[
        list[str] | None,
        typer.Option(
            help="Also show distances through this lens: its name in the catalogue, or a Parquet "
            "file. Can be repeated."
        ),
    ] = None,
    ranking: RankingOption = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the page of a snapshot: one HTML file that opens offline."""
    from pipeline import api, storage
    from pipeline.reporting import (
        SITE_INDEX,
        bounds_note,
        from_zero_note,
        headline,
        summary_sentence,
    )

    if out is None and site is None:
        out = "vdna-report.html"
    made = api.report(
        catalogue,
        out,
        site=site,
        lenses=lens or (),
        rankings=ranking or (),
        effort=effort_for(catalogue, None, ray_address, memory, progress),
        progress=progress,
        **vars(options),
    )
    index = f"{str(site).rstrip('/')}/{SITE_INDEX}"
    matrix, where = made.matrices[0], out or index
    size = storage.info(storage.canonical(where)).size
    for note in made.notes:
        print_note(note, as_json=as_json)
    if as_json:
        print_json({"out": where, "bytes": size, "datasets": len(matrix.names)})
        return
    first = headline(matrix)
    summary = summary_sentence(matrix), from_zero_note(matrix)
    say(*filter(None, (first, bounds_note(first), *summary)))
    beside = ""
    if site is not None:
        counts = [
            (len(matrix.names), "dataset"),
            (made.explained, "pair"),
            (len(ranking or ()), "ranking"),
        ]
        *most, last = [count_of(*of) for of in counts if of[0]]
        beside = f", with pages of {', '.join(most)}{' and ' * bool(most)}{last} beside it"
        beside = f"; it is also in {index}{beside}" if out else beside
    page = f"The page of {count_of(len(matrix.names), 'dataset')} is in {where}"
    say(f"{page} ({size / 1e6:.1f} MB){beside}")


if __name__ == "__main__":
    run_alone(report)
