"""Show a catalogue in a browser of this machine: distances, datasets, and why pairs differ."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jobs.output import say
from jobs.shell import (
    CatalogueOption,
    RankingOption,
    RayOption,
    Terminated,
    effort_for,
    guarded,
    run_alone,
)
from pipeline.catalogue import SpecOptions
from pipeline.comparing import MemoryLimit
from pipeline.events import Finished, Idle, Listener
from pipeline.reporting import SHOWN_IMAGES


@guarded
def serve(
    context: typer.Context,
    options: SpecOptions,
    memory: MemoryLimit,
    progress: Listener,
    catalogue: CatalogueOption,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")
    ] = 8765,
    samples: Annotated[
        int, typer.Option(min=0, help="Number of images of each dataset on a page.")
    ] = SHOWN_IMAGES,
    ranking: RankingOption = None,
    ray_address: RayOption = None,
) -> None:
    """Show a catalogue to the browsers of this machine, until Ctrl-C. It writes nothing."""
    from pipeline.catalogue import Catalogue
    from pipeline.errors import UsageError
    from pipeline.explaining import read_ranking
    from pipeline.reporting import LiveSite, listen

    place = Catalogue(catalogue)
    site = LiveSite(
        place,
        spec=options.spec,
        samples=samples,
        effort=effort_for(catalogue, None, ray_address, memory, progress),
        rankings=[read_ranking(place, file) for file in ranking or ()],
        progress=progress,
    )
    try:
        server = listen(site, port)
    except OSError as error:
        raise UsageError(
            f"port {port} cannot be listened on: {error.strerror}; try --port 0"
        ) from error
    with server:
        try:
            site.begin()  # what is wrong is said here, and the report is made until a browser asks
            progress(Idle())
            say(f"{catalogue} is at http://127.0.0.1:{server.server_port}/ until Ctrl-C")
            server.serve_forever()
        except KeyboardInterrupt as error:
            code = 143 if isinstance(error, Terminated) else 0
            if site.is_making:
                # No thread in native code can be told to stop, and Python aborts if it ends
                # meanwhile. Nothing is being written. All else of the command ends before.
                context.call_on_close(lambda: os._exit(code))
                progress(Finished(ok=False))
            say("stopped")
            raise typer.Exit(code) from error


if __name__ == "__main__":
    run_alone(serve)
