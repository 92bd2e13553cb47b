"""Checks that the distance of two DNAs means something.

>>> a, b = comparable(a, b, "blocks.3.1", "counts")                        # doctest: +SKIP
"""

from __future__ import annotations

from pipeline.dna import DNA
from pipeline.errors import UsageError, shortened

_MISSING = {
    "counts": "has no histograms",
    "mean": "has no Gaussians",
    "scatter": "has no layer Gaussians: build it, and load it, with layer_gaussian=True",
}


def comparable(
    a: DNA,
    b: DNA,
    layer: str | None,
    column: str,
    names: tuple[str, str] = ("the first DNA", "the second DNA"),
) -> tuple[DNA, DNA]:
    """Checks that two DNAs can be compared, and takes a layer of each.

    Args:
        a: One DNA.
        b: The other DNA.
        layer: The layer to take, or None for all.
        column: What both must have: `counts`, `mean` or `scatter`.
        names: What messages call the two.

    Returns:
        Both DNAs, reduced to the layer if one is given.

    Raises:
        SpecMismatch: If the specs differ; the message names the fields.
        UsageError: If one of them is no DNA, has no images or lacks the column, or if different
            layers are loaded.
    """
    for name, given in zip(names, (a, b), strict=True):
        if not isinstance(given, DNA):
            raise UsageError(
                f"{name} is {shortened(given)}, of type {type(given).__name__}; make_dna(...) "
                "makes a DNA of images, and Catalogue(...).load(name) loads that of a dataset"
            )
    a.spec.require_same(b.spec, *names)
    for name, dna in zip(names, (a, b), strict=True):
        if dna.images == 0:
            raise UsageError(f"{name} has no images, so there is no distance from it")
        if column in dna.unknown or (column == "scatter" and dna.scatter is None):
            raise UsageError(f"{name} {_MISSING[column]}")
    if layer is not None:
        return a.select([layer]), b.select([layer])
    if a.layers != b.layers:
        raise UsageError(
            f"layers {a.layers} are loaded of {names[0]} and {b.layers} of {names[1]}; load the "
            "same of both, or choose one with layer="
        )
    return a, b
