r"""Says what a reader of distances should know about the datasets that they are between.

>>> print(*notes_of(versions, lenses=[lens]), sep="\n")            # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from pipeline.catalogue import BETWEEN, Version, days_between
from pipeline.comparing.fold_statistics import LEAST_PAIRED
from pipeline.comparing.significance import CHECKED_IMAGES
from pipeline.dna import Lens
from pipeline.spec import flat_numerics
from pipeline.wording import option, some_of

Paired = Mapping[tuple[str, str], float]
"""A share of images in pairs, by the names of two datasets."""

LISTS = (".txt", ".csv")
"""Suffixes of sources that hold no image, but the names of images somewhere near them."""


def notes_of(
    versions: Mapping[str, Version],
    *,
    apart: Sequence[str] = (),
    lenses: Iterable[Lens | None] = (),
    barred: bool = True,
    paired: Paired | None = None,
) -> list[str]:
    """Lists all notes on a comparison, one sentence each.

    Args:
        versions: The version of each dataset that is compared.
        apart: Datasets that were left out without being asked, as they have another spec.
        lenses: The lenses through which the datasets are compared; None stands for no lens.
        barred: Whether the comparison has error bars.
        paired: The share of images in pairs, of each two datasets of which it is known.

    Returns:
        The sentences; none if there is nothing to note.
    """
    notes = []
    if apart:
        notes.append(
            f"not compared, as built under other specs ({option('spec')}): {some_of(apart)}"
        )
    if bare := [name for name, version in versions.items() if not version.has_histograms]:
        notes.append(f"no EMD is known, as they were imported without histograms: {some_of(bare)}")
    notes += [f"numerics differ: {note}" for note in numerics_notes(versions)]
    notes += [
        f"these may share images, and then error bars do not hold: {note}"
        for note in shared_source_notes(versions, paired or {})
    ]
    notes += paired_notes(paired or {}) if barred else []
    notes += [note for lens in lenses if lens for note in lens_notes(lens, versions)]
    notes += few_images_notes(versions) if barred else []
    return notes + [
        f"{name} was {version.provenance}" for name, version in versions.items() if version.imported
    ]


def numerics_notes(versions: Mapping[str, Version]) -> list[str]:
    """Says in which ways the hardware or the libraries of these versions differ.

    Such a difference moves counts only by rounding at the edges of bins, but it should be known.

    Args:
        versions: The version of each dataset.

    Returns:
        A sentence for each field of the numerics with more than one value.
    """
    seen: dict[str, dict[str, set[str]]] = {}
    for name, version in versions.items():
        for entry in version.numerics:
            flat = flat_numerics(entry["numerics"])
            for of in sorted(flat):
                seen.setdefault(of, {}).setdefault(str(flat[of]), set()).add(name)
    return [
        f"{field} was "
        + "; ".join(f"{value} for {', '.join(sorted(of))}" for value, of in sorted(values.items()))
        for field, values in seen.items()
        if len(values) > 1
    ]


def lens_notes(lens: Lens, versions: Mapping[str, Version]) -> list[str]:
    """Says if a lens is used on what it was fitted on, or under another spec.

    Args:
        lens: The lens.
        versions: The version of each dataset that is seen through it.

    Returns:
        Up to two sentences.
    """
    fitted_on = set(lens.fitted_on.values())  # a version or a tag goes by another name
    seen = {name: version.dna for name, version in versions.items() if version.dna in fitted_on}
    notes = []
    if len(set(seen.values())) > 1:
        notes.append(
            f"lens {lens.name} was fitted on {some_of(list(seen))}: between them it does better "
            f"than on other images (vdna lens show {lens.name} has its scores held out)"
        )
    spec = lens.provenance.get("spec")
    others = sorted({version.spec for version in versions.values()} - {spec})
    if spec and others:
        notes.append(
            f"lens {lens.name} was fitted under spec {spec[:12]}, and these are of "
            f"{others[0][:12]}, under which neurons of these weights are counted otherwise"
        )
    return notes


def few_images_notes(versions: Mapping[str, Version]) -> list[str]:
    """Says which samples are smaller than those on which error bars were checked.

    Args:
        versions: The version of each dataset.

    Returns:
        One sentence, or none.
    """
    few = [
        f"{name} ({version.images})"
        for name, version in versions.items()
        if version.images < CHECKED_IMAGES and not version.imported
    ]
    if not few:
        return []
    return [
        f"error bars were checked on {CHECKED_IMAGES} images or more; fewer are of {some_of(few)}"
    ]


def paired_notes(paired: Paired) -> list[str]:
    """Says of which datasets the images are in pairs.

    Args:
        paired: The share of images in pairs, of each two datasets of which it is known.

    Returns:
        One sentence, or none.
    """
    found = [f"{a} and {b} ({share:.0%})" for (a, b), share in paired.items() if _is_paired(share)]
    if not found:
        return []
    return [
        "images of the same path and in the same fold count as pairs, as those of two versions do, "
        "and the error bars allow for it; that does no harm if only their names are equal (share "
        f"of the images): {some_of(found)}"
    ]


def shared_source_notes(versions: Mapping[str, Version], paired: Paired | None = None) -> list[str]:
    """Says which versions come from one source, or from a source within another's.

    Error bars suppose independent samples, or images in pairs, and nested sources may have images
    in common that are not known to be pairs. Only the outermost source is named, with a few of its
    datasets, since a catalogue may hold hundreds of them. Parts of one dataset have no images in
    common, but windows of its days may.

    Args:
        versions: The version of each dataset.
        paired: The share of images in pairs, of each two datasets of which it is known.

    Returns:
        A sentence for each such source.
    """
    # Sorted by segments, so that what lies within a source follows it, and `ab` is not within `a`.
    # The source of an imported version is a file, and not images.
    places = sorted(
        (_place(version.source), name)
        for name, version in versions.items()
        if version.source and not version.imported
    )
    groups: list[tuple[list[str], list[str]]] = []
    for segments, name in places:
        if not groups or segments[: len(groups[-1][0])] != groups[-1][0]:
            groups.append((segments, []))
        groups[-1][1].append(name)
    known = paired or {}
    in_pairs = {frozenset(pair) for pair, share in known.items() if _is_paired(share)}
    return [
        f"{some_of(names)} are of the source {'/'.join(segments) or '/'}, or of places within it"
        for segments, names in groups
        if not _are_different_parts([versions[name] for name in names])
        and any(
            frozenset((a, b)) not in in_pairs and not are_apart(versions[a], versions[b])
            for a, b in combinations(names, 2)
        )
    ]


def are_apart(one: Version, other: Version) -> bool:
    """Tells whether both are parts of one dataset, or windows of its days, without a common image.

    Args:
        one: A version.
        other: Another version.

    Returns:
        True if they are different parts, or have no day in common.
    """
    if BETWEEN not in one.value + other.value:
        return _are_different_parts([one, other])
    if not one.part_of or one.part_of != other.part_of:
        return False
    a, b = days_between(one.value), days_between(other.value)
    return a is None or b is None or a[1] < b[0] or b[1] < a[0]  # no window has what has no day


def _are_different_parts(versions: Sequence[Version]) -> bool:
    """Tells whether all are parts of one dataset, no two of them the same. No windows are."""
    wholes = {version.part_of for version in versions}
    values = {version.value for version in versions}
    are_parts = len(wholes) == 1 and "" not in wholes
    return are_parts and len(values) == len(versions) and not any(BETWEEN in of for of in values)


def _is_paired(share: float) -> bool:
    return share >= LEAST_PAIRED  # not if it is unknown


def is_nested(one: str, other: str) -> bool:
    """Tells whether two sources are the same, or one lies within the other.

    Args:
        one: A source.
        other: Another source. An empty one is nested with nothing.

    Returns:
        True if they are nested.
    """
    pairs = zip(_place(one), _place(other), strict=False)
    return bool(one and other) and all(a == b for a, b in pairs)


def _place(source: str) -> list[str]:
    """Returns the names that lead to a source's images; a list stands for its folder."""
    segments = source.rstrip("/").split("/")
    return segments[:-1] if source.lower().endswith(LISTS) else segments
