"""Take datasets out of the catalogue."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone


@guarded
def rm(
    catalogue: CatalogueOption,
    names: Annotated[list[str], typer.Argument(help="Datasets to take out, with their parts.")],
    spec: Annotated[
        str | None,
        typer.Option(help="Take out versions of this spec only: its digest, or the beginning."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take datasets out of the catalogue. Their files stay, so vdna rollback brings them back."""
    from pipeline.catalogue import Catalogue, remove

    place, names = Catalogue(catalogue), list(dict.fromkeys(names))
    commit = remove(place, names, spec)
    if as_json:
        print_json({"commit": commit.number, "removed": names})
        return
    before = place.commit(commit.number - 1)
    by_default = os.environ.get("VDNA_CATALOGUE") == catalogue
    where = "" if by_default else f" -c {shlex.quote(catalogue)}"
    for name in names:
        say(f"{name}: out of the catalogue since commit {commit.number}; it can be brought back,")
        say("  until `vdna gc` with --keep or --days has removed its files, by")
        gone = before.datasets.get(name, {}).keys() - commit.datasets.get(name, {}).keys()
        for digest in sorted(gone):
            say(f"    vdna rollback {name} --to {before.number} --spec {digest[:12]}{where}")


if __name__ == "__main__":
    run_alone(rm)
