"""Follow a dataset over its versions, and raise an alarm where it has moved."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.output import print_json, print_note, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.events import Listener
from pipeline.explaining import DriftOptions


@guarded
def drift(
    options: DriftOptions,
    catalogue: CatalogueOption,
    progress: Listener,
    name: Annotated[str, typer.Argument(help="Dataset, or the version to end with.")],
    html: Annotated[
        str | None, typer.Option(help="Page to write, with a chart and images (.html).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a dataset over its versions: how far each has moved, and which raise an alarm.

    With --window 7d, it goes from each window of seven days to the next. Then: the images, layers
    and neurons that moved at the last alarm. If there is none, these are of the newest one against
    the reference. Intervals and tests know which images versions share.
    """
    from rich.console import Console

    from pipeline import api
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import (
        difference_lines,
        drift_json,
        drift_lines,
        drift_sentences,
        group_lines,
        print_explanation,
        require_html,
    )

    if html is not None:
        require_html(html)
    place = Catalogue(catalogue)
    found = api.drift(place, name, progress=progress, **vars(options))
    if html:
        api.html_page(place, found).save(html)
    if as_json:
        print_json(drift_json(found, options.top))
        for note in found.notes():
            print_note(note, as_json=True)
        return
    say(*drift_lines(found), "", *drift_sentences(found), "")
    if found.difference is not None:
        say(*difference_lines(found.difference), "")
    if found.explanation is not None:
        print_explanation(found.explanation, Console(), options.top)
        say(*group_lines(found.explanation))
    for note in found.notes():
        print_note(note, as_json=False)
    if html:
        say(f"written to {html}")


if __name__ == "__main__":
    run_alone(drift)
