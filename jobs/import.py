# ruff: noqa: N999 (it is named for its command, which is a keyword)
"""Import a DNA that the reference package has saved."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.wording import count_of


@guarded
def import_(
    file: Annotated[str, typer.Argument(help="FILE.npz, or its url; FILE.json must be beside it.")],
    name: Annotated[str, typer.Argument(help="Name of the dataset in the catalogue.")],
    catalogue: CatalogueOption,
    spec: Annotated[
        str | None,
        typer.Option(
            help="Spec that the DNA was made with: a digest in the catalogue, or a JSON "
            "file (default: assumed from the file)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Import a DNA that the reference package (vdna 0.1.1) has saved, of any of its kinds."""
    from pipeline.catalogue import Catalogue
    from pipeline.interop import import_file

    done = import_file(Catalogue(catalogue), file, name, spec)
    version = done.version
    if as_json:
        print_json(
            {"name": name, "changed": done.changed, "ranges": done.ranges, **asdict(version)}
        )
        return
    state = "committed" if done.changed else "nothing to do, it had been imported"
    kind = version.origin["kind"]
    say(f"{name}: {count_of(version.images, 'image')}, {kind}; {state} (dna {version.dna[:12]})")
    if done.ranges:
        say(f"  ranges {done.ranges}, for `vdna build --ranges`")
    if version.origin["assumed"]:
        say("  note: its weights, ranges and preprocessing are assumed; --spec states them")
    for note in version.notes:
        say(f"  note: {note}")


if __name__ == "__main__":
    run_alone(import_)
