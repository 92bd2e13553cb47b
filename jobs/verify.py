"""Verify what the catalogue holds."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    RayOption,
    asked_workers,
    engine_for,
    guarded,
    run_alone,
)
from pipeline.catalogue import VerifyOptions
from pipeline.events import Listener
from pipeline.options import Option
from pipeline.spec import Resources

if TYPE_CHECKING:
    from pipeline.catalogue import Finding


@dataclass(frozen=True)
class DeepResources(Resources):
    """The resources of a verification, which uses no Ray unless it is asked to."""

    workers: Annotated[
        int | None,
        Option(
            "Number of Ray workers; 0 works in this process (default: 0; with --ray-address, as "
            "many as the cluster has room for).",
            least=0,
        ),
    ] = None


@guarded
def verify(
    options: VerifyOptions,
    resources: DeepResources,
    progress: Listener,
    catalogue: CatalogueOption,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Datasets, or versions of them, to check (default: all datasets)."),
    ] = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute the sums and hashes of what is stored; exit 1 if anything is wrong."""
    from pipeline import api
    from pipeline.catalogue import Catalogue

    place = Catalogue(catalogue)
    out = sys.stdout  # Ray's output replaces it meanwhile

    def tell(finding: Finding) -> None:
        if not as_json:
            say(_line(finding), to=out)

    asked = replace(resources, workers=asked_workers(resources.workers, ray_address))
    needed = options.deep or asked.workers != 0
    with engine_for(asked, ray_address, progress) if needed else nullcontext() as engine:
        done = api.verify(
            place,
            names or (),
            engine=engine,
            resources=asked,
            tell=tell,
            progress=progress,
            **vars(options),
        )
    if as_json:
        print_json(asdict(done) | {"note": done.note, "verdict": done.verdict})
    else:
        if done.note:
            say(f"note   {done.note}")
        say(done.verdict)
    if not done.ok:
        raise typer.Exit(1)


def _line(finding: Finding) -> str:
    of = f"{finding.dataset}  " if finding.dataset else ""
    if finding.at is not None:
        of = f"{finding.dataset} at commit {finding.at}  "
    return f"{'ok    ' if finding.ok else 'WRONG '} {of}{finding.check}: {finding.detail}"


if __name__ == "__main__":
    run_alone(verify)
