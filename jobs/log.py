"""Print the history of the catalogue, or of one dataset."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.catalogue import SpecOptions
from pipeline.events import Listener

COMMITS = 50


@guarded
def log(
    options: SpecOptions,
    progress: Listener,
    catalogue: CatalogueOption,
    name: Annotated[
        str | None,
        typer.Argument(help="Dataset whose versions to print, or the version to begin with."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Number of commits, or of versions, to print (default: 50 or 10)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the commits, the newest first; or the versions of a dataset.

    For each version: what changed in its images since the one before, how far that moved the
    dataset, how far it has drifted since the oldest version that is printed, and its tags.
    """
    from pipeline.catalogue import Catalogue

    if name is None:
        _require_no_spec(options.spec)
    place = Catalogue(catalogue)
    place.at()  # says so if there is no catalogue
    if name is not None:
        from pipeline.comparing import Effort
        from pipeline.explaining import VERSIONS_LISTED, list_versions
        from pipeline.reporting import version_lines

        rows = list_versions(
            place,
            name,
            spec=options.spec,
            limit=limit or VERSIONS_LISTED,
            effort=Effort(progress=progress),
        )
        if as_json:
            print_json([asdict(row) for row in rows])
        else:
            say(*version_lines(rows))
            for other in place.specs_beside(name, place.find(name, spec=options.spec).spec):
                say(f"vdna log {name} --spec {other[:12]} lists its versions of another spec")
        return
    commits = list(islice(place.log(), limit or COMMITS))
    if as_json:
        print_json(
            [
                {
                    **{key: getattr(c, key) for key in ("number", "time", "action", "software")},
                    "receipt": c.receipt and asdict(c.receipt),
                }
                for c in commits
            ]
        )
        return
    for c in commits:
        say(f"{c.number:>6}  {c.time[:19]}  {c.action}  ({c.software})")
        if c.receipt is not None:
            say(f"        by {c.receipt.by}: {c.receipt.reason}")


def _require_no_spec(spec: str | None) -> None:
    """Refuses a spec, which would choose nothing where the commits are printed."""
    from pipeline.errors import UsageError
    from pipeline.wording import option

    if spec is not None:
        raise UsageError(
            f"{option('spec', spec)} chooses versions of a dataset, and none is named; name one, "
            "or leave it out to print the commits"
        )


if __name__ == "__main__":
    run_alone(log)
