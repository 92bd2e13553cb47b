"""List the datasets of the catalogue."""

from __future__ import annotations

from dataclasses import asdict

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.catalogue import CommitOptions


@guarded
def ls(commit: CommitOptions, catalogue: CatalogueOption, as_json: JsonOption = False) -> None:
    """List the datasets: images, failures, spec, time of the build, and source."""
    from pipeline.catalogue import Catalogue

    datasets = Catalogue(catalogue).at(commit.at).datasets
    versions = [
        (name, version) for name, specs in sorted(datasets.items()) for version in specs.values()
    ]
    if as_json:
        print_json([{"name": name} | asdict(version) for name, version in versions])
        return
    width = max(len(name) for name in ("dataset", *(name for name, _ in versions)))
    say(f"{'dataset':{width}}  {'images':>12}  {'failed':>8}  {'spec':12}  {'built':19}  source")
    for name, version in versions:
        say(
            f"{name:{width}}  {version.images:>12,}  {version.failed:>8,}  {version.spec[:12]}  "
            f"{version.built[:19]}  {version.source}"
        )


if __name__ == "__main__":
    run_alone(ls)
