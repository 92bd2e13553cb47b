"""Says which images of a dataset are its outliers: as lines, and on its page.

>>> for line in outlier_lines(find_outliers(catalogue, version), "photos"):     # doctest: +SKIP
...     print(line)
outliers   the 2 farthest of 480 images; half of all are at most 4.12 bins from photos
  12.34 bins: photos/a.jpg
  11.90 bins: photos/b.jpg
"""

from __future__ import annotations

from pipeline.catalogue import FarImage, Outliers
from pipeline.explaining import NamedImage
from pipeline.reporting.outcomes import background_sentence
from pipeline.reporting.repeat_words import RepeatGroup, RepeatKind, kind_lines
from pipeline.wording import count_of

OUTLIERS_LISTED = 5
"""How many outliers are listed unless another number is asked for."""

_WORD = "outliers"


def outlier_lines(found: Outliers | None, name: str, chosen: str = "") -> list[str]:
    """Says which images are the outliers, or how to look for them.

    Args:
        found: The outliers to list; None if nobody has looked for them.
        name: The dataset, or the name of a version of it.
        chosen: Options that `vdna show` needs to find the same version, with a space before them.

    Returns:
        A line that says how many there are, one for each of them, and one about their order.
    """
    return kind_lines(outlier_kind(found, name, chosen))


def outlier_kind(found: Outliers | None, name: str, chosen: str = "") -> RepeatKind:
    """Says the same as a kind of images, for the page of a dataset.

    Args:
        found: As in `outlier_lines`.
        name: As in `outlier_lines`.
        chosen: As in `outlier_lines`.

    Returns:
        What is said of them, with a group for each image.
    """
    if found is None:
        command = f"`vdna show {name}{chosen} --outliers 10`"
        return RepeatKind(_WORD, f"not looked for: {command} does it, and reads all images again")
    shown = len(found.images)
    are = "the farthest" if shown == 1 else f"the {shown:,} farthest"
    text = (
        f"{are} of {count_of(found.ranked, 'image')}; half of all are at most "
        f"{found.median:.2f} bins from {name}"
    )
    if found.undefined:
        text += f"; {found.undefined:,} more have no distance"
    # A dataset may have another name by now.
    others = [name if dna == found.dna else other for other, dna in found.background.items()]
    groups = tuple(_outlier(image, has_score=bool(others)) for image in found.images)
    return RepeatKind(_WORD, text, groups, background_sentence(name, others) if others else "")


def _outlier(image: FarImage, *, has_score: bool) -> RepeatGroup:
    score = f"score {image.score:.2f}, " if has_score else ""
    named = NamedImage(image.uri, image.member)
    return RepeatGroup(f"{score}{image.emd:.2f} bins: {image}", (named,))
