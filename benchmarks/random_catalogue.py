"""Writes catalogues of random DNAs, for benchmarks of what compares many of them.

    catalogue = RandomCatalogue(Catalogue(folder), widths=(160,), folds=16)
    catalogue.add({"set/0": 0, "set/1": 1})

The DNAs lie on disk as a build stores them. They are in groups of similar ones: each neuron has a
place that the group shares, from which a DNA's own is a few bins off. All folds of a DNA have its
places, so that they differ by chance alone.
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalogue import Catalogue, Version, canonical_json, footers_of
from pipeline.dna import DNA, Ranges, dna_metadata, encode_layers, to_table
from pipeline.spec import Numerics, Preprocess, Spec, Tap, available_cpus

BINS = 1000

IMAGES = 5_000
"""Images of a DNA. Each has one activation of a neuron."""

OWN_BINS, GROUP_BINS = 6, 80
"""Standard deviations of a DNA's place within its group, and of a group's among all."""

SPREAD_BINS = 100
"""Standard deviation of a neuron's activations."""

WIDTHS = {
    "three_layers": (40, 40, 80),
    "ViT-B": (768,) * 13,
}
"""Neurons of the layers of networks whose weights are not at hand. A ViT-B's are those after each
block and the last norm."""


def widths_of(network: str) -> tuple[int, ...]:
    """Returns the neurons of each layer of a network."""
    if network in WIDTHS:
        return WIDTHS[network]
    from pipeline.networks import describe

    return tuple(tap.neurons for tap in describe(network).taps)


class RandomCatalogue:
    """A catalogue that is filled with random DNAs."""

    def __init__(
        self, place: Catalogue, widths: Sequence[int], folds: int = 0, groups: int = 1
    ) -> None:
        self.place, self.folds, self.groups = place, folds, groups
        taps = tuple(Tap(f"block_{i}", width, 1) for i, width in enumerate(widths))
        edge = np.ones(sum(widths))
        ranges = Ranges(tuple((tap.name, tap.neurons) for tap in taps), -edge, edge)
        half = (0.5, 0.5, 0.5)
        preprocess = Preprocess(8, 8, half, half)
        self.spec = Spec("random", "0" * 64, taps, preprocess, ranges.digest, BINS)
        self.empty = DNA.empty(self.spec, ranges)
        self.numerics = Numerics("cpu", False, False, 8, 1, ())

    def add(self, seeds: Mapping[str, int]) -> None:
        """Makes the DNAs of these names from these seeds, and commits them at once."""
        storage.create(self.place.spec_uri(self.spec.digest), canonical_json(self.spec.to_json()))
        with multiprocessing.get_context("fork").Pool(available_cpus()) as pool:
            made = pool.starmap(self._write, seeds.items(), chunksize=1)
        versions = dict(zip(seeds, made, strict=True))

        def change(head: Any) -> Any:
            new = {name: {self.spec.digest: version} for name, version in versions.items()}
            return replace(
                head,
                default_spec=head.default_spec or self.spec.digest,
                datasets={**head.datasets, **new},
            )

        self.place.append("random", change)

    def _part(self, seed: int, number: int, images: int) -> DNA:
        """Makes one fold of a DNA, or all of it."""
        neurons = self.spec.neurons
        group = np.random.default_rng([0, seed % self.groups]).normal(0, GROUP_BINS, neurons)
        own = np.random.default_rng([1, seed]).normal(0, OWN_BINS, neurons)
        chance = np.random.default_rng([2, seed, number])
        place = (BINS / 2 + group + own).astype(np.float32)[:, None]
        drawn = chance.standard_normal((neurons, images), np.float32) * SPREAD_BINS + place
        at = np.clip(drawn, 0, BINS - 1).astype(np.int64)
        rows = np.arange(neurons)[:, None] * BINS + at
        counts = np.bincount(rows.ravel(), minlength=neurons * BINS).reshape(-1, BINS)
        numerics = ((self.numerics, images),)
        return replace(self.empty, images=images, counts=counts, numerics=numerics)

    def _write(self, name: str, seed: int) -> Version:
        """Writes the files of one DNA."""
        digest = hashlib.sha256(f"{name} {seed}".encode()).hexdigest()[:32]
        count = max(1, self.folds)
        parts = [self._part(seed, number, IMAGES // count) for number in range(count)]
        dna = reduce(DNA.__add__, parts)
        shared = {"dataset": name, "digest": digest, "manifest": "none"}
        kinds = {"dna": ([to_table(dna.select([la])) for la in dna.layers], {})}
        if self.folds:
            tables = [
                pa.concat_tables(to_table(p.select([la]), n) for n, p in enumerate(parts))
                for la in dna.layers
            ]
            heads = {
                str(n): {k: dna_metadata(p)[k] for k in ("images", "failed", "numerics")}
                for n, p in enumerate(parts)
            }
            kinds["folds"] = (tables, {"folds": heads})
        files, sha256 = {}, {}
        for kind, (tables, more) in kinds.items():
            data = encode_layers(kind, dna_metadata(dna, **shared, **more), tables)
            storage.create(self.place.uri(kind, self.spec.digest, name, digest), data)
            files[kind] = data
            sha256[kind] = hashlib.sha256(data).hexdigest()
        return Version(
            digest,
            "none",
            self.spec.digest,
            dna.images,
            0,
            (),
            sha256,
            "",
            "",
            "",
            tuple(dna_metadata(dna)["numerics"]),
            {"file": "random", "software": "benchmark", "notes": []},
            footers_of(files),
            transparent=dna.transparent,
            single_colour=dna.single_colour,
        )
