"""Erase images from every version."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated

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
from jobs.verify import DeepResources
from pipeline.building import EraseOptions
from pipeline.events import Listener


@guarded
def erase(
    options: EraseOptions,
    resources: DeepResources,
    progress: Listener,
    catalogue: CatalogueOption,
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Paths or urls of images; ARCHIVE::MEMBER for one in an archive."),
    ] = None,
    from_file: Annotated[
        str | None, typer.Option("--from", help="File with the name of an image in each line.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would be done, and what it costs.")
    ] = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Erase images from every version of every dataset, and prove that nothing names them.

    The sums that held them are counted again from the other images. Exits 1 if anything in the
    catalogue still names one in the end.
    """
    from pipeline import api
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import erased_lines, preview_lines

    place = Catalogue(catalogue)
    wanted = [*(names or ()), *(_lines(from_file) if from_file is not None else ())]
    if dry_run:
        preview = api.preview_erasure(place, wanted, progress=progress)
        if as_json:
            print_json(asdict(preview))
        else:
            say(*preview_lines(preview, drop_unreadable=options.drop_unreadable))
        return
    asked = replace(resources, workers=asked_workers(resources.workers, ray_address))
    with engine_for(asked, ray_address, progress) as engine:
        done = api.erase(
            place, wanted, engine=engine, resources=asked, progress=progress, **vars(options)
        )
    if as_json:
        print_json(asdict(done))
    else:
        say(*erased_lines(done))


def _lines(uri: str) -> list[str]:
    """Reads the names in a file; empty lines are left out."""
    from pipeline import storage
    from pipeline.errors import UsageError

    try:
        text = storage.read(storage.canonical(uri)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{uri} is not text: {error}; give a name in each line") from error
    return [line.rstrip("\r") for line in text.split("\n") if line.strip()]


if __name__ == "__main__":
    run_alone(erase)
