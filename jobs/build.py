"""Build a dataset's DNA and commit it to the catalogue."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from jobs.shell import (
    CatalogueOption,
    JsonOption,
    LogFormat,
    LogFormatOption,
    RayOption,
    RelistOption,
    guarded,
    print_json,
    progress,
    run_alone,
)
from pipeline.building import Request
from pipeline.spec import Resources

if TYPE_CHECKING:
    from pipeline.building import Result
    from pipeline.engine import Engine


@guarded
def build(
    request: Request,
    resources: Resources,
    catalogue: CatalogueOption,
    relist: RelistOption = False,
    ray_address: RayOption = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Build a dataset's DNA and commit it. The same command again does only what is missing."""
    from pipeline.building import build_datasets
    from pipeline.catalogue import Catalogue

    with engine_for(resources, ray_address) as engine:
        (result,) = build_datasets(
            Catalogue(catalogue), [request], engine, resources, progress(), relist=relist
        )
    if as_json:
        print_json(summary(result))
    else:
        print(sentence(result))
        for failure in result.failures[:10]:
            print(f"  not counted: {failure}")
        for part in list(result.parts)[:10]:
            print(f"  {part}: {result.parts[part].images:,} images")
        if len(result.parts) > 10:
            print(f"  … and {len(result.parts) - 10:,} more (`vdna ls`)")


@contextlib.contextmanager
def engine_for(resources: Resources, ray_address: str | None) -> Iterator[Engine]:
    """Ray, or this process where no workers are asked for."""
    if resources.workers == 0:
        from pipeline.engine import InProcess

        with InProcess() as engine:
            yield engine
        return
    from pipeline.engine import RayEngine

    # Ray prints on stdout that a worker died; that is the command's own, and may be JSON.
    with contextlib.redirect_stdout(sys.stderr), RayEngine(resources, ray_address) as engine:
        yield engine


def summary(result: Result) -> dict[str, object]:
    return {
        "name": result.name,
        "changed": result.changed,
        "counted_shards": result.counted_shards,
        "ignored": result.ignored,
        "duplicates": result.duplicates,
        "failures": [asdict(failure) for failure in result.failures],
        "parts": {name: asdict(version) for name, version in result.parts.items()},
        **asdict(result.version),
    }


def sentence(result: Result) -> str:
    from pipeline.sources import label_of

    version = result.version
    ignored = sum(result.ignored.values())
    notes = [f"{version.images:,} images"]
    notes += [f"{version.failed:,} could not be read"] if version.failed else []
    notes += [f"{ignored:,} files of other kinds ignored"] if ignored else []
    notes += [f"{result.duplicates:,} duplicates dropped"] if result.duplicates else []
    notes += [f"{len(result.parts):,} parts by {label_of(version.by)}"] if result.parts else []
    state = "committed" if result.changed else "nothing to do, the source has not changed"
    return f"{result.name}: {', '.join(notes)}; {state} (dna {version.dna[:12]})"


if __name__ == "__main__":
    run_alone(build)
