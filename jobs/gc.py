"""Remove what no kept version needs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    RayOption,
    asked_workers,
    guarded,
    mapper_for,
    run_alone,
)
from pipeline.events import Listener
from pipeline.wording import count_of

if TYPE_CHECKING:
    from pipeline.storage import Stored

MAX_GRACE_DAYS = 36_500.0


@guarded
def gc(
    catalogue: CatalogueOption,
    progress: Listener,
    keep: Annotated[
        int | None,
        typer.Option(
            help="Number of versions of each dataset to keep, and none of one that was taken out "
            "(default: all). What has a tag is kept, too."
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
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of Ray tasks at a time; 0 works in this process (default: 0; with "
            "--ray-address, as many as the cluster has CPUs).",
        ),
    ] = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove objects that no kept version needs and that are older than the grace period.

    All that is kept is verified first, as by verify --all. If something is damaged, nothing is
    removed.
    """
    from pipeline.catalogue import Catalogue, collect, garbage

    items: list[Stored] = []
    place, grace = Catalogue(catalogue), timedelta(days=min(grace_days, MAX_GRACE_DAYS))
    tasks = asked_workers(workers, ray_address)
    with mapper_for(catalogue, tasks, ray_address, progress) as mapper:
        if dry_run:
            items = list(garbage(place, keep=keep, grace=grace, mapper=mapper))
            count, size = len(items), sum(item.size for item in items)
        else:
            count, size = collect(place, keep=keep, grace=grace, mapper=mapper, progress=progress)
    if not as_json:
        for item in items:
            say(item.uri)
    if not count:
        place.at()  # says so if there is no catalogue
    if as_json:
        print_json({"objects": count, "bytes": size, "removed": not dry_run})
    else:
        done = "to remove" if dry_run else "removed"
        say(f"{count_of(count, 'object')}, {count_of(size, 'byte')} {done}")


if __name__ == "__main__":
    run_alone(gc)
