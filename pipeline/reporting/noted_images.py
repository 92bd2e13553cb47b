"""Says what to know of a dataset's images: those that are transparent, and those of one colour."""

from __future__ import annotations

from typing import get_args

from pipeline.catalogue import Version
from pipeline.spec import Alpha
from pipeline.wording import count_of, option


def image_notes(version: Version, alpha: Alpha) -> list[str]:
    """Says what to know of a version's transparent images, and of those of a single colour.

    Args:
        version: The version.
        alpha: What its spec puts under transparent pixels.

    Returns:
        A sentence for each kind of image that there is.
    """
    notes, images = [], count_of(version.images, "image")
    if number := version.transparent:
        are, its = ("is", "its") if number == 1 else ("are", "their")
        if alpha == "drop":
            *others, last = get_args(Alpha)[1:]
            grounds = f"{option('alpha')} {', '.join(others)} or {last}"
            ends = f"{its} colour under the transparency is counted. Build with {grounds} to lay "
            ends += "transparent images upon a ground instead"
        else:
            ends = f"laid upon {'squares of two greys' if alpha == 'checker' else alpha}"
        notes.append(f"{number:,} of {images} {are} transparent: {ends}")
    if number := version.single_colour:
        are, they = ("is", "it shows") if number == 1 else ("are", "they show")
        ends = f"if {they} nothing, leave such files out with {option('exclude')}"
        notes.append(f"{number:,} of {images} {are} of a single colour: {ends}")
    return notes
