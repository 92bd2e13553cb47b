"""Lenses: weights of neurons, fitted to attributes, kept in the catalogue by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.shell import (
    AtOption,
    CatalogueOption,
    JsonOption,
    LogFormat,
    LogFormatOption,
    NeuronsOption,
    SpecOption,
    guarded,
    print_json,
    progress,
)

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue
    from pipeline.dna import Lens
    from pipeline.explaining import FittedLens, Score
    from pipeline.storage import Stored

lens = typer.Typer(
    help="Fit, choose, list and show lenses: weights of neurons (--lens of compare, explain, "
    "rank, report, and of a gate).",
    no_args_is_help=True,
)
LensName = Annotated[str, typer.Argument(help="Name of the lens in the catalogue.")]
SHOWN = 20
LISTED = 3
"""Datasets, and scores, of a lens in a list."""
FAIR = 0.2


@lens.command()
@guarded
def fit(
    name: LensName,
    catalogue: CatalogueOption,
    focus: Annotated[
        str | None,
        typer.Option(
            metavar="WITH:WITHOUT",
            help="See this attribute: two datasets, with it and without. Its few neurons, alike.",
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Neurons of a focus (default: 20).")
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="A focus among this layer's only. Can be repeated.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="WITH:WITHOUT", help="Do not see this attribute. Can be repeated."),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="WITH:WITHOUT", help="See this one as before. Can be repeated."),
    ] = None,
    non_negative: Annotated[
        bool, typer.Option("--non-negative", help="A lens that stays a metric; ignores less well.")
    ] = False,
    by_layer: Annotated[
        bool, typer.Option("--by-layer", help="One weight for all neurons of a layer.")
    ] = False,
    spec: SpecOption = None,
    at: AtOption = None,
    log_format: LogFormatOption = LogFormat.text,
    as_json: JsonOption = False,
) -> None:
    """Fit a lens to attributes, and tell how it does on images that it was not fitted on.

    WITH=WITHOUT in place of WITH:WITHOUT says that they are the same images, with a change and
    without, paired by their names.
    """
    from pipeline.catalogue import Catalogue, check_lens_name
    from pipeline.errors import UsageError
    from pipeline.explaining import fit_lens

    check_lens_name(name)
    if (focus is None) == (not ignore):
        raise UsageError("give either --focus, or --ignore and --keep")
    if focus is not None and (keep or non_negative or by_layer):
        raise UsageError("--keep, --non-negative and --by-layer belong to --ignore")
    if ignore and (layer or top):
        raise UsageError("--layer and --top belong to --focus; weights are fitted to all neurons")
    place = Catalogue(catalogue)
    found = fit_lens(
        place,
        name,
        focus=focus,
        ignore=ignore or (),
        keep=keep or (),
        top=top,
        layers=layer,
        non_negative=non_negative,
        by_layer=by_layer,
        spec=spec,
        at=at,
        progress=progress(),
    )
    _keep(place, found.lens, _sentences(found), as_json)


@lens.command()
@guarded
def choose(
    name: LensName,
    catalogue: CatalogueOption,
    layer: Annotated[
        list[str] | None, typer.Option(help="All neurons of this layer. Can be repeated.")
    ] = None,
    neurons: NeuronsOption = None,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a lens of whole layers, of neurons by their numbers, or of both, all alike."""
    from pipeline.catalogue import Catalogue, check_lens_name
    from pipeline.dna import Lens
    from pipeline.errors import UsageError

    check_lens_name(name)
    if not layer and not neurons:
        raise UsageError("give --layer or --neurons: what the lens is to see")
    place = Catalogue(catalogue)
    of = place.spec(place.spec_digest(place.head(), spec))
    whole = [f"{each}:0-{of.tap(each).neurons - 1}" for each in layer or ()]
    found = replace(Lens.chosen(of, [*whole, *(neurons or ())]), name=name)
    _keep(place, found, [f"{_told(found)['neurons']:,} neurons, alike"], as_json)


def _keep(place: Catalogue, found: Lens, lines: Sequence[str], as_json: bool) -> None:
    """Store it, and tell of it; and of the one that its name was of until now."""
    from pipeline.catalogue import keep_lens, newest_lenses

    before = newest_lenses(place).get(found.name)
    uri = keep_lens(place, found)
    replaced = before.uri if before and before.uri != uri else None
    if as_json:
        print_json({"uri": uri, "replaced": replaced, **_told(found)})
        return
    for line in lines:
        print(line)
    print(f"written to {uri}; see through it with --lens {found.name}")
    if replaced:
        print(f"note: {found.name} was {replaced} until now, which stays, to be named by its uri")


def _told(of: Lens) -> dict[str, Any]:
    return {
        "name": of.name,
        "digest": of.digest,
        "neurons": int((of.weights != 0).sum()),
        "negative": int((of.weights < 0).sum()),
        **of.provenance,
    }


def _sentences(found: FittedLens) -> list[str]:
    lines = [_line(score) for score in found.scores]
    seen = {score.role for score in found.scores if score.seen}
    if all(score.role == "focus" for score in found.scores):
        return lines
    if "ignored" not in seen:
        return [*lines, "nothing of what is to be ignored is seen: the lens is of no use"]
    kept = "nothing of what is to be kept is seen"
    if "kept" in seen:
        kept = f"what is kept changes by {found.change:.1%}"
    gone = f"{found.suppression:.1%} of what is ignored is gone"
    return [*lines, f"held out: {gone}, {kept} (means of the attributes that are seen)"]


def _line(score: Score) -> str:
    wish = {"focus": "seen", "ignored": "ignored", "kept": "kept"}[score.role]
    if not score.seen:
        return f"{score.attribute}: to be {wish}; its signal is under the floor of so few images"
    return (
        f"{score.attribute}: to be {wish}; through the lens {score.through:.1%} of its "
        f"{score.plain:.2f} bins, held out{'' if _granted(score) else ' - NOT as wished'}"
    )


def _granted(score: Score) -> bool:
    """Within a fifth of what was asked for; of a focus, more than all neurons see."""
    if score.role == "focus":
        return score.through > 1
    return abs(score.through - (score.role == "kept")) < FAIR


@lens.command()
@guarded
def ls(catalogue: CatalogueOption, as_json: JsonOption = False) -> None:
    """List the lenses of a catalogue, the newest of each name: of what, and how they do."""
    from pipeline.catalogue import Catalogue, newest_lenses

    found = sorted(newest_lenses(Catalogue(catalogue)).items())
    rows = [_listed(name, item) for name, item in found]
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("no lenses: vdna lens fit NAME makes one")
        return
    cells: list[tuple[str, ...]] = [
        ("name", "kind", "neurons", "written", "fitted on", "held out: through / plain")
    ]
    cells += [_cells(row) for row in rows]
    widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    for line in cells:
        padded = (f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        print("  ".join(padded).rstrip())


def _listed(name: str, item: Stored) -> dict[str, Any]:
    """What a lens's file says of itself; of one that cannot be read, why."""
    from pipeline import storage
    from pipeline.dna import Lens
    from pipeline.errors import VdnaError
    from pipeline.explaining import Score

    row: dict[str, Any] = {"name": name, "uri": item.uri, "written": item.modified}
    try:
        stated = Lens.stated(storage.read(item.uri), item.uri)
        provenance = stated["provenance"]
        return {
            **row,
            "written": stated.get("written", item.modified),
            "kind": str(provenance.get("kind", "weights")),
            "neurons": stated["neurons"],
            "fitted_on": {name: int(n) for name, n in provenance.get("images", {}).items()},
            "held_out": [asdict(Score(**score)) for score in provenance.get("held_out", ())],
        }
    except VdnaError as error:
        return {**row, "problem": str(error)}
    except (AttributeError, TypeError, ValueError) as error:
        return {**row, "problem": f"{item.uri}: its provenance is none of ours: {error}"}


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    """Of a line: which datasets, and of each attribute what the lens leaves of it."""
    written = f"{row['written']:%Y-%m-%d %H:%M}" if row["written"] else ""
    if "problem" in row:
        return row["name"], "unreadable", "", written, row["problem"], ""
    fitted = [f"{name} ({images:,})" for name, images in row["fitted_on"].items()]
    scores = [
        f"{score['role']} {score['attribute']} {score['through']:.2f}"
        if score["seen"]
        else f"{score['role']} {score['attribute']} not seen"
        for score in row["held_out"]
    ]
    neurons = f"{row['neurons']:,}"
    return row["name"], row["kind"], neurons, written, _few(fitted), _few(scores)


def _few(parts: list[str]) -> str:
    """The first ones; `show` has them all."""
    more = f" and {len(parts) - LISTED} more" if len(parts) > LISTED else ""
    return ", ".join(parts[:LISTED]) + more


@lens.command()
@guarded
def show(
    name: LensName,
    catalogue: CatalogueOption,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a lens was fitted on, how it does, and the neurons that it weighs most."""
    import numpy as np

    from pipeline.catalogue import Catalogue, find_lens, spec_of_lens
    from pipeline.dna import neuron_name
    from pipeline.explaining import Score

    place = Catalogue(catalogue)
    of = place.spec(place.spec_digest(place.head(), spec)) if spec else spec_of_lens(place, name)
    found = find_lens(place, name, of)
    order = np.argsort(-np.abs(found.weights), kind="stable")[:SHOWN].tolist()
    most = {neuron_name(found.taps, at): float(found.weights[at]) for at in order}
    most = {neuron: weight for neuron, weight in most.items() if weight}
    told = _told(found)
    if as_json:
        print_json({**told, "most": most})
        return
    print(
        f"{found.name}: {told['neurons']:,} neurons weighed, {told['negative']:,} of them below 0"
    )
    of_what = found.provenance
    if of_what:
        how = [f"{key} {of_what[key]}" for key in ("by", "top") if of_what.get(key)]
        print(f"fitted to {of_what['kind']}, {', '.join(how)}, by {of_what['software']}")
        for dataset, dna in of_what["members"].items():
            print(f"  {dataset}: {of_what['images'][dataset]:,} images (dna {dna[:12]})")
    for score in found.provenance.get("held_out", ()):
        print(_line(Score(**score)))
    for neuron, weight in most.items():
        print(f"  {neuron}  {weight:+.3g}")


if __name__ == "__main__":
    lens()
