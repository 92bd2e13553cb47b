"""Remove what no kept version needs."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import (
    ConfiguredCatalogueOption,
    JsonOption,
    RayOption,
    asked_workers,
    configured_catalogue,
    guarded,
    mapper_for,
    run_alone,
)
from pipeline.catalogue import MOST_DAYS, RetentionOptions
from pipeline.errors import UsageError
from pipeline.events import Listener
from pipeline.wording import count_of, option

if TYPE_CHECKING:
    from pipeline.catalogue import LeavingVersion
    from pipeline.storage import Stored


@guarded
def gc(
    retention: RetentionOptions,
    progress: Listener,
    catalogue: ConfiguredCatalogueOption = None,
    config: Annotated[
        str | None,
        typer.Option(
            help="File such as datasets.yaml, whose catalogue and retention apply where no option "
            "says otherwise."
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
    from pipeline.catalogue import Catalogue, collect, garbage, leaving_versions

    root, rules = _configured(config, catalogue, retention)
    items: list[Stored] = []
    young: list[Stored] = []
    leaving: list[LeavingVersion] = []
    later: list[LeavingVersion] = []
    place, grace = Catalogue(root), timedelta(days=min(grace_days, MOST_DAYS))
    tasks = asked_workers(workers, ray_address)
    with mapper_for(root, tasks, ray_address, progress) as mapper:
        if dry_run:
            items = list(garbage(place, **asdict(rules), grace=grace, mapper=mapper, young=young))
            leaving, later = leaving_versions(place, [items, young], rules)
            count, size = len(items), sum(item.size for item in items)
        else:
            count, size = collect(
                place, **asdict(rules), grace=grace, mapper=mapper, progress=progress
            )
    if not as_json:
        for version in leaving:
            say(str(version))
        for item in items:
            say(item.uri)
    if not count:
        place.at()  # says so if there is no catalogue
    young_bytes = sum(item.size for item in young)
    if as_json:
        told: dict[str, object] = {"objects": count, "bytes": size, "removed": not dry_run}
        if dry_run:
            told["versions"] = [asdict(version) for version in leaving]
            told["later"] = {
                "objects": len(young),
                "bytes": young_bytes,
                "versions": [asdict(version) for version in later],
            }
        print_json(told)
        return
    done = "to remove" if dry_run else "removed"
    say(f"{count_of(count, 'object')}, {count_of(size, 'byte')} {done}")
    if young:
        say(
            f"{count_of(len(young), 'more object')}, {count_of(young_bytes, 'byte')}, that no kept "
            f"version needs either: younger than {grace_days:g} days (--grace-days), so that they "
            "stay for now",
            *(f"  {version}" for version in later),
        )


def _configured(
    config: str | None, catalogue: str | None, asked: RetentionOptions
) -> tuple[str, RetentionOptions]:
    """Returns the catalogue and the rules: those of the options, else those of the file."""
    if config is None:
        if catalogue is None:
            raise UsageError(f"no catalogue is named; give the {option('catalogue')}")
        return catalogue, asked
    from pipeline.refreshing import load_config

    settings = load_config(config)
    given = {name: value for name, value in asdict(asked).items() if value is not None}
    return configured_catalogue(settings, catalogue), replace(settings.rules(), **given)


if __name__ == "__main__":
    run_alone(gc)
