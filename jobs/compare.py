"""Compare datasets of the catalogue, all pairs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.shell import (
    AtOption,
    CatalogueOption,
    JsonOption,
    SpecOption,
    guarded,
    print_json,
    run_alone,
)


@guarded
def compare(
    catalogue: CatalogueOption,
    names: Annotated[
        list[str] | None, typer.Argument(help="Datasets to compare (default: all).")
    ] = None,
    layer: Annotated[str | None, typer.Option(help="One layer only.")] = None,
    fd: Annotated[
        bool, typer.Option("--fd", help="Fréchet distances of layers too (FID on its network).")
    ] = False,
    out: Annotated[str | None, typer.Option(help="Write the matrix as Parquet.")] = None,
    spec: SpecOption = None,
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the distance of every pair of datasets: Earth Mover's, with --fd Fréchet's too."""
    from pipeline.catalogue import Catalogue
    from pipeline.errors import UsageError
    from pipeline.matrix import ALL, numerics_notes
    from pipeline.matrix import compare as compare_all

    if out and not out.endswith(".parquet"):
        raise UsageError(f"out is {out!r}; the matrix is written as Parquet, name it so (.parquet)")
    place = Catalogue(catalogue)
    layers = [layer] if layer else None
    matrix = compare_all(place, names or (), layers=layers, at=at, spec=spec, fd=fd)
    if out:
        from pipeline import storage

        storage.replace(storage.canonical(out), matrix.encode())
    versions = {name: place.find(name, at, matrix.spec_digest) for name in matrix.names}
    if as_json:
        print_json(matrix.table.to_pylist())
        for name, version in versions.items():
            if version.imported:
                print(f"note: {name} was {version.provenance}", file=sys.stderr)
        return
    from rich.console import Console

    from pipeline.report import nearest_sentences, print_matrix

    print_matrix(matrix, Console(), layer or ALL)
    for line in nearest_sentences(matrix, layer or ALL):
        print(line)
    if fd:
        print_matrix(matrix, Console(), layer or ALL, "fd")
    apart = sorted(place.at(at).datasets.keys() - set(place.names(at, spec)))
    if apart and not names:
        print(f"note: not compared, as built under other specs (--spec): {', '.join(apart)}")
    for note in numerics_notes(versions):
        print(f"note: numerics differ: {note}")
    for name, version in versions.items():
        if version.imported:
            print(f"note: {name} was {version.provenance}")
        for note in version.notes:
            print(f"note: {name}: {note}")
    if out:
        print(f"written to {out}")


if __name__ == "__main__":
    run_alone(compare)
