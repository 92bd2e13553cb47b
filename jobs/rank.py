"""Order images by how near they are to a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    LensOption,
    NeuronsOption,
    RayOption,
    chosen_lens,
    engine_for,
    guarded,
    pinned,
    run_alone,
)
from pipeline.catalogue import SnapshotOptions
from pipeline.events import Listener
from pipeline.explaining import RankRequest
from pipeline.spec import Resources


@guarded
def rank(
    request: RankRequest,
    resources: Resources,
    snapshot: SnapshotOptions,
    catalogue: CatalogueOption,
    progress: Listener,
    lens: LensOption = None,
    neurons: NeuronsOption = None,
    html: Annotated[
        str | None,
        typer.Option(help="Page to write, with the nearest and the farthest images (.html)."),
    ] = None,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Order images by how near their own DNA is to a dataset's, the nearest first.

    Without a SOURCE, a dataset's own images are ordered, its outliers last.

    The same command again does only what is missing.
    """
    from pipeline import api, storage
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import ranking_json, ranking_lines, require_html

    if html is not None:
        require_html(html)
        storage.canonical(html)  # a wrong url is refused before the work begins
    place = Catalogue(catalogue)
    snapshot = pinned(place, snapshot)
    counted = place.spec(place.find(request.to, snapshot.at, snapshot.spec).spec)
    with engine_for(resources, ray_address, progress) as engine:
        found = api.rank(
            place,
            request,
            engine=engine,
            lens=chosen_lens(place, lens, neurons or (), counted),
            resources=resources,
            progress=progress,
            **vars(snapshot),
        )
    if html:
        api.html_page(place, found).save(html)
    if as_json:
        print_json(ranking_json(found))
        return
    say(*ranking_lines(found))
    for written in filter(None, (request.out, html)):
        say(f"written to {written}")


if __name__ == "__main__":
    run_alone(rank)
