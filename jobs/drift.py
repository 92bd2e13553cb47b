"""Follow a dataset over its versions, and raise an alarm where it has moved."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.output import print_json, print_notes, say
from jobs.shell import CatalogueOption, JsonOption, guarded, run_alone
from pipeline.events import Listener
from pipeline.explaining import DriftOptions


@guarded
def drift(
    options: DriftOptions,
    catalogue: CatalogueOption,
    progress: Listener,
    name: Annotated[str, typer.Argument(help="Dataset, or the version to end with.")],
    as_json: JsonOption = False,
) -> None:
    """Follow a dataset over its versions: how far each has moved, and which raise an alarm.

    Then: the images, layers and neurons that moved at the last alarm. If there is none, these are
    of the newest version against the reference. Intervals and tests know which images versions
    share.
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
    )

    place = Catalogue(catalogue)
    found = api.drift(place, name, progress=progress, **vars(options))
    if as_json:
        print_json(drift_json(found, options.top))
        print_notes(found.versions, paired=found.paired(), to=sys.stderr)
        return
    say(*drift_lines(found), "", *drift_sentences(found), "")
    if found.difference is not None:
        say(*difference_lines(found.difference), "")
    if found.explanation is not None:
        print_explanation(found.explanation, Console(), options.top)
        say(*group_lines(found.explanation))
    print_notes(found.versions, paired=found.paired())


if __name__ == "__main__":
    run_alone(drift)
