"""Explain why two datasets differ: by which layers and neurons, and in which images."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, print_notes, say
from jobs.shell import (
    CatalogueOption,
    JsonOption,
    LensOption,
    NeuronsOption,
    guarded,
    lens_for,
    pinned,
    run_alone,
)
from pipeline.events import Listener
from pipeline.explaining import LOOK, ExplainOptions

if TYPE_CHECKING:
    from pipeline.explaining import Explanation, Reaction


@guarded
def explain(
    options: ExplainOptions,
    catalogue: CatalogueOption,
    progress: Listener,
    a: Annotated[str, typer.Argument(help="A dataset.")],
    b: Annotated[str, typer.Argument(help="The dataset that it is compared with.")],
    lens: LensOption = None,
    neurons: NeuronsOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="Where to write the result: all neurons, the most different first (.parquet)."
        ),
    ] = None,
    html: Annotated[
        str | None, typer.Option(help="Page to write, with the images (.html).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the layers and neurons in which two datasets differ; show how, and in which images."""
    from pipeline import api, storage
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import group_rows, look_notes, require_html

    if out is not None:
        storage.parquet_uri(out, "the neurons are")
    if html is not None:
        require_html(html)
    place = Catalogue(catalogue)
    options = pinned(place, options)
    if html and options.look is None:
        options = replace(options, look=LOOK)
    through = lens_for(place, (a, b), lens, neurons or (), options)
    found = api.explain(place, a, b, lens=through, progress=progress, **vars(options))
    if out:
        found.save(out)
    if html:
        api.html_page(place, found, lens=through).save(html)
    if as_json:
        first = found.neurons.slice(0, options.top).to_pylist()
        for row, (of_a, of_b) in zip(first, found.reactions, strict=True):
            row["exemplars"] = {
                "a": None if of_a is None else [_image_json(image) for image in of_a],
                "b": None if of_b is None else [_image_json(image) for image in of_b],
            }
        for row, shown in zip(first, found.shown, strict=False):
            row["histograms"] = asdict(shown)
        print_json(
            {
                "a": a,
                "b": b,
                "lens": found.lens,
                "differing": found.differing,
                "half": found.half,
                "layers": found.layers.to_pylist(),
                "neurons": first,
                "groups": group_rows(found),
                "unlike": _unlike_json(found),
                "notes": look_notes(found),
            }
        )
        print_notes(found.versions, lenses=[through], paired=found.paired(), as_json=True)
        return
    from rich.console import Console

    from pipeline.reporting import explanation_sentence, group_lines, print_explanation

    print_explanation(found, Console(), options.top)
    say(explanation_sentence(found), *group_lines(found))
    print_notes(found.versions, lenses=[through], paired=found.paired(), as_json=False)
    for written in filter(None, (out, html)):
        say(f"written to {written}")


def _image_json(image: Reaction) -> dict[str, object]:
    return {"uri": image.uri, "member": image.member, "reaction": image.reaction}


def _unlike_json(found: Explanation) -> dict[str, object]:
    """Returns the images of each dataset that are most unlike the other, if some were looked at."""
    sides = found.look.unlike if found.look else ((), ())
    return {
        side: [
            {"uri": of.uri, "member": of.member, "to_other": of.to_other, "to_own": of.to_own}
            for of in images
        ]
        for side, images in zip("ab", sides, strict=True)
    }


if __name__ == "__main__":
    run_alone(explain)
