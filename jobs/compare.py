"""Compare datasets of the catalogue, all pairs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from jobs.shell import (
    AtOption,
    CatalogueOption,
    JsonOption,
    LensOption,
    LogFormat,
    LogFormatOption,
    MemoryOption,
    NeuronsOption,
    RayOption,
    Rows,
    SpecOption,
    guarded,
    print_json,
    progress,
    run_alone,
)

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue, Version
    from pipeline.comparing import Effort, Matrix
    from pipeline.dna import Lens
    from pipeline.mapper import Mapper
    from pipeline.spec import Spec

GIGABYTE = 2**30
SMALL = 10**13
"""Values of pairs that this process compares in minutes, sooner than a cluster is asked."""
ROWS = 4096
"""Of a matrix that are dictionaries at a time."""


@guarded
def compare(
    catalogue: CatalogueOption,
    names: Annotated[
        list[str] | None, typer.Argument(help="Datasets to compare (default: all).")
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="One layer only (all: the whole network).")
    ] = None,
    fd: Annotated[
        bool, typer.Option("--fd", help="Fréchet distances of layers too (FID on its network).")
    ] = False,
    lens: LensOption = None,
    neurons: NeuronsOption = None,
    error_bars: Annotated[
        bool,
        typer.Option(help="Corrected distances, intervals, p and q: some 30 times the arithmetic."),
    ] = True,
    near: Annotated[
        str | None, typer.Option(metavar="NAME", help="Print this one's neighbours, nearest first.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write the matrix as Parquet.")] = None,
    html: Annotated[str | None, typer.Option(help="Write a page to look at (.html).")] = None,
    figure: Annotated[
        str | None, typer.Option(help="Draw the matrix for a paper (.svg, .png, .pdf).")
    ] = None,
    spec: SpecOption = None,
    at: AtOption = None,
    ray_address: RayOption = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Ray tasks at a time; 0 works in this process, with all its cores (default: that, "
            "unless a cluster is named and minutes would not do).",
        ),
    ] = None,
    memory: MemoryOption = 4.0,
    device: Annotated[
        str,
        typer.Option(
            help="What this process compares with: cpu, or torch's cuda, cuda:1 (which agrees with "
            "the CPU where it was tested: on one; no GPU has run it yet)."
        ),
    ] = "cpu",
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Print the distance of every pair of datasets: Earth Mover's, with --fd Fréchet's too."""
    from pipeline import storage
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import ALL, some_of
    from pipeline.comparing import compare as compare_all
    from pipeline.errors import UsageError
    from pipeline.reporting import draw, kind_of, require_html

    if out and not out.endswith(".parquet"):
        raise UsageError(f"out is {out!r}; the matrix is written as Parquet, name it so (.parquet)")
    kind = kind_of(figure) if figure else None
    if html:
        require_html(html)
    place = Catalogue(catalogue)
    layers = [layer] if layer and layer != ALL else None
    number = commit_of(place, at)
    through = lens_for(place, names or (), lens, neurons or (), at=number, spec=spec)
    if near is not None:
        if fd:
            raise UsageError("--near lists Earth Mover's Distances; leave it or --fd out")
        among = names or place.names(number, spec)
        if among and near not in among:
            raise UsageError(f"near is {near!r}, which is none of those compared: {some_of(among)}")
    matrix = compare_all(
        place,
        names or (),
        layers=layers,
        at=number,
        spec=spec,
        fd=fd,
        lens=through,
        error_bars=error_bars,
        effort=effort_for(catalogue, workers, ray_address, memory, device),
    )
    apart = left_out(place, names or (), number, spec)
    if out:
        storage.replace(storage.canonical(out), matrix.encode())
    if figure and kind:
        storage.replace(storage.canonical(figure), draw(matrix, kind, layer or ALL, through))
    if html:
        from pipeline.reporting import write_matrix_page

        write_matrix_page(
            place, [matrix], html, lenses=[through], apart=apart, at=number, progress=progress()
        )
    versions = place.find_all(matrix.names, number, matrix.spec_digest)
    notes = partial(
        print_notes, versions, apart=apart, lenses=[through], barred=bool(matrix.estimates)
    )
    if as_json:
        print_json(Rows(row for row in rows_of(matrix) if near in (None, row["a"])))
        notes(to=sys.stderr)
        return
    if near is not None:
        print_neighbours(matrix, near, layer or ALL, through)
    else:
        print_all(matrix, layer or ALL, through, fd=fd)
    notes()
    for written in filter(None, (out, html, figure)):
        print(f"written to {written}")


def print_all(matrix: Matrix, layer: str, lens: Lens | None, *, fd: bool) -> None:
    from rich.console import Console

    from pipeline.reporting import (
        nearest_sentences,
        print_matrix,
        sentences_heading,
        summary_sentence,
    )

    print_matrix(matrix, Console(), layer, lens=lens)
    if lens is None or lens.weighs(layer):
        print(sentences_heading(matrix, layer))
        for line in nearest_sentences(matrix, layer):
            print(line)
        print(summary_sentence(matrix, layer))
    if fd:
        print_matrix(matrix, Console(), layer, "fd")


def print_neighbours(matrix: Matrix, name: str, layer: str, lens: Lens | None) -> None:
    from pipeline.reporting import WEIGHTLESS, neighbour_lines, sentences_heading

    if lens is not None and not lens.weighs(layer):
        print(WEIGHTLESS)
        return
    print(sentences_heading(matrix, layer, name))
    for line in neighbour_lines(matrix, name, layer):
        print(line)


def rows_of(matrix: Matrix) -> Iterator[dict[str, Any]]:
    """Those of the matrix's table, in its order; some at a time, as all may be gigabytes."""
    for at, plane in enumerate(matrix.planes):
        one = slice(at, at + 1)
        here = replace(
            matrix,
            layers=(plane,),
            emd=matrix.emd[one],
            nfd=matrix.nfd[one],
            fd=matrix.fd[one],
            estimates={column: values[one] for column, values in matrix.estimates.items()},
        )
        for batch in here.table.to_batches(max_chunksize=ROWS):
            yield from batch.to_pylist()


def commit_of(place: Catalogue, at: str | None) -> int | None:
    """The number that `at` means now, so that all that is read is of one commit."""
    return place.at(at).number or None


def left_out(
    place: Catalogue, names: Sequence[str], number: int | None, spec: str | None
) -> list[str]:
    """Datasets that a comparison of all leaves out, since they are under other specs."""
    if names:
        return []
    return sorted(place.at(number).datasets.keys() - set(place.names(number, spec)))


def print_notes(
    versions: Mapping[str, Version],
    *,
    apart: Sequence[str] = (),
    lenses: Sequence[Lens | None] = (),
    barred: bool = True,
    to: TextIO | None = None,
) -> None:
    """What a reader of these versions' distances should know."""
    from pipeline.comparing import notes_of

    notes = notes_of(versions, apart=apart, lenses=lenses, barred=barred)
    notes += [f"{name}: {note}" for name, version in versions.items() for note in version.notes]
    for note in notes:
        print(f"note: {note}", file=to)


def effort_for(
    catalogue: str,
    workers: int | None,
    ray_address: str | None,
    memory: float,
    device: str = "cpu",
) -> Effort:
    """This process, or the cluster that is named; for few values this process all the same.

    A device is this process's: Ray's tasks ask for none, and would crowd one.
    """
    from pipeline.comparing import Effort
    from pipeline.errors import UsageError
    from pipeline.mapper import SerialMapper
    from pipeline.spec import Resources

    if device != "cpu":
        if workers or ray_address:
            raise UsageError(
                f"device is {device!r}, which this process works with, and Ray's workers do not; "
                "leave --workers and --ray-address out"
            )
        workers = 0

    @contextlib.contextmanager
    def open_engine(values: int) -> Iterator[Mapper]:
        named = ray_address or os.environ.get("RAY_ADDRESS")
        if workers == 0 or (workers is None and (not named or values < SMALL)):
            yield SerialMapper()
            return
        from pipeline.building import require_shared
        from pipeline.engine import RayEngine

        require_shared(catalogue)
        resources = Resources(workers=workers)
        # Ray prints on stdout that a worker died; that is the command's own, and may be JSON.
        with contextlib.redirect_stdout(sys.stderr), RayEngine(resources, ray_address) as engine:
            yield engine

    return Effort(open_engine, round(memory * GIGABYTE), device, progress())


def lens_for(
    place: Catalogue,
    names: Sequence[str],
    lens: str | None,
    neurons: Sequence[str],
    *,
    at: int | str | None,
    spec: str | None,
) -> Lens | None:
    """The lens that is named or chosen, on what these are compared under; None for neither."""
    from pipeline.comparing import spec_of

    if lens is None and not neurons:
        return None
    return chosen_lens(place, lens, neurons, spec_of(place, names, at=at, spec=spec))


def chosen_lens(
    place: Catalogue, lens: str | None, neurons: Sequence[str], of: Spec
) -> Lens | None:
    """The same, on a spec that is known."""
    from pipeline.catalogue import find_lens
    from pipeline.dna import Lens
    from pipeline.errors import UsageError

    if lens is not None and neurons:
        raise UsageError(f"lens is {lens!r} and neurons are chosen, too; give one of them")
    if lens is not None:
        return find_lens(place, lens, of)
    return Lens.chosen(of, neurons) if neurons else None


if __name__ == "__main__":
    run_alone(compare)
