"""Show in what two versions of a dataset differ."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.output import print_json, print_notes, say
from jobs.shell import CatalogueOption, JsonOption, guarded, pinned, run_alone
from pipeline.catalogue import SnapshotOptions
from pipeline.events import Listener


@guarded
def diff(
    snapshot: SnapshotOptions,
    catalogue: CatalogueOption,
    progress: Listener,
    a: Annotated[str, typer.Argument(help="A version, such as photos@-1.")],
    b: Annotated[str, typer.Argument(help="The version that it is compared with, as photos.")],
    top: Annotated[int, typer.Option(min=1, help="Number of neurons to show.")] = 10,
    named: Annotated[
        int, typer.Option(min=0, help="Number of added, removed and changed images to name.")
    ] = 5,
    out: Annotated[
        str | None,
        typer.Option(help="Where to write the result: all images that differ (.parquet)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show in what two versions differ: images, failures, layers and neurons.

    vdna explain shows more of the layers and neurons, with images.
    """
    from rich.console import Console

    from pipeline.catalogue import Catalogue
    from pipeline.explaining import difference
    from pipeline.reporting import (
        difference_json,
        difference_lines,
        group_lines,
        print_explanation,
    )

    place = Catalogue(catalogue)
    chosen = vars(pinned(place, snapshot))
    found = difference(place, a, b, named=named, out=out, top=top, progress=progress, **chosen)
    why = found.explanation
    if as_json:
        print_json(difference_json(found, top))
        if why is not None:
            print_notes(found.versions, paired=why.paired(), as_json=True)
        return
    say(*difference_lines(found))
    if why is not None:
        say("")
        print_explanation(why, Console(), top)
        say(*group_lines(why))
        print_notes(found.versions, paired=why.paired(), as_json=False)
    if out:
        say(f"written to {out}")


if __name__ == "__main__":
    run_alone(diff)
