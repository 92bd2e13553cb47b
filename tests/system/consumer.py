"""A user's program, which mypy checks strictly against the package's types (`make lint`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import (
    DNA,
    Catalogue,
    Distance,
    Explanation,
    Matrix,
    RankRequest,
    Request,
    Result,
    build,
    compare,
    emd,
    explain,
    html_page,
    make_dna,
    rank,
    report,
    verify,
)


def run(root: str, images: Path) -> float:
    """Uses what a program would use."""
    built: Result = build(root, Request("a", str(images), bins=100, include="*.png"))
    matrix: Matrix = compare(root, ["a", "b"], layers=["head"], progress=True)
    found: Explanation = explain(Catalogue(root), "a", "b", lens="sharp", top=3)
    ranking = rank(root, RankRequest(str(images), "a", top=2))
    html_page(root, found, lens="sharp").save("why.html")
    if not verify(root, ["a"], deep=True, sample="all").ok:
        raise SystemExit(report(root, "page.html").html.decode())
    dna: DNA = make_dna([np.zeros((8, 8, 3), np.uint8)], bins=100, device="cpu")
    distance: Distance = emd(dna, Catalogue(root).load("a"))
    per_neuron: NDArray[np.float64] = emd(dna, dna, per_neuron=True)
    layers: Mapping[str, float] = distance.layers
    print(distance.low, distance.high, dna.to_polars().columns)
    print(built.version.dna, matrix.names, found.half, ranking.nearest[0].emd, per_neuron.max())
    return distance + sum(layers.values())


def mistakes(root: str) -> None:
    """Makes mistakes that mypy must find: it reports an `ignore` that is not needed."""
    Request("a", root, bins="many")  # type: ignore[arg-type]  # a number is wanted
    make_dna(root, bins="many")  # type: ignore[arg-type]  # a number is wanted
    compare(root, layer=["head"])  # type: ignore[call-arg]  # the option is `layers`
    verify(root, shards="all")  # type: ignore[call-arg]  # the option is `sample`
    print(compare(root).median)  # type: ignore[attr-defined]  # a matrix has no such attribute
