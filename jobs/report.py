"""Write the page of a snapshot: every distance, and what is behind it, in one HTML file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.shell import (
    AtOption,
    CatalogueOption,
    JsonOption,
    LogFormat,
    LogFormatOption,
    MemoryOption,
    RayOption,
    SpecOption,
    commit_of,
    effort_for,
    guarded,
    left_out,
    print_json,
    print_notes,
    progress,
    run_alone,
)


@guarded
def report(
    catalogue: CatalogueOption,
    out: Annotated[str, typer.Option(help="Page to write (.html).")] = "vdna-report.html",
    samples: Annotated[
        int, typer.Option(min=0, help="Number of images of each dataset on the page.")
    ] = 4,
    lens: Annotated[
        list[str] | None,
        typer.Option(
            help="Also show distances through this lens: its name in the catalogue, or a Parquet "
            "file. Can be repeated."
        ),
    ] = None,
    fd: Annotated[
        bool, typer.Option("--fd", help="Also compute Fréchet distances of layers.")
    ] = False,
    spec: SpecOption = None,
    at: AtOption = None,
    ray_address: RayOption = None,
    memory: MemoryOption = 4.0,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Write the page of a snapshot: one HTML file that opens offline."""
    from pipeline.catalogue import Catalogue, find_lens
    from pipeline.comparing import compare, spec_of
    from pipeline.reporting import (
        gather_matrix_page,
        render_matrix_page,
        require_html,
        save_page,
        summary_sentence,
    )

    require_html(out)
    place = Catalogue(catalogue)
    effort = effort_for(catalogue, None, ray_address, memory)
    number = commit_of(place, at)
    named = [find_lens(place, name, spec_of(place, at=number, spec=spec)) for name in lens or ()]
    lenses = [None, *named]
    matrices = [
        compare(place, at=number, spec=spec, fd=fd and through is None, lens=through, effort=effort)
        for through in lenses
    ]
    matrix, apart = matrices[0], left_out(place, (), number, spec)
    page = gather_matrix_page(
        place,
        matrices,
        lenses=lenses,
        apart=apart,
        at=number,
        samples=samples,
        progress=progress(),
    )
    size = save_page(render_matrix_page(page), out)
    versions = place.find_all(matrix.names, number, matrix.spec_digest)
    print_notes(versions, apart=apart, lenses=lenses, to=sys.stderr if as_json else None)
    if as_json:
        print_json({"out": out, "bytes": size, "datasets": len(matrix.names)})
        return
    print(summary_sentence(matrix))
    print(f"The page of {len(matrix.names)} datasets is in {out} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_alone(report)
