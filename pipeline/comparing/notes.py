"""What a reader of distances should know of the datasets that they are between.

>>> print("
".join(notes_of(versions, lenses=[lens])))         # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.catalogue import Version
from pipeline.comparing.significance import CHECKED_IMAGES
from pipeline.dna import Lens

LISTS = (".txt", ".csv")
"""Sources that hold no image, and name some of where they lie, as far as anyone knows."""

NAMED = 3
"""Datasets that a note names, of several that it is of."""


def notes_of(
    versions: Mapping[str, Version],
    *,
    apart: Sequence[str] = (),
    lenses: Iterable[Lens | None] = (),
    barred: bool = True,
) -> list[str]:
    """A sentence each. `apart`: datasets that were left out unasked; `lenses`: that these are
    looked at through; `barred`: whether there are error bars.
    """
    notes = []
    if apart:
        notes.append(f"not compared, as built under other specs (--spec): {some_of(apart)}")
    notes += [f"numerics differ: {note}" for note in numerics_notes(versions)]
    notes += [
        f"images may be shared, and error bars not hold: {note}"
        for note in shared_source_notes(versions)
    ]
    notes += [note for lens in lenses if lens for note in lens_notes(lens, versions)]
    notes += few_images_notes(versions) if barred else []
    return notes + [
        f"{name} was {version.provenance}" for name, version in versions.items() if version.imported
    ]


def numerics_notes(versions: Mapping[str, Version]) -> list[str]:
    """A sentence for each way in which the hardware or libraries of these versions differ.

    It moves counts by rounding at the edges of bins, no more; but it should be known.
    """
    seen: dict[str, dict[str, set[str]]] = {}
    for name, version in versions.items():
        for entry in version.numerics:
            flat = dict(entry["numerics"]) | dict(entry["numerics"]["versions"])
            for of in sorted(flat.keys() - {"versions"}):
                seen.setdefault(of, {}).setdefault(str(flat[of]), set()).add(name)
    return [
        f"{field} was "
        + "; ".join(f"{value} for {', '.join(sorted(of))}" for value, of in sorted(values.items()))
        for field, values in seen.items()
        if len(values) > 1
    ]


def lens_notes(lens: Lens, versions: Mapping[str, Version]) -> list[str]:
    """Sentences where a lens is looked through at what it was fitted on, or counted otherwise."""
    fitted_on = lens.provenance.get("members") or {}
    seen = [name for name, version in versions.items() if fitted_on.get(name) == version.dna]
    notes = []
    if len(seen) > 1:
        notes.append(
            f"lens {lens.name} was fitted on {some_of(seen)}: between them it does better than on "
            f"other images (vdna lens show {lens.name} has its scores held out)"
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
    """A sentence where samples are smaller than those that error bars were checked on."""
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


def shared_source_notes(versions: Mapping[str, Version]) -> list[str]:
    """A sentence for each source that several of these versions are of, itself or within it.

    Error bars suppose samples that are independent; nested sources may have images in common. Only
    the outermost is told, with a few of its datasets: a catalogue may hold hundreds of them. Parts
    of one dataset have none in common.
    """
    # By segments, and in their order: what lies within a source follows it, and `a` holds no `ab`.
    # A version that was imported has no images of a source, but a file.
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
    return [
        f"{some_of(names)} are of the source {'/'.join(segments) or '/'}, or of places within it"
        for segments, names in groups
        if len({versions[name].part_of or name for name in names}) > 1
        or (len(names) > 1 and not versions[names[0]].part_of)
    ]


def is_nested(one: str, other: str) -> bool:
    """Whether either source is the other, or a place within it."""
    pairs = zip(_place(one), _place(other), strict=False)
    return bool(one and other) and all(a == b for a, b in pairs)


def _place(source: str) -> list[str]:
    """The names that lead to its images: of a list to the folder that it is in."""
    segments = source.rstrip("/").split("/")
    return segments[:-1] if source.lower().endswith(LISTS) else segments


def some_of(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    if len(names) == 1:
        return names[0]
    if len(names) <= NAMED + 1:
        return f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED:,} more"
