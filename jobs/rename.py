"""Give a dataset another name."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.events import Listener


@guarded
def rename(
    catalogue: CatalogueOption,
    progress: Listener,
    old: Annotated[str, typer.Argument(help="Dataset to rename, with its parts.")],
    new: Annotated[str, typer.Argument(help="The name that it gets, which must be free.")],
    as_json: JsonOption = False,
) -> None:
    """Give a dataset another name. Its former versions and its tags stay under the old one."""
    from pipeline.building import rename_dataset
    from pipeline.catalogue import Catalogue

    commit = rename_dataset(Catalogue(catalogue), old, new, progress)
    if as_json:
        print_json({"commit": commit.number, "old": old, "new": new})
        return
    say(f"{old}: called {new} since commit {commit.number}. Its former versions and its tags are")
    say(f"  found under the old name, such as {old}@{commit.number - 1}")


if __name__ == "__main__":
    run_alone(rename)
