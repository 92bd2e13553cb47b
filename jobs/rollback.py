"""Bring a former version of a dataset back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.catalogue import SpecOptions
from pipeline.wording import count_of


@guarded
def rollback(
    options: SpecOptions,
    catalogue: CatalogueOption,
    name: Annotated[str, typer.Argument(help="Dataset, which may have been taken out.")],
    to: Annotated[
        str,
        typer.Option(
            help="The version: a commit's number, -1 for the one before, a day or time, or a tag."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make the version that a dataset had at a commit its current one, with its parts.

    vdna log and the page of a dataset list the commits. A later build looks at the source again.
    """
    from pipeline.catalogue import Catalogue, name_of_version, roll_back

    place, named = Catalogue(catalogue), name_of_version(name, to)
    before = place.at().number
    commit = roll_back(place, name, to, options.spec)
    former = place.find(named, before, options.spec)
    version = place.find(name, commit.number, former.spec)
    if as_json:
        print_json({"commit": commit.number, "changed": commit.number != before} | asdict(version))
        return
    what = f"{count_of(version.images, 'image')} of {version.source} (dna {version.dna[:12]})"
    if commit.number == before:
        say(f"{name}: nothing to do, {what} are its current version")
    else:
        say(f"{name}: back to {what} by commit {commit.number}")
    then = place.resolve(named, before, former.spec).commit
    for other in place.specs_beside(name, former.spec, then):
        if other not in commit.datasets[name]:
            say(
                f"It also had a version of another spec then: vdna rollback {name} --to {to} "
                f"--spec {other[:12]} brings it back"
            )


if __name__ == "__main__":
    run_alone(rollback)
