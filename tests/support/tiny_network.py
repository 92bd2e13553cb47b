"""A network of seven neurons, whose builds take milliseconds, and another way to the truth.

The truth of a set of pictures is added up image by image in numpy, without shards, partials, sums
or files of the pipeline.
"""

from __future__ import annotations

import functools
import io
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline import images, storage
from pipeline.counting import Extractor
from pipeline.dna import DNA, Exemplars, Failure, Ranges
from pipeline.networks import Network, describe, encode_ranges, find_ranges
from pipeline.networks.registry import register_network
from pipeline.spec import Preprocess

NAME = "tiny"
SIDE = 8
BINS = 8
HALF = (0.5, 0.5, 0.5)
RULE = Preprocess(SIDE, SIDE, HALF, HALF)
WIDTHS = (4, 3)


class Tiny(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.b = torch.nn.Conv2d(4, 3, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


@dataclass(frozen=True)
class Place:
    """Where the weights and ranges of the small network are."""

    weights: str
    ranges: str

    @property
    def options(self) -> dict[str, object]:
        """Returns fields of a request."""
        return {"extractor": NAME, "bins": BINS, "weights": self.weights, "ranges": self.ranges}

    @functools.cached_property
    def network(self) -> Network:
        return describe(NAME, self.weights)


def register() -> None:
    """Makes the name known in this process; processes of commands call it by an entry point."""
    register_network(NAME, Tiny, preprocess=RULE, taps="a,b")


def install(folder: Path) -> Place:
    """Registers the network, and writes its files unless they exist."""
    register()
    weights, limits = folder / "tiny.pt", folder / "tiny.ranges.parquet"
    place = Place(str(weights), str(limits))
    if not weights.exists():
        torch.manual_seed(1)
        torch.save(Tiny().state_dict(), weights)
    if not limits.exists():
        shape = tuple((tap.name, tap.neurons) for tap in place.network.taps)
        # Narrow enough for some activations to lie outside.
        low, high = np.linspace(-0.7, -0.3, sum(WIDTHS)), np.linspace(0.3, 0.6, sum(WIDTHS))
        storage.create(
            limits.as_uri(), encode_ranges(Ranges(shape, low, high), place.network, origin="tests")
        )
    return place


@dataclass(frozen=True)
class Picture:
    """The content of a file: `good`, or bad in one of three ways. Some are of a kind to note."""

    kind: str
    seed: int

    @property
    def transparent(self) -> bool:
        return self.seed % 3 == 1

    @property
    def single_colour(self) -> bool:
        return self.kind == "good" and self.seed % 7 == 5  # compressed, little would be left to cut

    @functools.cached_property
    def data(self) -> bytes:
        if self.kind == "empty":
            return b""
        if self.kind == "not_an_image":
            return random.Random(self.seed).randbytes(200).replace(b"\xff", b"a")
        pixels = np.random.default_rng(self.seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        sink = io.BytesIO()
        if self.single_colour:
            pixels[:] = pixels[0, 0]
        image = Image.fromarray(pixels)
        if self.transparent:
            image.putalpha(254)
        image.save(sink, "PNG")
        return sink.getvalue() if self.kind == "good" else sink.getvalue()[:-90]


@dataclass(frozen=True, eq=False)
class Truth:
    """Every number that the DNA of a set of named pictures must have."""

    table: np.ndarray
    least: np.ndarray
    greatest: np.ndarray
    means: np.ndarray
    failed: Mapping[str, str]
    names: tuple[str, ...] = ()
    """Uris of the images, in the order of `means`."""
    transparent: int = 0
    single_colour: int = 0

    @property
    def images(self) -> int:
        return len(self.means)

    def differences(
        self, dna: DNA, failures: Iterable[Failure], exemplars: Exemplars | None = None
    ) -> list[str]:
        """Lists what is wrong; integers, minima and maxima must be equal to the last bit."""
        if dna.images != self.images:
            return [f"{dna.images} images for {self.images}"]
        pairs = {
            "failed": (dna.failed, len(self.failed)),
            "transparent": (dna.transparent, self.transparent),
            "single_colour": (dna.single_colour, self.single_colour),
            "counts": (dna.counts, self.table[:, :BINS]),
            "underflow": (dna.underflow, self.table[:, BINS]),
            "overflow": (dna.overflow, self.table[:, BINS + 1]),
            "nonfinite": (dna.nonfinite, np.zeros(sum(WIDTHS), np.int64)),
            "min": (dna.min, self.least),
            "max": (dna.max, self.greatest),
        }
        wrong = [name for name, (a, b) in pairs.items() if not np.array_equal(a, b)]
        mean = self.means.mean(axis=0)
        centred = self.means - mean
        floats = {"mean": (dna.mean, mean), "m2": (dna.m2, (centred**2).sum(axis=0))}
        if dna.scatter is not None:
            ends = np.cumsum(WIDTHS)[:-1]
            blocks = [x.T @ x for x in np.split(centred, ends, axis=1)]
            triangles = [block[np.triu_indices(len(block))] for block in blocks]
            floats["scatter"] = (dna.scatter, np.concatenate(triangles))
        wrong += [n for n, (a, b) in floats.items() if not np.allclose(a, b, rtol=1e-9, atol=1e-9)]
        listed = sorted((failure.uri, failure.reason) for failure in failures)
        wrong += ["failures"] if listed != sorted(self.failed.items()) else []
        return wrong + ([] if exemplars is None or self._shown(exemplars) else ["exemplars"])

    def _shown(self, exemplars: Exemplars) -> bool:
        """Returns whether the exemplars are those of the largest means, each with its own mean."""
        number = min(exemplars.settings.number, self.images)
        rows = exemplars.rows.to_pylist()
        if len(rows) != number * sum(WIDTHS):
            return False
        largest = -np.sort(-self.means, axis=0)[:number].T.ravel()
        at = {name: place for place, name in enumerate(self.names)}
        if any(row["uri"] not in at for row in rows):  # they are other images, with the same pixels
            return False
        own = [self.means[at[row["uri"]], row["neuron"]] for row in rows]
        found = [row["reaction"] for row in rows]
        return len({(row["neuron"], row["uri"]) for row in rows}) == len(rows) and all(
            np.allclose(found, right, rtol=1e-6, atol=1e-6) for right in (largest, own)
        )


class Oracle:
    """Counts pictures one by one, each content once."""

    def __init__(self, place: Place) -> None:
        self._extractor = Extractor(place.network)
        found, _ = find_ranges(place.network, place.ranges, {})
        self._low, self._high = found.low, found.high
        self._known: dict[Picture, tuple[np.ndarray, ...]] = {}

    def truth(self, pictures: Mapping[str, Picture]) -> Truth:
        """Returns the truth of `pictures`, given by uri."""
        good = [self._count(picture) for picture in pictures.values() if picture.kind == "good"]
        bad = {uri: picture.kind for uri, picture in pictures.items() if picture.kind != "good"}
        neurons = sum(WIDTHS)
        if not good:
            nothing = np.zeros((0, neurons))
            return Truth(np.zeros((neurons, BINS + 2), int), nothing, nothing, nothing, bad, ())
        tables, least, greatest, means = (np.stack(column) for column in zip(*good, strict=True))
        names = tuple(uri for uri, picture in pictures.items() if picture.kind == "good")
        noted = [
            sum(getattr(pictures[name], kind) for name in names)
            for kind in ("transparent", "single_colour")
        ]
        ends = least.min(axis=0), greatest.max(axis=0)
        return Truth(tables.sum(axis=0), *ends, means, bad, names, *noted)

    def _count(self, picture: Picture) -> tuple[np.ndarray, ...]:
        if picture not in self._known:
            taps: list[np.ndarray] = []
            pixels = images.load(picture.data, RULE).values[None]
            self._extractor.observe(pixels, lambda i, x: taps.append(x[0].numpy().copy()))
            neurons = [column for layer in taps for column in layer.T]
            rows = []
            for values, low, high in zip(neurons, self._low, self._high, strict=True):
                inside = np.histogram(values.astype(float), BINS, (low, high))[0]
                rows.append([*inside, (values < low).sum(), (values > high).sum()])
            self._known[picture] = (
                np.array(rows),
                np.array([values.min() for values in neurons]),
                np.array([values.max() for values in neurons]),
                np.array([values.astype(float).mean() for values in neurons]),
            )
        return self._known[picture]
