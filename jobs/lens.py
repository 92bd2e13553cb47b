"""Lenses: weights of neurons, fitted to attributes, kept in the catalogue by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import CatalogueOption, JsonOption, NeuronsOption, guarded
from pipeline.catalogue import SpecOptions
from pipeline.events import Listener
from pipeline.explaining import FitOptions
from pipeline.wording import count_of

if TYPE_CHECKING:
    from pipeline.catalogue import Catalogue
    from pipeline.dna import Lens

lens = typer.Typer(
    help="Fit, choose, list and show lenses, which weigh neurons. Use one by --lens of compare, "
    "explain, rank or report, or in a gate.",
    no_args_is_help=True,
)
LensName = Annotated[str, typer.Argument(help="Name of the lens in the catalogue.")]


@lens.command()
@guarded
def fit(
    options: FitOptions,
    name: LensName,
    catalogue: CatalogueOption,
    progress: Listener,
    as_json: JsonOption = False,
) -> None:
    """Fit a lens to attributes, and say how well it works on images that it was not fitted to.

    An attribute is two datasets, WITH:WITHOUT. Write WITH=WITHOUT if they are the same images, with
    a change and without it, which are then paired by their names. Some changes have a word, such as
    brightness: they are made here, to a sample of the datasets' own images, which are read again.
    """
    from pipeline import api
    from pipeline.catalogue import Catalogue
    from pipeline.reporting import fit_lines

    place = Catalogue(catalogue)
    found = api.fit_lens(place, name, save=False, progress=progress, **vars(options))
    _keep(place, found.lens, fit_lines(found), as_json)


@lens.command()
@guarded
def choose(
    spec: SpecOptions,
    name: LensName,
    catalogue: CatalogueOption,
    layer: Annotated[
        list[str] | None, typer.Option(help="Take all neurons of this layer. Can be repeated.")
    ] = None,
    neurons: NeuronsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a lens of whole layers, of neurons by their numbers, or of both, with equal weights."""
    from pipeline.catalogue import Catalogue, check_lens_name
    from pipeline.dna import Lens
    from pipeline.errors import UsageError

    check_lens_name(name)
    if not layer and not neurons:
        raise UsageError("give --layer or --neurons, to say what the lens sees")
    place = Catalogue(catalogue)
    of = place.spec(place.spec_digest(place.at(), spec.spec))
    whole = [f"{each}:0-{of.tap(each).neurons - 1}" for each in layer or ()]
    found = replace(Lens.chosen(of, [*whole, *(neurons or ())]), name=name)
    neurons_seen = count_of(int((found.weights != 0).sum()), "neuron")
    _keep(place, found, [f"{neurons_seen} of equal weight"], as_json)


def _keep(place: Catalogue, found: Lens, lines: Sequence[str], as_json: bool) -> None:
    """Stores a lens and says where, and which lens had its name before."""
    from pipeline.catalogue import keep_lens, newest_lenses
    from pipeline.reporting import lens_json

    before = newest_lenses(place).get(found.name)
    uri = keep_lens(place, found)
    replaced = before.uri if before and before.uri != uri else None
    if as_json:
        print_json({"uri": uri, "replaced": replaced, **lens_json(found)})
        return
    say(*lines)
    say(f"written to {uri}; see through it with --lens {found.name}")
    if replaced:
        say(f"note: {found.name} was {replaced} before; that file stays, under its own uri")


@lens.command()
@guarded
def ls(catalogue: CatalogueOption, as_json: JsonOption = False) -> None:
    """List the newest lens of each name: what it was fitted to, and how well it works."""
    from pipeline.catalogue import Catalogue, newest_lenses
    from pipeline.reporting import lens_table, listed_lens

    place = Catalogue(catalogue)
    found = sorted(newest_lenses(place).items())
    if not found:
        place.at()  # says so if there is no catalogue
    rows = [listed_lens(name, item) for name, item in found]
    if as_json:
        print_json(rows)
    elif not rows:
        say("no lenses yet; vdna lens fit NAME makes one")
    else:
        say(*lens_table(rows))


@lens.command()
@guarded
def show(
    spec: SpecOptions,
    name: LensName,
    catalogue: CatalogueOption,
    as_json: JsonOption = False,
) -> None:
    """Show what a lens was fitted to, how well it works, and the neurons that it weighs most."""
    from pipeline.catalogue import Catalogue, find_lens, spec_of_lens
    from pipeline.reporting import heaviest_neurons, lens_json, lens_lines

    place = Catalogue(catalogue)
    head = place.at()
    digest = spec.spec and place.spec_digest(head, spec.spec)
    of = place.spec(digest) if digest else spec_of_lens(place, name)
    found = find_lens(place, name, of)
    if as_json:
        print_json({**lens_json(found), "most": heaviest_neurons(found)})
    else:
        say(*lens_lines(found))


if __name__ == "__main__":
    lens()
