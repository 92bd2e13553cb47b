"""Weights of networks: fetched before they are needed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jobs.output import print_json, say
from jobs.shell import JsonOption, guarded
from pipeline.wording import in_units

weights = typer.Typer(help="Fetch the weights of networks.", no_args_is_help=True)


@weights.callback()
def _group() -> None:
    """Fetch the weights of networks."""


@weights.command()
@guarded
def pull(
    networks: Annotated[
        list[str],
        typer.Argument(help="Networks, such as timm:resnet50.a1_in1k.", show_default=False),
    ],
    to: Annotated[
        str | None,
        typer.Option(
            help="Folder or prefix of a store for a copy, whose url a build takes by --weights. "
            "Without it, they stay in the caches of this machine (HF_HOME, TORCH_HOME)."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch networks' own weights, so that a build need not."""
    from pipeline import storage
    from pipeline.networks import pull_weights

    found = [pull_weights(network, to) for network in networks]
    if as_json:
        print_json([asdict(pulled) for pulled in found])
        return
    for pulled in found:
        place = storage.readable(pulled.uri)
        size = in_units(pulled.bytes)
        say(f"{pulled.network}: {size}, sha256 {pulled.sha256[:12]}, in {place}")


if __name__ == "__main__":
    weights()
