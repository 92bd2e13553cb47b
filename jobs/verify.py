"""Verify the catalogue."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.shell import CatalogueOption, JsonOption, SpecOption, guarded, print_json, run_alone


@guarded
def verify(
    catalogue: CatalogueOption,
    names: Annotated[list[str] | None, typer.Argument(help="Datasets (default: all).")] = None,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute what is promised from what is stored; exit 1 where anything does not hold."""
    from pipeline.catalogue import Catalogue
    from pipeline.errors import NotFound
    from pipeline.verify import verify as findings_of

    if not Catalogue(catalogue).head().datasets:
        raise NotFound(f"there is no dataset in a catalogue at {catalogue}")
    findings = []
    for finding in findings_of(Catalogue(catalogue), names or (), spec):
        findings.append(finding)
        if not as_json:
            state = "ok    " if finding.ok else "WRONG "
            print(f"{state} {finding.dataset}  {finding.check}: {finding.detail}", flush=True)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    run_alone(verify)
