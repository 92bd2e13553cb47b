"""Draws images of several datasets, which are to be altered: which ones, and the fold of each.

    >>> versions = sampled_versions(catalogue, digest, commit, ["photos"])    # doctest: +SKIP
    >>> draw_sample(catalogue, versions, 200, "build")[0].fold                # doctest: +SKIP
    3

An image stays in the fold that it has in its dataset. So images that belong together there, or in
pairs, are together here, and what is kept of the distances between datasets is scored on other
images, too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import chain, zip_longest

from pipeline.catalogue import Catalogue, Version
from pipeline.errors import UsageError
from pipeline.explaining.explain_options import SampleGrouping
from pipeline.explaining.image_draw import drawn_members
from pipeline.sources import Entry
from pipeline.spec import FOLDS
from pipeline.wording import option

MOST_SAMPLED = 20
"""The most datasets that a sample is drawn from, unless they are named."""


@dataclass(frozen=True)
class SampledImage:
    """An image of a sample.

    Attributes:
        dataset: The dataset that it was drawn from.
        entry: Where it is.
        fold: Its fold.
    """

    dataset: str
    entry: Entry
    fold: int

    @property
    def file(self) -> str:
        """The name of its file, without folders."""
        return (self.entry.member or self.entry.uri).rpartition("/")[2]

    @property
    def stem(self) -> str:
        """What the name of its file begins with, up to the first hyphen, underscore, dot, space."""
        return re.split(r"[-_. ]", self.file.lstrip("-_. "), maxsplit=1)[0]


def by_hash(names: Sequence[str]) -> list[str]:
    """Puts names into an order that is by chance, and always the same."""
    return sorted(names, key=lambda name: blake2b(name.encode(), digest_size=8).digest())


def sampled_versions(
    catalogue: Catalogue, spec: str, commit: int, names: Sequence[str]
) -> dict[str, Version]:
    """Chooses the datasets that images are drawn from.

    Args:
        catalogue: Where they are.
        spec: Digest of their spec.
        commit: Number of the commit to look at.
        names: The datasets, or names of versions; none for all, or `MOST_SAMPLED` of them.

    Returns:
        The version of each. Parts of other datasets are left out unless they are named.

    Raises:
        NotFound: If a name is unknown.
        UsageError: If a named one was imported, or none has a list of its images.
    """
    found = catalogue.find_all(names or by_hash(catalogue.names(commit, spec)), commit, spec)
    for name in names:
        if found[name].imported:
            raise UsageError(
                f"{name} was imported, without a list of its images, so that none can be altered; "
                f"name datasets that were built from images, by {option('sample_of')}"
            )
    if names:
        return found
    listed = {name: version for name, version in found.items() if not version.imported}
    whole = {name: version for name, version in listed.items() if not version.part_of}
    if not listed:
        raise UsageError(
            f"{catalogue.root} has no dataset that was built from images, so that none can be "
            "altered; build one, as by vdna build photos FOLDER"
        )
    return dict(list((whole or listed).items())[:MOST_SAMPLED])


def draw_sample(
    catalogue: Catalogue, versions: Mapping[str, Version], count: int, group_by: SampleGrouping
) -> list[SampledImage]:
    """Draws images, of each dataset about as many.

    Args:
        catalogue: Where the datasets are.
        versions: Their versions.
        count: The most images to draw.
        group_by: What keeps images in one fold: their datasets' folds, or the stems of their names.

    Returns:
        The images, each once, by their folds.
    """
    each = -(-2 * count // len(versions))  # twice as many, as others may have fewer
    drawn = []
    for name, version in versions.items():
        failures = catalogue.failures(name, version) if version.failed else ()
        failed = {(failure.uri, failure.member) for failure in failures}
        members = drawn_members(catalogue, name, version, each, failed)
        drawn.append([SampledImage(name, entry, fold) for fold, entry in members])
    turns = (one for one in chain.from_iterable(zip_longest(*drawn)) if one is not None)
    once: dict[tuple[str, str], SampledImage] = {}
    for image in turns:
        once.setdefault((image.entry.uri, image.entry.member), image)
    chosen = list(once.values())[:count]
    if group_by == "stem":
        chosen = _dealt_by_stem(chosen)
    return sorted(chosen, key=lambda image: (image.fold, image.entry.sort_key))


def _dealt_by_stem(images: Sequence[SampledImage]) -> list[SampledImage]:
    """Deals images to folds of nearly equal size, those of one stem to one fold."""
    groups: defaultdict[str, list[SampledImage]] = defaultdict(list)
    for image in images:
        groups[image.stem].append(image)
    sizes = [0] * FOLDS
    dealt = []
    for stem in sorted(by_hash(list(groups)), key=lambda stem: -len(groups[stem])):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(groups[stem])
        dealt += [replace(image, fold=fold) for image in groups[stem]]
    return dealt
