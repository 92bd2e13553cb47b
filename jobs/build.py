"""Build a dataset's DNA and commit it to the catalogue."""

from __future__ import annotations

from jobs.output import print_json, say
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    RayOption,
    RelistOption,
    engine_for,
    guarded,
    run_alone,
)
from pipeline.building import Request
from pipeline.events import Listener
from pipeline.spec import Resources


@guarded
def build(
    request: Request,
    resources: Resources,
    progress: Listener,
    catalogue: CatalogueOption,
    relist: RelistOption = False,
    ray_address: RayOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a dataset's DNA and commit it. The same command again does only what is missing."""
    from pipeline import api
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import build_json, build_lines

    place = Catalogue(catalogue)  # a wrong url is refused before Ray starts
    with engine_for(resources, ray_address, progress) as engine:
        result = api.build(
            place,
            request,
            engine=engine,
            resources=resources,
            relist=relist,
            progress=progress,
        )
    if as_json:
        print_json(build_json(result))
    else:
        say(*build_lines(result, request.alpha))


if __name__ == "__main__":
    run_alone(build)
