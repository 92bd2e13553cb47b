"""Remove what no kept version needs."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.events import Listener
from pipeline.wording import count_of

MAX_GRACE_DAYS = 36_500.0


@guarded
def gc(
    catalogue: CatalogueOption,
    progress: Listener,
    keep: Annotated[
        int | None,
        typer.Option(
            help="Number of versions of each dataset to keep, and none of one that was taken out "
            "(default: all)."
        ),
    ] = None,
    grace_days: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Keep objects younger than this many days, because running jobs may need them.",
        ),
    ] = 7.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list what would be removed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove objects that no kept version needs and that are older than the grace period.

    All that is kept is verified first, as by verify --all. If something is damaged, nothing is
    removed.
    """
    from pipeline.catalogue import Catalogue, collect, garbage

    place, grace = Catalogue(catalogue), timedelta(days=min(grace_days, MAX_GRACE_DAYS))
    if dry_run:
        items = list(garbage(place, keep=keep, grace=grace))
        count, size = len(items), sum(item.size for item in items)
        if not as_json:
            for item in items:
                say(item.uri)
    else:
        count, size = collect(place, keep=keep, grace=grace, progress=progress)
    if not count:
        place.at()  # says so if there is no catalogue
    if as_json:
        print_json({"objects": count, "bytes": size, "removed": not dry_run})
    else:
        done = "to remove" if dry_run else "removed"
        say(f"{count_of(count, 'object')}, {count_of(size, 'byte')} {done}")


if __name__ == "__main__":
    run_alone(gc)
