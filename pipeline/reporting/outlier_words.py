"""Says which images of a dataset are its outliers: as lines, and on its page.

>>> for line in outlier_lines(find_outliers(catalogue, version), "photos"):     # doctest: +SKIP
...     print(line)
outliers   the 2 farthest of 480 images; half of all are at most 4.12 bins from photos
  12.34 bins: photos/a.jpg
  11.90 bins: photos/b.jpg
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.catalogue import Commit, FarImage, Outliers
from pipeline.explaining import NamedImage
from pipeline.reporting.outcomes import background_sentence
from pipeline.reporting.repeat_words import RepeatGroup, RepeatKind, kind_lines
from pipeline.wording import count_of, some_of

OUTLIERS_LISTED = 5
"""How many outliers are listed unless another number is asked for."""

_WORD = "outliers"


def outlier_lines(
    found: Outliers | None, name: str, chosen: str = "", commit: Commit | None = None
) -> list[str]:
    """Says which images are the outliers, or how to look for them.

    Args:
        found: The outliers to list; None if nobody has looked for them.
        name: The dataset, or the name of a version of it.
        chosen: Options that `vdna show` needs to find the same version, with a space before them.
        commit: The commit that is looked at. Datasets that the outliers were ranked against, and
            that it does not have, are told; None for nothing of them.

    Returns:
        A line that says how many there are, one for each of them, and one about their order.
    """
    return kind_lines(outlier_kind(found, name, chosen, commit))


def outlier_kind(
    found: Outliers | None, name: str, chosen: str = "", commit: Commit | None = None
) -> RepeatKind:
    """Says the same as a kind of images, for the page of a dataset.

    Args:
        found: As in `outlier_lines`.
        name: As in `outlier_lines`.
        chosen: As in `outlier_lines`.
        commit: As in `outlier_lines`.

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
    there = _dnas_of(commit, found.spec) if commit else dict(found.background)
    # A dataset may have another name by now.
    names = {there[of]: of for of in sorted(there, reverse=True)} | {found.dna: name}
    others = [
        of if there.get(of) == dna != found.dna else names.get(dna, of)
        for of, dna in found.background.items()
    ]
    groups = tuple(_outlier(image, has_score=bool(others)) for image in found.images)
    more = background_sentence(name, others) if others else ""
    lost = [of for of, dna in found.background.items() if dna not in names]
    if lost:
        changed = [of for of in lost if of in there]
        gone = [of for of in lost if of not in there]
        more += f". The images were ranked {_against(changed, gone)}; "
        more += f"`vdna rank --to {name}{chosen}` ranks them anew"
    return RepeatKind(_WORD, text, groups, more)


def _dnas_of(commit: Commit, spec: str) -> dict[str, str]:
    """Returns the digests of the DNAs that a commit has under a spec, by the datasets' names."""
    return {name: of[spec].dna for name, of in commit.datasets.items() if spec in of}


def _against(changed: Sequence[str], gone: Sequence[str]) -> str:
    """Says against which versions images were ranked that are not the datasets' own any more."""
    versions = "another version" if len(changed) == 1 else "other versions"
    said = [f"against {versions} of {some_of(changed)}"] if changed else []
    are = "is" if len(gone) == 1 else "are"
    said += [f"against {some_of(gone)}, which {are} gone"] if gone else []
    return ", and ".join(said)


def _outlier(image: FarImage, *, has_score: bool) -> RepeatGroup:
    score = f"score {image.score:.2f}, " if has_score else ""
    named = NamedImage(image.uri, image.member)
    return RepeatGroup(f"{score}{image.emd:.2f} bins: {image}", (named,))
