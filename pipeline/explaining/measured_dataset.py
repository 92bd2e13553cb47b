"""The datasets that images are measured to: the one they are ranked by, and the background.

    >>> dataset = MeasuredDataset.find(Catalogue("dnas"), "cityscapes")          # doctest: +SKIP
    >>> [other.name for other in background_of(Catalogue("dnas"), dataset, [])]  # doctest: +SKIP
    ['cityscapes', 'kitti', 'mapillary']

An image has few activations, and some images are far from everything. So an image's distance to one
dataset is held against its distance to a background: several datasets in one, each with the same
say (docs/experiments.md, "Finding the images of a dataset").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.catalogue import Catalogue, Commit, Version, VersionName, dataset_of
from pipeline.dna import Floats, Ints, Ranges
from pipeline.errors import CorruptFile, UsageError
from pipeline.explaining.image_distances import layer_counts, require_finite
from pipeline.explaining.sample_draw import by_hash
from pipeline.spec import Spec
from pipeline.wording import option

MOST_BACKGROUND = 8
"""The most datasets of a background, unless they are named: each worker reads them all."""

MIXED_TOTAL = 2**24
"""What each dataset's counts of a neuron are scaled to in a background, before they are added."""


@dataclass(frozen=True)
class StoredDna:
    """A DNA of the catalogue, as a worker finds it.

    Attributes:
        name: Name of the dataset, or of a window of its days.
        commit: Number of a commit that holds it.
        dna: Its digest.
    """

    name: str
    commit: int
    dna: str

    def counts(
        self, catalogue: Catalogue, spec: Spec, weights: Floats, ranges: Ranges
    ) -> list[Ints | None]:
        """Reads its histograms. Raises as `layer_counts` too.

        Args:
            catalogue: Where it is.
            spec: Its spec.
            weights: (N,) weights of all neurons.
            ranges: Its ranges.

        Returns:
            The counts, as `layer_counts` returns them.

        Raises:
            CorruptFile: If the catalogue holds another DNA.
        """
        version = catalogue.find(self.name, self.commit, spec.digest)
        if version.dna != self.dna:
            raise CorruptFile(
                f"{catalogue.log_uri(self.commit)} states dna {version.dna} of {self.name}; images "
                f"are ranked against {self.dna}. If images were erased meanwhile, rank again"
            )
        return layer_counts(catalogue, self.name, version, weights, ranges)


@dataclass(frozen=True)
class MeasuredDataset:
    """A dataset that images are measured to, as of a commit.

    Attributes:
        name: The dataset, or the name of a version of it, as it was asked for.
        commit: A commit that holds the version.
        version: The version.
        spec: Its spec.
    """

    name: str
    commit: Commit
    version: Version
    spec: Spec

    @classmethod
    def find(
        cls, catalogue: Catalogue, name: str, at: int | str | None = None, spec: str | None = None
    ) -> MeasuredDataset:
        """Finds the dataset.

        Args:
            catalogue: Where it is.
            name: The dataset, or the name of a version of it.
            at: The commit or time to look at; None for the newest.
            spec: Digest of its spec; None for the default.

        Returns:
            The dataset.

        Raises:
            NotFound: If the catalogue does not have it.
        """
        named = catalogue.resolve(name, at, spec)
        commit, version = catalogue.commit(named.commit), named.version
        return cls(name, commit, version, catalogue.spec(version.spec))

    @property
    def stored(self) -> StoredDna:
        """What a worker needs to find the DNA."""
        name = self.name if VersionName.parse(self.name).is_window else dataset_of(self.name)
        return StoredDna(name, self.commit.number, self.version.dna)

    @property
    def listed_source(self) -> str:
        """Where the images lie that it was built of.

        Raises:
            UsageError: If it was imported, without a list of them.
        """
        if not self.version.imported:
            return self.version.source
        raise UsageError(
            f"{self.name} was imported, without a list of its images; name the images to rank, as "
            f"by vdna rank FOLDER {option('to', self.name)}"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a request that counts images as the dataset's were."""
        preprocess = self.spec.preprocess
        return {
            "extractor": self.spec.extractor,
            "bins": self.spec.bins,
            "precision": self.spec.precision,
            "resize": preprocess.resize,
            "exif": preprocess.exif,
            "alpha": preprocess.alpha,
            "jpeg": preprocess.jpeg,
            "crop": preprocess.crop,
            "decoder": preprocess.decoder and preprocess.decoder.partition("@")[0],
        }


def background_of(
    catalogue: Catalogue,
    dataset: MeasuredDataset,
    names: Sequence[str],
    at: int | str | None = None,
) -> list[MeasuredDataset]:
    """Chooses what the distance to a dataset is held against.

    Args:
        catalogue: Where the datasets are.
        dataset: The dataset that images are ranked by.
        names: Datasets, or names of versions; none for the dataset itself and all others of its
            spec, or `MOST_BACKGROUND` of them. Parts of datasets and imported ones are left out
            then.
        at: The commit or time to look at; None for the newest.

    Returns:
        The datasets, by name; none if there is no other dataset.

    Raises:
        NotFound: If a name is unknown.
        UsageError: If a name is that of the dataset that images are ranked by.
    """
    spec = dataset.spec.digest
    if names:
        named = [MeasuredDataset.find(catalogue, name, at, spec) for name in names]
        if {other.version.dna for other in named} == {dataset.version.dna}:
            raise UsageError(
                f"the background is {dataset.name} itself, which tells nothing; name others by "
                f"{option('against', ['photos'])}"
            )
        return sorted({other.version.dna: other for other in named}.values(), key=_name)
    commit, own = catalogue.at(at), dataset_of(dataset.name)
    found = {dataset.version.dna: dataset}
    for name in by_hash(catalogue.names(commit.number, spec)):
        version = commit.datasets[name][spec]
        if len(found) == MOST_BACKGROUND:
            break
        if name != own and not version.part_of and not version.imported:
            found.setdefault(version.dna, MeasuredDataset(name, commit, version, dataset.spec))
    return sorted(found.values(), key=_name) if len(found) > 1 else []


def _name(dataset: MeasuredDataset) -> str:
    return dataset.name


def mixed_counts(
    catalogue: Catalogue,
    datasets: Sequence[StoredDna],
    spec: Spec,
    weights: Floats,
    ranges: Ranges,
) -> list[Ints | None]:
    """Mixes the histograms of datasets, each with the same say, however many images it has.

    Raises as `StoredDna.counts` too.

    Args:
        catalogue: Where they are.
        datasets: The datasets.
        spec: Their spec.
        weights: (N,) weights of all neurons.
        ranges: Their ranges.

    Returns:
        As `layer_counts` returns them. Where a dataset has counts of a neuron, they add up to
        `MIXED_TOTAL` but for rounding.

    Raises:
        UsageError: If a weighed neuron has no finite activation in any of them.
    """
    mixed: list[Ints | None] = [None] * len(spec.taps)
    for dataset in datasets:
        for index, counts in enumerate(dataset.counts(catalogue, spec, weights, ranges)):
            if counts is None:
                continue
            totals = counts.sum(axis=1, keepdims=True)
            scaled = np.rint(counts * (MIXED_TOTAL / np.maximum(totals, 1))).astype(np.int64)
            held = mixed[index]
            mixed[index] = scaled if held is None else held + scaled
    require_finite(mixed, spec, weights, "the background")
    return mixed
