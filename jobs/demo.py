"""Show everything on real photographs, offline."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import JsonOption, RayOption, engine_for, guarded, run_alone
from pipeline.events import Listener
from pipeline.spec import Resources

if TYPE_CHECKING:
    from pipeline.comparing import Matrix


@guarded
def demo(
    resources: Resources,
    progress: Listener,
    out: Annotated[str, typer.Option(help="Where to write the result: a folder.")] = "vdna-demo",
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build the DNAs of eleven small datasets of real images and compare all pairs."""
    from pipeline import api, storage
    from pipeline.building import Request, build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.errors import UsageError
    from pipeline.sources import DATASETS, write_datasets

    if storage.protocol_of(out) != "file":
        raise UsageError(f"out is {out!r}; the demo writes to this machine, so name a folder")
    place = Path(storage.local_path(out) if "://" in out else out)
    folders = write_datasets(place / "images")
    catalogue = Catalogue(str(place / "catalogue"))
    requests = [Request(name, str(folder), replace=True) for name, folder in folders.items()]
    with engine_for(resources, ray_address, progress) as engine:
        results = build_datasets(catalogue, requests, engine, resources, progress)
    commit = catalogue.head().number
    matrix = api.compare(catalogue, list(folders), at=commit, progress=progress)
    table, page = place / "matrix.parquet", place / "report.html"
    matrix.save(str(table))
    api.html_page(catalogue, matrix, at=commit, progress=progress).save(str(page))
    if as_json:
        print_json(matrix.table.to_pylist())
        return
    from rich.console import Console

    from pipeline.reporting import bounds_note, draw, headline, matrix_sentences, print_matrix

    (place / "matrix.svg").write_bytes(draw(matrix, "svg"))
    width = max(len(name) for name in DATASETS)
    for result in results:
        say(f"{result.name:{width}}  {result.version.images:>3} images: {DATASETS[result.name]}")
    first = headline(matrix)
    say("", first, *filter(None, [bounds_note(first)]), "")
    print_matrix(matrix, Console())
    say(*matrix_sentences(matrix))
    say("", *_of_photos(matrix))
    say("", f"Open {page} in a browser: the matrix, its pairs, and the datasets.")
    say(f"The matrix is in {table} and {place / 'matrix.svg'}; the catalogue in {catalogue.root}")
    vdna = "vdna" if shutil.which("vdna") else str(Path(sys.executable).with_name("vdna"))
    following = [vdna, "compare", "-c", str(place / "catalogue"), "--layer", "blocks.3.1"]
    say(f"Next: {shlex.join(following)}")


def _of_photos(matrix: Matrix) -> list[str]:
    """Returns lines on what was done to the photographs, and whether it shows."""
    from pipeline.comparing import CONFIDENCE, FALSE_DISCOVERY_RATE
    from pipeline.reporting import DIFFERENT, verdicts

    at = matrix.names.index("photos/original")
    verdict, values = verdicts(matrix)[at], matrix.corrected()[at]
    low, high = matrix.of(column="low")[at], matrix.of(column="high")[at]
    told: dict[bool, list[str]] = {True: [], False: []}
    for i, name in enumerate(matrix.names):
        if name.startswith("photos/") and i != at:
            text = f"{name.removeprefix('photos/')} {values[i]:.1f} [{low[i]:.1f}, {high[i]:.1f}]"
            told[bool(verdict[i] == DIFFERENT)].append(text)
    return [
        f"Bins from photos/original, with {CONFIDENCE:.0%} intervals. At a false discovery rate of "
        f"{FALSE_DISCOVERY_RATE:.0%}",
        f"these differ from it: {', '.join(told[True]) or 'none'};",
        f"these are not told apart: {', '.join(told[False]) or 'none'}.",
        "(other-crops differs by sampling alone.)",
    ]


if __name__ == "__main__":
    run_alone(demo)
