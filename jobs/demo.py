"""The whole of it on real photographs, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.build import engine_for
from jobs.shell import JsonOption, RayOption, WorkersOption, guarded, print_json, run_alone


@guarded
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all of it.")] = Path("vdna-demo"),
    workers: WorkersOption = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the DNAs of eleven small datasets of real images and compare all pairs."""
    from pipeline.build import Request, build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.matrix import compare
    from pipeline.panels import write_page
    from pipeline.progress import Lines
    from pipeline.samples import DATASETS, write_datasets
    from pipeline.spec import Resources

    progress = Lines()
    folders = write_datasets(out / "images")
    catalogue = Catalogue(str(out / "catalogue"))
    requests = [Request(name, str(folder)) for name, folder in folders.items()]
    resources = Resources(workers=workers)
    with engine_for(resources, ray_address) as engine:
        results = build_datasets(catalogue, requests, engine, resources, progress)
    matrix = compare(catalogue, list(folders))
    table = out / "matrix.parquet"
    table.write_bytes(matrix.encode())
    page = out / "report.html"
    write_page(catalogue, [matrix], str(page))
    if as_json:
        print_json(matrix.table.to_pylist())
        return
    from rich.console import Console

    from pipeline.figure import draw
    from pipeline.report import nearest_sentences, print_matrix, summary_sentence

    (out / "matrix.svg").write_bytes(draw(matrix, "svg"))
    width = max(len(name) for name in DATASETS)
    for result in results:
        print(f"{result.name:{width}}  {result.version.images:>3} images: {DATASETS[result.name]}")
    print()
    print_matrix(matrix, Console())
    for line in nearest_sentences(matrix):
        print(line)
    print(summary_sentence(matrix))
    original = matrix.names.index("photos/original")
    shown = {name: matrix.of()[original, i] for i, name in enumerate(matrix.names)}
    print(
        "\nThe same photographs, brighter, darker and with more contrast, lie at "
        f"{shown['photos/brighter']:.1f}, {shown['photos/darker']:.1f} and "
        f"{shown['photos/contrast']:.1f} bins from the original;\nother crops of them at "
        f"{shown['photos/other-crops']:.1f}, textures at {shown['textures']:.1f}, "
        f"microscopy at {shown['microscopy']:.1f}."
    )
    print(f"\nOpen {page} in a browser: the matrix, its pairs, and the datasets.")
    print(f"The matrix is in {table} and {out / 'matrix.svg'}; the catalogue in {catalogue.root}")
    print(f"Next: vdna compare -c {out / 'catalogue'} --layer blocks.3.1")


if __name__ == "__main__":
    run_alone(demo)
