"""Computes how near each image of a shard is to a dataset, as one committed object.

    >>> Ranker(extractor, spec, ranges, target).ranked(shard, key).table     # doctest: +SKIP

The distance of an image is the `emd` of its own DNA, which is never made: a few numbers of each
image are kept (see `pipeline.explaining.image_emd`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.catalogue import Catalogue
from pipeline.counting import Ahead, Extractor, Fetch, Made, Prepared, Stream
from pipeline.dna import (
    Failure,
    FileKind,
    Floats,
    Ints,
    Lens,
    Ranges,
    SealedFile,
    encode_sealed,
    neuron_name,
)
from pipeline.errors import ConservationError, CorruptFile, SpecMismatch
from pipeline.explaining.image_distances import (
    BACKGROUND_SHARE,
    ImageDistances,
    ImageSums,
    require_finite,
)
from pipeline.explaining.measured_dataset import MIXED_TOTAL, StoredDna, mixed_counts
from pipeline.sources import Shard
from pipeline.spec import Numerics, Resources, Spec, digest_of

RANKS = "ranks"
"""Product of such a job. With the target's digest it is part of the key of every shard."""

_KIND = FileKind(RANKS)

UNDEFINED = "undefined"
"""Reason for an image that could be read, but has no distance."""


@dataclass(frozen=True)
class Target:
    """What images are ranked against: a dataset as of a commit, and the lens it is seen through.

    Attributes:
        root: Root of the catalogue.
        dataset: The dataset's DNA.
        numerics: What moves distances by rounding. All workers must have these, so that no ranking
            mixes several.
        layers: Layers that have a distance of their own beside that of all neurons.
        lens: The bytes of the lens's file, or none.
        background: The DNAs that the distance to the dataset is held against, or none.
    """

    root: str
    dataset: StoredDna
    numerics: Numerics
    layers: tuple[str, ...] = ()
    lens: bytes = b""
    background: tuple[StoredDna, ...] = ()

    def lens_on(self, spec: Spec) -> Lens | None:
        """Decodes the lens.

        Args:
            spec: Spec of the dataset.

        Returns:
            The lens, or None.
        """
        return Lens.decode(self.lens, "the lens", spec) if self.lens else None

    def weights(self, spec: Spec) -> Floats:
        """Finds the weights of the neurons.

        Args:
            spec: Spec of the dataset.

        Returns:
            (N,) weights of all neurons; ones without a lens.
        """
        lens = self.lens_on(spec)
        return np.ones(spec.neurons) if lens is None else lens.weights

    def histograms(
        self, spec: Spec, ranges: Ranges
    ) -> tuple[list[Ints | None], list[Ints | None] | None]:
        """Reads what images are measured to. Raises as `layer_counts` too.

        Args:
            spec: Spec of the dataset.
            ranges: Ranges of the dataset.

        Returns:
            The histograms of the dataset and those of the background, as `layer_counts` returns
            them; None if there is no background.

        Raises:
            CorruptFile: If the catalogue holds other DNAs.
            UsageError: If a weighed neuron has no finite activation.
        """
        place, weights = Catalogue(self.root), self.weights(spec)
        counts = self.dataset.counts(place, spec, weights, ranges)
        require_finite(counts, spec, weights, self.dataset.name)
        if not self.background:
            return counts, None
        return counts, mixed_counts(place, self.background, spec, weights, ranges)

    def maker(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        resources: Resources,
        ahead: Ahead | None,
    ) -> Ranker:
        """Makes what ranks shards in a worker.

        Args:
            extractor: The worker's network.
            spec: Spec of the dataset.
            ranges: Ranges of the dataset.
            resources: How much the worker may use.
            ahead: Those who may fetch and decode for it.

        Returns:
            The ranker.

        Raises:
            SpecMismatch: If this worker's numerics are not the driver's.
        """
        if self.numerics != extractor.numerics:
            raise SpecMismatch(
                f"images are ranked under {self.numerics}, as the driver has them, and this worker "
                f"has {extractor.numerics}; install the same libraries on both"
            )
        return Ranker(extractor, spec, ranges, self, resources, ahead)

    def digest(self, spec: Spec) -> str:
        """Names what is computed for an image, whatever the lens and the dataset are called.

        Args:
            spec: Spec of the dataset.

        Returns:
            A hash.
        """
        lens = self.lens_on(spec)
        background = sorted(other.dna for other in self.background)
        seen = [self.dataset.dna, background, lens.digest if lens else "", list(self.layers)]
        rule = [BACKGROUND_SHARE, MIXED_TOTAL] if background else []
        return digest_of(RANKS, _KIND.format, spec.digest, *seen, rule, self.numerics.to_json())


def column_of(layer: str) -> str:
    """Names the column of a layer's distances. Its prefix keeps it apart from the other columns.

    Args:
        layer: Name of the layer.

    Returns:
        Name of the column.
    """
    return f"emd:{layer}"


def schema_of(layers: Sequence[str]) -> pa.Schema:
    """Lists the columns of a shard's ranks.

    Args:
        layers: Layers with a distance of their own.

    Returns:
        The Arrow schema.
    """
    return pa.schema(
        [
            ("uri", pa.string()),
            ("member", pa.string()),
            ("score", pa.float64()),
            ("emd", pa.float64()),
            *((column_of(layer), pa.float64()) for layer in layers),
            ("error", pa.string()),
        ]
    )


@dataclass(frozen=True, eq=False)
class Ranks:
    """A shard's images in its order, each with its distances or with an error.

    Attributes:
        key: Key of the shard.
        table: One row an image, with the columns of `schema_of`.
    """

    key: str
    table: pa.Table

    def encode(self) -> bytes:
        """Encodes the ranks as Parquet.

        Returns:
            The bytes of the file.
        """
        return encode_sealed(_KIND, {"key": self.key}, [self.table])

    @classmethod
    def decode(cls, data: bytes, name: str, layers: Sequence[str], shard: Shard, key: str) -> Ranks:
        """Reads the ranks of a shard from Parquet.

        Args:
            data: The bytes of the file.
            name: What messages call it.
            layers: Layers with a distance of their own.
            shard: The shard that it should be of.
            key: Key of that shard.

        Returns:
            The ranks.

        Raises:
            CorruptFile: Unless it is what was written for this shard.
        """
        file = SealedFile(data, _KIND, name)
        table = file.read().combine_chunks()
        if table.schema != schema_of(layers):
            raise CorruptFile(f"{name}: its columns are not those of layers {', '.join(layers)}")
        named = [table[column].to_pylist() for column in ("uri", "member")]
        members = [(entry.uri, entry.member) for entry in shard.members]
        if file.metadata.get("key") != key or list(zip(*named, strict=True)) != members:
            raise CorruptFile(f"{name}: its images are not those of shard {shard.index}, {key}")
        return cls(key, table)


class Ranker:
    """Ranks the images of shards in a worker. Several shards may be ranked at a time."""

    def __init__(
        self,
        extractor: Extractor,
        spec: Spec,
        ranges: Ranges,
        target: Target,
        resources: Resources | None = None,
        ahead: Ahead | None = None,
    ) -> None:
        """Loads the dataset. Raises as `Target.histograms`.

        Args:
            extractor: The network.
            spec: Spec of the dataset.
            ranges: Ranges of the dataset.
            target: The dataset.
            resources: How much may be used; None for the defaults.
            ahead: Those who may fetch and decode instead of this process; None for nobody.
        """
        self._spec = spec
        self._target = target
        counts, background = target.histograms(spec, ranges)
        weights = target.weights(spec)
        self._distances = ImageDistances(spec, ranges, counts, weights, background)
        self._stream = Stream(extractor, spec.preprocess, resources, ahead)

    def ranked(
        self, shard: Shard, key: str, fetch: Fetch | None = None, *, isolated: bool = False
    ) -> Ranks:
        """Ranks a shard. Raises as `Stream.observed` too.

        Args:
            shard: The shard.
            key: Its key.
            fetch: What reads an image; None for the store.
            isolated: Whether images are decoded in a process apart.

        Returns:
            Each member once, with its distances or the reason why it has none.

        Raises:
            ConservationError: If an image got lost.
        """
        rows: list[dict[str, Any]] = [
            {"uri": entry.uri, "member": entry.member} for entry in shard.members
        ]
        whole = replace(shard, cells=(), runs=())  # no ranks are kept of them
        stream = self._stream.observed(whole, self._observe, fetch, isolated=isolated)
        with closing(stream) as observed:
            for places, found in observed:
                if isinstance(found, Failure):
                    rows[places[0]]["error"] = f"{found.reason}: {found.detail}"
                    continue
                for at, seen in zip(places, found, strict=True):
                    rows[at] |= self._columns(seen)
        if not all("emd" in row or "error" in row for row in rows):
            raise ConservationError(f"shard {shard.index}: not every image is ranked or failed")
        return Ranks(key, pa.Table.from_pylist(rows, schema_of(self._target.layers)))

    def make(
        self, shard: Shard, key: str, *, isolated: bool, kept: Mapping[str, bytes] | None = None
    ) -> Made:
        """Ranks a shard, and encodes the result.

        Args:
            shard: The shard.
            key: Its key.
            isolated: Whether images are decoded in a process apart.
            kept: Not used, as no ranks are kept of cells.

        Returns:
            The bytes, and the numbers of images with and without a distance.
        """
        ranks = self.ranked(shard, key, isolated=isolated)
        errors = ranks.table["error"].drop_null().to_pylist()
        reasons = Counter(error.partition(":")[0] for error in errors)
        images = ranks.table.num_rows - len(errors)
        return Made(ranks.encode(), images, len(errors), reasons=dict(reasons))

    def close(self) -> None:
        """Stops the threads that fetch and decode."""
        self._stream.close()

    def _observe(self, _: Sequence[int], pixels: Prepared) -> list[ImageSums]:
        """Returns the sums of each image of a micro-batch, independently of the others."""
        found = self._distances.begin(len(pixels))
        self._stream.extractor.observe(pixels, lambda at, x: self._distances.add(found, at, x))
        return found

    def _columns(self, seen: ImageSums) -> dict[str, Any]:
        """Returns the columns of an image."""
        if seen.undefined >= 0:
            name = neuron_name(self._spec.shape, seen.undefined)
            return {"error": f"{UNDEFINED}: no activation of {name} is finite"}
        distances = {"score": self._distances.score(seen), "emd": self._distances.mean(seen)}
        for layer in self._target.layers:
            distances[column_of(layer)] = self._distances.mean(seen, layer)
        return distances
