"""Verify what the catalogue holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.shell import (
    CatalogueOption,
    JsonOption,
    LogFormat,
    LogFormatOption,
    RayOption,
    SpecOption,
    engine_for,
    guarded,
    print_json,
    progress,
    run_alone,
)
from pipeline.options import Option
from pipeline.spec import Resources

if TYPE_CHECKING:
    from pipeline.catalogue import Finding


@dataclass(frozen=True)
class DeepResources(Resources):
    """The resources of a deep verification, which uses no Ray unless it is asked to."""

    workers: Annotated[
        int | None, Option("With --deep: number of Ray workers; 0 counts in this process.", least=0)
    ] = 0


@guarded
def verify(
    resources: DeepResources,
    catalogue: CatalogueOption,
    names: Annotated[
        list[str] | None, typer.Argument(help="Datasets to check (default: all).")
    ] = None,
    spec: SpecOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Count some shards again, from the images.")
    ] = False,
    sample: Annotated[
        str, typer.Option(help="With --deep: number of shards of each dataset to count, or 'all'.")
    ] = "3",
    seed: Annotated[
        int | None,
        typer.Option(
            help="With --deep: seed of the choice of shards (default: a random one, printed)."
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="With --deep: file or url of the weights, if they are not the network's own."
        ),
    ] = None,
    ray_address: RayOption = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Recompute the sums and hashes of what is stored; exit 1 if anything is wrong."""
    from pipeline.catalogue import Catalogue
    from pipeline.catalogue import verify as recompute
    from pipeline.errors import NotFound

    place = Catalogue(catalogue)
    shards = _shards(sample)
    if not place.head().datasets:
        raise NotFound(f"there is no dataset in a catalogue at {catalogue}")

    def check() -> Iterator[Finding]:
        yield from recompute(place, names or (), spec)
        if deep:
            from pipeline.catalogue import recount

            with engine_for(resources, ray_address) as engine:
                yield from recount(
                    place,
                    names or (),
                    spec,
                    engine=engine,
                    sample=shards,
                    seed=seed,
                    weights=weights,
                    resources=resources,
                    progress=progress(),
                )

    findings = []
    out = sys.stdout  # Ray's output replaces it meanwhile
    for finding in check():
        findings.append(finding)
        if not as_json:
            state = "ok    " if finding.ok else "WRONG "
            line = f"{state} {finding.dataset}  {finding.check}: {finding.detail}"
            print(line, file=out, flush=True)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _shards(sample: str) -> int | None:
    """Returns how many shards to count, or None for all."""
    from pipeline.errors import UsageError

    if sample == "all":
        return None
    if not sample.isdecimal() or int(sample) < 1:
        raise UsageError(f"sample is {sample!r}; give a number of shards from 1 up, or 'all'")
    return int(sample)


if __name__ == "__main__":
    run_alone(verify)
