"""Export a dataset's DNA for the reference package."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.catalogue import SnapshotOptions
from pipeline.wording import count_of


class ExportedKind(StrEnum):
    """A distribution, as the reference package names it."""

    histogram = "histogram"
    gaussian = "gaussian"
    layer_gaussian = "layer-gaussian"
    activation_ranges = "activation-ranges"


@guarded
def export(
    snapshot: SnapshotOptions,
    name: Annotated[str, typer.Argument(help="Name of the dataset.")],
    file: Annotated[str, typer.Argument(help="FILE.npz to write, with FILE.json beside it.")],
    catalogue: CatalogueOption,
    kind: Annotated[
        ExportedKind | None,
        typer.Option(
            "--as", help="Distribution to export (default: the first that the dataset has)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a dataset's DNA as two files that the reference package (vdna 0.1.1) loads."""
    from pipeline.catalogue import Catalogue
    from pipeline.interop import export_file

    chosen = kind.value if kind else None
    done = export_file(Catalogue(catalogue), name, file, chosen, **vars(snapshot))
    if as_json:
        print_json({"name": name, **asdict(done)})
        return
    say(f"{name}: {done.kind} of {count_of(done.images, 'image')} in {done.npz} and {done.json}")
    for note in done.notes:
        say(f"  note: {note}")


if __name__ == "__main__":
    run_alone(export)
