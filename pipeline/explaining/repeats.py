"""Finds the images of a dataset that it has more than once, and those of one colour or black.

    >>> found = find_repeats(Catalogue("dnas"), "sunny")                 # doctest: +SKIP
    >>> found.copies.images, found.copies.groups                         # doctest: +SKIP
    (31, 12)
    >>> [str(image) for image in found.copies.listed[0].images]          # doctest: +SKIP

Only the hashes that the build kept are read, and the names of what is listed. *Copies* have files
of equal bytes. Images *look alike* if few bits of their looks differ, or if a chain of such images
links them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.catalogue import Catalogue, Version
from pipeline.dna import BLACK, READ, SINGLE_COLOUR, HashRows, Ints
from pipeline.events import Listener, ignore
from pipeline.explaining.near_looks import bits_set, near_groups
from pipeline.explaining.reactions import NamedImage, reader_of
from pipeline.notebook import html_table
from pipeline.sources import Manifest

NAMED_IN_A_GROUP = 20
"""How many images of a group are named."""

QUICK_SEARCH = 500_000_000
"""How many looks are sorted and compared where nobody has asked for it: that takes a minute or two.
A search among 20 million images whose looks have little in common takes less."""

LEAST_BITS = 8
"""A look with fewer bits set, or fewer not set, says too little: a plain gradient has none."""


@dataclass(frozen=True)
class ImageGroup:
    """Images that are copies of each other, or look alike.

    Attributes:
        size: How many there are.
        images: The first of them in the order of the manifest, at most `NAMED_IN_A_GROUP`.
    """

    size: int
    images: tuple[NamedImage, ...]


@dataclass(frozen=True)
class ImageGroups:
    """All groups of a kind.

    Attributes:
        groups: How many groups there are.
        images: How many images are in them.
        listed: The largest groups, the largest first.
    """

    groups: int
    images: int
    listed: tuple[ImageGroup, ...]

    @property
    def spare(self) -> int:
        """How many images are left out if one of each group stays."""
        return self.images - self.groups


@dataclass(frozen=True)
class Repeats:
    """What a dataset has more than once, and its images of one colour.

    Attributes:
        name: The dataset.
        images: How many images it has.
        copies: Groups of images whose files have equal bytes.
        alike: Groups of images that look alike and are not all copies; None if these were not
            found, because the limit was reached.
        single_colour: The images of a single colour.
        black: The images of which no channel of any pixel is above 8 of 255.
        plain: How many images are so plain that it is not known what they look like.
    """

    name: str
    images: int
    copies: ImageGroups
    alike: ImageGroups | None
    single_colour: ImageGroup
    black: ImageGroup
    plain: int

    def __repr__(self) -> str:
        return f"<Repeats of {self.name}: {', '.join(f'{what} {of}' for what, of in self._rows())}>"

    def _repr_html_(self) -> str:
        return html_table(f"Repeated images of {self.name}", ("", "images"), self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("in groups of equal files", f"{self.copies.images:,} of {self.images:,}"),
            ("in groups that look alike", f"{self.alike.images:,}" if self.alike else "not known"),
            ("of a single colour", f"{self.single_colour.size:,}"),
            ("black", f"{self.black.size:,}"),
            ("too plain", f"{self.plain:,}"),
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns the same for JSON."""

        def of_group(group: ImageGroup) -> dict[str, Any]:
            names = [{"uri": image.uri, "member": image.member} for image in group.images]
            return {"size": group.size, "images": names}

        def of_groups(found: ImageGroups) -> dict[str, Any]:
            listed = [of_group(group) for group in found.listed]
            return {"groups": found.groups, "images": found.images, "listed": listed}

        return {
            "copies": of_groups(self.copies),
            "alike": None if self.alike is None else of_groups(self.alike),
            "single_colour": of_group(self.single_colour),
            "black": of_group(self.black),
            "plain": self.plain,
        }


def find_repeats(
    catalogue: Catalogue,
    name: str,
    version: Version | None = None,
    listed: int = 5,
    *,
    limit: int | None = None,
    progress: Listener = ignore,
) -> Repeats:
    """Finds the images of a dataset that it has more than once, and those of one colour.

    It takes about 200 bytes of memory for each image.

    Args:
        catalogue: The catalogue.
        name: The dataset.
        version: The version; None for the newest.
        listed: How many groups of each kind, and how many images of one colour, are listed.
        limit: How many looks may be sorted and compared to find look-alikes; None for any number.
        progress: Told how far the search for look-alikes is.

    Returns:
        What was found.

    Raises:
        NotFound: There is no such dataset, or its build has kept no hashes.
        CorruptFile: A file of the version is damaged.
    """
    version = catalogue.find(name) if version is None else version
    rows = catalogue.image_hashes(name, version)
    read = np.flatnonzero(rows["flags"] & READ)
    kept = rows[read]
    copies = _groups(kept["content"], listed)
    plain = _is_plain(kept)
    seen = np.flatnonzero(~plain)
    alike = _alike(kept[seen], listed, limit, progress)
    odd = {
        flag: np.flatnonzero(kept["flags"] & flag)[: NAMED_IN_A_GROUP if listed else 0]
        for flag in (SINGLE_COLOUR, BLACK)
    }
    alike_places = [seen[of] for of in alike.places] if alike is not None else []
    wanted = [*copies.places, *alike_places, *odd.values()]
    names = _Names(catalogue, name, version, [read[of] for of in wanted])

    def named(found: _Grouped, places: Iterable[Ints]) -> ImageGroups:
        groups = zip(found.sizes, places, strict=True)
        listed_groups = (ImageGroup(size, names.of(read[at])) for size, at in groups)
        return ImageGroups(found.groups, found.images, tuple(listed_groups))

    def flagged(flag: int) -> ImageGroup:
        size = int(np.count_nonzero(kept["flags"] & flag))
        return ImageGroup(size, names.of(read[odd[flag]]))

    return Repeats(
        name,
        len(kept),
        named(copies, copies.places),
        named(alike, alike_places) if alike is not None else None,
        flagged(SINGLE_COLOUR),
        flagged(BLACK),
        int(np.count_nonzero(plain)),
    )


@dataclass(frozen=True)
class _Grouped:
    """The groups of a kind: how many, of how many images, and the largest of them by places."""

    groups: int
    images: int
    sizes: Sequence[int]
    places: Sequence[Ints]


def _groups(
    values: NDArray[Any], listed: int, counted: NDArray[np.bool_] | None = None
) -> _Grouped:
    """Finds the groups of equal values.

    Args:
        values: (N,) values.
        listed: How many groups to list.
        counted: By the distinct values in their order, whether a group of them counts; None for
            all that have two images.

    Returns:
        The groups.
    """
    _, inverse, sizes = np.unique(values, return_inverse=True, return_counts=True)
    chosen = np.flatnonzero(sizes > 1 if counted is None else counted)
    order = np.argsort(inverse, kind="stable")
    ends = np.cumsum(sizes)
    firsts = order[ends[chosen] - sizes[chosen]]
    largest = chosen[np.lexsort((firsts, -sizes[chosen]))][:listed]
    places = [order[ends[at] - sizes[at] : ends[at]][:NAMED_IN_A_GROUP] for at in largest]
    return _Grouped(len(chosen), int(sizes[chosen].sum()), sizes[largest].tolist(), places)


def _alike(rows: HashRows, listed: int, limit: int | None, progress: Listener) -> _Grouped | None:
    """Finds the groups of images that look alike, and are not all copies of one."""
    looks, inverse = np.unique(rows["look"], return_inverse=True)
    found = near_groups(looks, limit, progress)
    if found is None:
        return None
    groups = found[inverse]
    order = np.lexsort((rows["content"], groups))
    group, content = groups[order], rows["content"][order]
    first = np.ones(len(order), bool)
    first[1:] = (group[1:] != group[:-1]) | (content[1:] != content[:-1])
    _, contents = np.unique(group[first], return_counts=True)
    return _groups(groups, listed, contents > 1)


def _is_plain(rows: HashRows) -> NDArray[np.bool_]:
    """Tells which images look too plain to be told from others."""
    bits = bits_set(rows["look"])
    return np.asarray((bits < LEAST_BITS) | (bits > 64 - LEAST_BITS))


class _Names:
    """The names of some images; the list of each shard is read once."""

    def __init__(
        self, catalogue: Catalogue, name: str, version: Version, wanted: Sequence[Ints]
    ) -> None:
        self._reader = reader_of(catalogue, name, version)
        self._names: Mapping[int, tuple[str, str]] = {}
        places = np.unique(np.concatenate(wanted)) if wanted else np.empty(0, np.int64)
        if len(places):
            self._names = _names_at(catalogue.manifest(name, version), places)

    def of(self, places: Ints) -> tuple[NamedImage, ...]:
        """Returns the images of some rows."""
        names = (self._names[int(at)] for at in places)
        return tuple(NamedImage(*of, reader=self._reader) for of in names)


def _names_at(manifest: Manifest, places: Ints) -> dict[int, tuple[str, str]]:
    """Returns the uri and member of some candidates, by their places in the manifest."""
    ends = np.cumsum([head.candidates for head in manifest.heads])
    shards = np.searchsorted(ends, places, side="right")
    found = {}
    for index in np.unique(shards):
        members = manifest.shards[int(index)].members
        start = int(ends[index]) - len(members)
        for at in places[shards == index]:
            entry = members[int(at) - start]
            found[int(at)] = entry.uri, entry.member
    return found
