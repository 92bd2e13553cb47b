"""Print the history of the catalogue."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone


@guarded
def log(
    catalogue: CatalogueOption,
    limit: Annotated[int, typer.Option(min=1, help="Number of commits to print.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """Print the commits, the newest first."""
    from pipeline.catalogue import Catalogue

    place = Catalogue(catalogue)
    place.at()  # says so if there is no catalogue
    commits = list(islice(place.log(), limit))
    if as_json:
        print_json(
            [
                {"number": c.number, "time": c.time, "action": c.action, "software": c.software}
                for c in commits
            ]
        )
        return
    for c in commits:
        say(f"{c.number:>6}  {c.time[:19]}  {c.action}  ({c.software})")


if __name__ == "__main__":
    run_alone(log)
