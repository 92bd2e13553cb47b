"""Sends images of two datasets through the network again, to find those that show a difference.

    >>> look_again(catalogue, found, images=100).look.unlike             # doctest: +SKIP

A build keeps the few images that a neuron reacts to most. These say little of a difference: at the
upper end of a clipped layer many images are equal, and where a dataset differs by low values, none
of them is among its largest. So images are drawn by a hash, and the network sees them once more.
Of each neuron those are chosen whose own activations lie where one dataset has more than the other
(`parting.leaning`); of each dataset those that are nearer to their own than to the other. Images
of other photographs, and of other origins, come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.catalogue import Catalogue, Version
from pipeline.counting import Extractor, Prepared, Stream, exact_switches
from pipeline.dna import Failure, Floats, Lens
from pipeline.errors import BadImage, SourceError, UsageError, VdnaError
from pipeline.events import Listener, Started, StepDone, ignore, stage
from pipeline.explaining.explanation import Explanation, Look
from pipeline.explaining.image_distances import (
    ImageDistances,
    ImageSums,
    layer_counts,
    require_finite,
)
from pipeline.explaining.image_draw import drawn_images, origin_of
from pipeline.explaining.parting import PartedLayer
from pipeline.explaining.reactions import TellingImage, UnlikeImage, reader_of
from pipeline.images import fingerprint, is_one_photograph, without_nvjpeg
from pipeline.networks import Network, network_of
from pipeline.sources import Entry, Members, Shard
from pipeline.spec import Precision, Preprocess, Resources, Spec, available_cpus

if TYPE_CHECKING:
    import torch

LOOK_SECONDS = 60.0
"""The time limit for the images of an explanation. What was seen by then is used."""

CHOSEN = 6
"""The most images that are chosen for a neuron and a dataset, or as unlike the other dataset."""

TURN = 16
"""Images of one dataset that are seen before the other has its turn, so that both see as many."""

CLEARLY = 0.5
"""An image is chosen only if it leans at least this share of what the first one leans."""


def look_again(
    catalogue: Catalogue,
    found: Explanation,
    *,
    lens: Lens | None = None,
    images: int,
    weights: str | None = None,
    progress: Listener | None = None,
) -> Explanation:
    """Finds images that carry the difference of each group, and those most unlike the other side.

    It takes `LOOK_SECONDS` at most. If images cannot be seen again, a note says why.

    Args:
        catalogue: The catalogue of the datasets.
        found: The explanation.
        lens: Its lens.
        images: How many images of each dataset to look at.
        weights: Other weights than the network's own, if the datasets were built with others.
        progress: Is told of each image.

    Returns:
        The explanation with its `look`, and with the images of its groups.
    """
    import torch

    try:
        # A notebook that explains may train, too. A network is made with random weights at first.
        with exact_switches(), torch.random.fork_rng(devices=()):
            return _Looker(catalogue, found, lens, weights).looked(images, progress or ignore)
    except (VdnaError, OSError) as error:
        why = f"Images were not looked at again: {str(error) or type(error).__name__}."
        return replace(found, look=Look((0, 0), notes=(why,)))


@dataclass(frozen=True, eq=False)
class _SeenImage:
    """What is kept of an image that was seen again.

    Attributes:
        sums: Its sums of distances to either dataset; none if they are not asked for.
        above: (groups,) share of its activations above where the histograms part.
        lean: (groups,) which dataset has more of such activations.
        fingerprint: By which the same photograph is known again.
    """

    sums: Sequence[ImageSums]
    above: Floats
    lean: Floats
    fingerprint: int


_Known = tuple[Entry, _SeenImage]


class _Looker:
    """Sees images of two datasets again."""

    def __init__(
        self, catalogue: Catalogue, found: Explanation, lens: Lens | None, weights: str | None
    ) -> None:
        self._catalogue, self._found = catalogue, found
        self._versions = list(found.versions.items())
        for name, version in self._versions:
            if version.imported:
                raise UsageError(f"{name} was imported, without a list of its images")
        spec = self._spec = catalogue.spec(self._versions[0][1].spec)
        self._rule = without_nvjpeg(spec.preprocess)
        self._network = network_of(spec, weights)
        self._readers = [reader_of(catalogue, *of) for of in self._versions]
        ranges = catalogue.ranges(spec.ranges_digest)
        used = _used(spec, found, lens)
        counts = [layer_counts(catalogue, *of, used, ranges) for of in self._versions]
        for (name, _), counted in zip(self._versions, counts, strict=True):
            require_finite(counted, spec, used, name)
        # Through weights below zero nothing is a distance.
        kept = [] if (used < 0).any() else counts
        self._distances = [ImageDistances(spec, ranges, own, used) for own in kept]
        self._parted: dict[int, tuple[list[int], list[int], PartedLayer]] = {}
        for index, (layer, at) in enumerate(zip(spec.layers, spec.slices, strict=True)):
            groups = [k for k, group in enumerate(found.groups) if group.layer == layer]
            a, b = (own[index] for own in counts)
            if groups and a is not None and b is not None:
                own = [found.groups[k].neuron for k in groups]
                low, high = ranges.low[at][own], ranges.high[at][own]
                self._parted[index] = groups, own, PartedLayer(low, high, a[own], b[own])

    def looked(self, count: int, progress: Listener) -> Explanation:
        """Looks at images of either dataset in turns, and chooses from them."""
        drawn = [self._drawn(*of, count) for of in self._versions]
        extractor = _extractor(self._network, self._spec.precision)
        resources = Resources(threads=max(1, min(4, available_cpus())))
        seen: tuple[list[_Known], list[_Known]] = ([], [])
        lost: tuple[list[str], list[str]] = ([], [])
        total, end = sum(map(len, drawn)), monotonic() + LOOK_SECONDS
        with (
            closing(Stream(extractor, self._rule, resources)) as stream,
            stage(progress, Started(total, total, step="images")),
        ):
            for side, entries in _turns(drawn):
                if monotonic() > end:
                    break
                for one in self._observed(stream, entries):
                    if isinstance(one, str):
                        lost[side].append(one)
                    else:
                        seen[side].append(one)
                    progress(StepDone(1, failures=int(isinstance(one, str))))
        groups = tuple(
            replace(group, images=(self._telling(0, at, seen[0]), self._telling(1, at, seen[1])))
            for at, group in enumerate(self._found.groups)
        )
        look = Look(
            (len(seen[0]), len(seen[1])),
            (self._unlike(0, seen[0]), self._unlike(1, seen[1])),
            tuple(self._notes(drawn, seen, lost)),
        )
        return replace(self._found, groups=groups, look=look)

    def _drawn(self, name: str, version: Version, count: int) -> list[Entry]:
        failures = self._catalogue.failures(name, version) if version.failed else []
        failed = {(failure.uri, failure.member) for failure in failures}
        return drawn_images(self._catalogue, name, version, count, failed)

    def _observed(self, stream: Stream, entries: Sequence[Entry]) -> Iterator[_Known | str]:
        """Yields each image with what is kept of it, or why it cannot be seen."""
        rule = self._rule
        with closing(Members(entries, rule.max_bytes, len(entries))) as members:

            def fetch(entry: Entry) -> Any:
                try:
                    return members.fetch(entry)
                except SourceError as error:  # one image that is gone does not end the look
                    raise BadImage("gone", str(error)) from error

            def observe(_: Sequence[int], pixels: Prepared) -> list[_SeenImage]:
                return self._seen(stream.extractor, pixels)

            shard = Shard(0, 0, tuple(entries))
            # A decoder that crashes must not end a server of pages.
            with closing(stream.observed(shard, observe, fetch, isolated=True)) as observed:
                for places, part in observed:
                    if isinstance(part, Failure):
                        yield f"{storage.spelled(part.uri, part.member)}: {part.detail}"
                        continue
                    for place, one in zip(places, part, strict=True):
                        yield entries[place], one

    def _seen(self, extractor: Extractor, pixels: Prepared) -> list[_SeenImage]:
        """Observes a micro-batch."""
        sums = [of.begin(len(pixels)) for of in self._distances]
        shape = len(pixels), len(self._found.groups)
        above, lean = np.full(shape, np.nan), np.full(shape, np.nan)

        def visit(index: int, x: torch.Tensor) -> None:
            for of, own in zip(self._distances, sums, strict=True):
                of.add(own, index, x)
            if index in self._parted:
                groups, neurons, parted = self._parted[index]
                for image, activations in enumerate(x.numpy()):
                    above[image, groups], lean[image, groups] = parted.of_image(
                        activations[:, neurons]
                    )

        extractor.observe(pixels, visit)
        return [
            _SeenImage(
                [own[image] for own in sums],
                above[image],
                lean[image],
                _fingerprint(np.asarray(pixels[image]), self._spec.preprocess),
            )
            for image in range(len(pixels))
        ]

    def _telling(self, side: int, group: int, seen: Sequence[_Known]) -> tuple[TellingImage, ...]:
        """Chooses the images of a dataset whose activations are of that dataset most clearly."""
        sign = -1 if side else 1
        leans = np.array([sign * one.lean[group] for _, one in seen])
        order = np.argsort(-leans, kind="stable")
        clear = [
            at for at in order.tolist() if leans[at] > 0 and leans[at] >= CLEARLY * leans[order[0]]
        ]
        reader = self._readers[side]
        return tuple(
            TellingImage(
                entry.uri,
                entry.member,
                float(one.above[group]),
                float(one.lean[group]),
                reader=reader,
            )
            for entry, one in _various([seen[at] for at in clear])
        )

    def _unlike(self, side: int, seen: Sequence[_Known]) -> tuple[UnlikeImage, ...]:
        """Chooses the images of a dataset that are nearer to their own than to the other one."""
        if not self._distances:
            return ()
        own, other = self._distances[side], self._distances[1 - side]
        reader = self._readers[side]
        measured = [
            (known, other.mean(known[1].sums[1 - side]), own.mean(known[1].sums[side]))
            for known in seen
        ]
        known = [of for of in measured if np.isfinite(of[1]) and np.isfinite(of[2])]
        known.sort(key=lambda of: of[2] - of[1])
        first = known[0][1] - known[0][2] if known else 0.0
        clear = [of for of in known if of[1] - of[2] >= CLEARLY * first and of[1] > of[2]]
        distances = {id(of[0][1]): of[1:] for of in clear}
        return tuple(
            UnlikeImage(entry.uri, entry.member, *distances[id(one)], reader=reader)
            for entry, one in _various([of[0] for of in clear])
        )

    def _notes(
        self,
        drawn: Sequence[Sequence[Entry]],
        seen: Sequence[Sequence[_Known]],
        lost: Sequence[Sequence[str]],
    ) -> Iterator[str]:
        for (name, _), of, had, gone in zip(self._versions, drawn, seen, lost, strict=True):
            if gone:
                yield f"{len(gone)} of {len(of)} images of {name} cannot be seen again: {gone[0]}"
            if left := len(of) - len(had) - len(gone):
                yield (
                    f"{left} of {len(of)} images of {name} were left out: looking at images again "
                    f"took longer than {LOOK_SECONDS:.0f} seconds"
                )
        if not self._distances:
            yield "The lens has weights below 0, so that no image is at a distance from a dataset."


def _used(spec: Spec, found: Explanation, lens: Lens | None) -> Floats:
    """Returns (N,) weights of all neurons; 0 in layers that are not compared."""
    weights = np.zeros(spec.neurons)
    for layer, at in zip(spec.layers, spec.slices, strict=True):
        if layer in found.stages:
            weights[at] = 1.0 if lens is None else lens.weights_of(layer)
    return weights


@lru_cache(maxsize=1)
def _extractor(network: Network, precision: Precision) -> Extractor:
    """Loads a network. The last one stays loaded, as many pairs are explained one after another."""
    return Extractor(network, precision)


def _turns(drawn: Sequence[Sequence[Entry]]) -> Iterator[tuple[int, Sequence[Entry]]]:
    """Yields some images of one dataset, then some of the other, until there are no more."""
    for start in range(0, max(map(len, drawn), default=0), TURN):
        for side, entries in enumerate(drawn):
            if part := entries[start : start + TURN]:
                yield side, part


def _fingerprint(prepared: NDArray[np.float32], rule: Preprocess) -> int:
    """Returns the fingerprint of an image as the network sees it."""
    pixels = (prepared * np.array(rule.std) + np.array(rule.mean)) * 255
    return fingerprint(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _various(known: Sequence[_Known]) -> list[_Known]:
    """Takes the first images: one of each photograph, and of each origin one before the second."""
    prints: list[int] = []
    different = []
    for entry, one in known:
        if not any(is_one_photograph(one.fingerprint, other) for other in prints):
            prints.append(one.fingerprint)
            different.append((entry, one))
    turns: Counter[str] = Counter()
    order = []
    for place, (entry, one) in enumerate(different):
        origin = origin_of(entry)
        order.append((turns[origin], place, (entry, one)))
        turns[origin] += 1
    return [of for *_, of in sorted(order, key=itemgetter(0, 1))[:CHOSEN]]
