"""Compare all pairs of datasets of the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import Rows, print_json, print_notes, say, tell
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    LensOption,
    NeuronsOption,
    RayOption,
    effort_for,
    guarded,
    left_out,
    lens_for,
    pinned,
    run_alone,
)
from pipeline.comparing import CompareOptions, MemoryLimit, NearOptions
from pipeline.events import Listener
from pipeline.wording import some_of

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import Matrix, Neighbours
    from pipeline.dna import Lens


@guarded
def compare(
    options: CompareOptions,
    neighbours: NearOptions,
    memory: MemoryLimit,
    progress: Listener,
    catalogue: CatalogueOption,
    names: Annotated[
        list[str] | None, typer.Argument(help="Datasets to compare (default: all).")
    ] = None,
    lens: LensOption = None,
    neurons: NeuronsOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where to write the result: the matrix, or the neighbours that --top finds, as a "
            "table (.parquet)."
        ),
    ] = None,
    html: Annotated[str | None, typer.Option(help="Page to write, for a browser (.html).")] = None,
    figure: Annotated[
        str | None,
        typer.Option(
            help="Figure of the matrix to draw, such as for a paper (.svg, .png or .pdf)."
        ),
    ] = None,
    ray_address: RayOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of Ray tasks at a time; 0 works in this process, on all cores (default: "
            "0, unless a cluster is named and the work would take this process more than minutes).",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where this process compares: cpu, or a device of torch, such as "
            "cuda:1 (tested on the CPU only)."
        ),
    ] = "cpu",
    overlaps: Annotated[
        bool,
        typer.Option(
            "--overlaps",
            help="Also count the images that datasets have in common, for --out and --html, too.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the distance of every pair of datasets: the Earth Mover's Distance of its neurons."""
    from pipeline import api, storage
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import ALL, NearestOptions, with_near
    from pipeline.errors import UsageError
    from pipeline.options import shared_values
    from pipeline.reporting import (
        draw,
        kind_of,
        overlap_lines,
        pair_rows,
        require_html,
    )

    layers = options.layers or [ALL]
    if figure is not None and len(layers) > 1:
        raise UsageError(f"--figure draws one layer, not {some_of(layers)}; give one --layer")
    if out is not None:
        what = "the matrix is" if neighbours.top is None else "the table of neighbours is"
        storage.parquet_uri(out, what)
    kind = kind_of(figure) if figure is not None else None
    if html is not None:
        require_html(html)
    place = Catalogue(catalogue)
    options = pinned(place, options)
    near = neighbours.near
    if near is not None and options.fd:
        raise UsageError("--near lists Earth Mover's Distances only; leave --near or --fd out")
    compared = with_near(place, names or (), near, at=options.at, spec=options.spec)
    through = lens_for(place, compared, lens, neurons or (), options)
    effort = effort_for(catalogue, workers, ray_address, memory, progress, device)
    if neighbours.top is not None:
        if options.fd or html or figure or overlaps or len(layers) > 1:
            raise UsageError(
                "--top looks for the nearest by the Earth Mover's Distance of one layer, or of "
                "all, without comparing all pairs; leave --top out, or --fd, --html, --figure, "
                "--overlaps and all but one --layer"
            )
        found = api.nearest(
            place,
            compared,
            lens=through,
            effort=effort,
            layer=None if layers[0] == ALL else layers[0],
            **vars(neighbours),
            **shared_values(options, NearestOptions),
        )
        print_found(place, found, options, names or (), through, out, as_json=as_json)
        return
    matrix = api.compare(place, compared, lens=through, effort=effort, **vars(options))
    apart = left_out(place, names or (), options)
    if overlaps:
        common = api.find_overlaps(place, matrix.names, at=options.at, spec=matrix.spec_digest)
        matrix = replace(matrix, overlaps=common)
    if out:
        matrix.save(out)
    if figure and kind:
        storage.replace(storage.canonical(figure), draw(matrix, kind, layers[0], through))
    if html:
        page = api.html_page(
            place, matrix, lens=through, apart=apart, at=options.at, progress=progress
        )
        page.save(html)
    versions = place.find_all(matrix.names, options.at, matrix.spec_digest)
    notes = partial(
        print_notes,
        versions,
        apart=apart,
        lenses=[through],
        barred=bool(matrix.estimates),
        paired=matrix.paired(),
    )
    if as_json:
        print_json(Rows(pair_rows(matrix, layers, near)))
        notes(as_json=True)
        return
    for layer in layers:
        if near is not None:
            print_neighbours(matrix, near, layer, through)
        else:
            print_all(matrix, layer, through, fd=options.fd)
    say(*overlap_lines(matrix.overlaps) if matrix.overlaps is not None else ())
    notes(as_json=False)
    for written in filter(None, (out, html, figure)):
        say(f"written to {written}")


def print_found(
    place: Catalogue,
    found: Neighbours,
    options: CompareOptions,
    names: Sequence[str],
    lens: Lens | None,
    out: str | None,
    *,
    as_json: bool,
) -> None:
    """Prints the neighbours that a search has found, and writes them."""
    from pipeline.reporting import WEIGHTLESS, found_lines, found_sentences, neighbours_json

    if out:
        found.save(out)
    notes = partial(
        print_notes,
        place.find_all(found.shown, options.at, found.spec_digest),
        apart=left_out(place, names, options),
        lenses=[lens],
        barred=bool(found.method),
        paired=found.paired(),
    )
    reason = None
    if lens is not None and not lens.has_positive_weight(found.layer):
        reason = WEIGHTLESS
    if as_json:
        print_json({**neighbours_json(found), "no_distances": reason})
        if reason:
            tell(reason)
        notes(as_json=True)
        return
    if reason:
        say(reason)
    else:
        say(*found_lines(found), *found_sentences(found))
    notes(as_json=False)
    if out:
        say(f"written to {out}")


def print_all(matrix: Matrix, layer: str, lens: Lens | None, *, fd: bool) -> None:
    """Prints the matrix, and the nearest pairs in words."""
    from rich.console import Console

    from pipeline.reporting import bounds_note, headline, matrix_sentences, print_matrix

    weighs = lens is None or lens.has_positive_weight(layer)
    if weighs and (first := headline(matrix, layer)):
        say(first, *filter(None, [bounds_note(first)]), "")
    print_matrix(matrix, Console(), layer, lens=lens)
    if weighs:
        say(*matrix_sentences(matrix, layer))
    if fd:
        print_matrix(matrix, Console(), layer, "fd")


def print_neighbours(matrix: Matrix, name: str, layer: str, lens: Lens | None) -> None:
    """Prints the neighbours of one dataset, the nearest first."""
    from pipeline.reporting import WEIGHTLESS, neighbour_lines, sentences_heading

    if lens is not None and not lens.has_positive_weight(layer):
        say(WEIGHTLESS)
        return
    say(sentences_heading(matrix, layer, name))
    say(*neighbour_lines(matrix, name, layer))


if __name__ == "__main__":
    run_alone(compare)
