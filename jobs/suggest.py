"""Order datasets by how near they are to a target, for choosing what to train on."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from jobs.output import print_json, print_notes, say
from jobs.shell import CatalogueOption, JsonOption, effort_for, guarded, pinned, run_alone
from pipeline.comparing import MemoryLimit
from pipeline.events import Listener
from pipeline.explaining import SuggestOptions


@guarded
def suggest(
    options: SuggestOptions,
    memory: MemoryLimit,
    progress: Listener,
    catalogue: CatalogueOption,
    target: Annotated[str, typer.Argument(help="Dataset that a model is to do well on.")],
    candidates: Annotated[
        list[str] | None,
        typer.Argument(help="Datasets that it may be trained on (default: all others)."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Order datasets by their distance to a target, for choosing what to train on.

    No label is looked at. The output says how well this order predicted accuracy where that was
    measured.
    """
    from pipeline import api
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import suggestion_json, suggestion_lines

    place = Catalogue(catalogue)
    options = pinned(place, options)
    effort = effort_for(catalogue, 0, None, memory, progress)
    found = api.suggest(place, target, candidates or (), effort=effort, **vars(options))
    shown = [target, *(candidate.name for candidate in found.candidates)]
    notes = partial(
        print_notes,
        place.find_all(shown, options.at, found.spec),
        paired={(target, one.name): one.paired for one in found.candidates if one.paired > 0},
    )
    if as_json:
        print_json(suggestion_json(found))
        notes(as_json=True)
        return
    say(*suggestion_lines(found))
    notes(as_json=False)


if __name__ == "__main__":
    run_alone(suggest)
