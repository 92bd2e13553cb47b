"""How often intervals hold the truth, and how often tests alarm falsely, if datasets share images.

    python -m experiments.pairs [--images 100,300,1000] [--overlaps 0,10,50,90,100]
    python -m experiments.pairs --only "altered, 300 images, 50%" --replicates 5000

An image gives each neuron one normal activation, half of whose variance is of five common factors.
A part of the second dataset's images have a counterpart in the first:

    same      the image itself; only the other images may be shifted
    altered   the image with all activations shifted, as by a change of brightness
    redrawn   an image that resembles it (a correlation of 0.9), shifted

All other images are new, and shifted in `altered` and `redrawn` as well. Shifts are zero, of every
neuron, or of one neuron in twenty. Their root mean square is four standard errors of the difference
of both means, as far as there is noise in it.

Folds are dealt by the product's own rule, by numbers that an image shares with its counterpart. The
estimates are the product's, too: once those for pairs, and once those for independent datasets,
with folds of the second dataset that are dealt by other numbers. Reported are the coverage of both
intervals, their mean lengths in bins, and how often each test finds a difference at 5%.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import measure
from experiments.intervals import EDGES, FOLDS, LEVEL, Array, distance, noise_of, shifts
from pipeline.comparing import intervals, noise_kernel, significance
from pipeline.comparing.fold_statistics import LEAST_COPIED
from pipeline.comparing.noise_kernel import NoiseCurves
from pipeline.sources.fold_assignment import HASHED_GROUPS, FoldSizes

NEURONS, FACTORS = 40, 5
KINDS = ("same", "altered", "redrawn")
SHIFTS = ("none", "uniform", "sparse")
SIZE = 4.0
LIKENESS = {"same": 1.0, "altered": 1.0, "redrawn": 0.9}
"""Correlation of an image's activations with those of its counterpart."""

LEAST_NOISE = 0.3
"""Shifts are measured in standard errors of no less than this part of an independent one."""


@dataclass(frozen=True)
class Case:
    """Two datasets of so many images, a share of which are in pairs."""

    kind: str
    images: int
    overlap: float
    shift: str

    def __str__(self) -> str:
        return f"{self.kind}, {self.images} images, {self.overlap:.0%}, shift {self.shift}"

    @property
    def moved(self) -> Array:
        """(neurons,) by how much the activations of new or altered images are shifted."""
        if self.shift == "none":
            return np.zeros(NEURONS)
        noise = np.sqrt(1 - LIKENESS[self.kind] * self.overlap)
        size = SIZE * np.sqrt(2 / self.images) * max(noise, LEAST_NOISE)
        return shifts(self.shift, NEURONS, size, seed=1)

    @property
    def truth(self) -> float:
        """The distance of the two distributions, in bins."""
        new = 1 - self.overlap if self.kind == "same" else 1.0
        return new * distance(self.moved)


@dataclass(frozen=True)
class Sample:
    """A dataset: its curves by fold (K, neurons, points), their images and numbers, its noise."""

    folds: Array
    images: Array
    numbers: Array
    noise: NoiseCurves

    @classmethod
    def of(cls, values: Array, folds: Array) -> Sample:
        """Counts activations (images, neurons) that are in these folds (images,)."""
        at = np.searchsorted(EDGES, values, side="right")
        points, neurons = len(EDGES) + 1, values.shape[1]
        place = (folds[:, None] * neurons + np.arange(neurons)) * points + at
        counts = np.bincount(place.ravel(), minlength=FOLDS * neurons * points)
        below = counts.reshape(FOLDS, neurons, points).cumsum(axis=2)[..., :-1]
        images = np.bincount(folds, minlength=FOLDS)
        numbers = np.flatnonzero(images)
        images = images[numbers]
        curves = (below[numbers] / images[:, None, None]).astype(np.float32)
        return cls(curves, images, numbers, noise_of(curves, images, tuple(numbers.tolist())))


def dealt(numbers: Sequence[int]) -> Array:
    """(images,) folds of images by the numbers of their names, dealt as in a plan."""
    if len(numbers) >= HASHED_GROUPS:
        return np.array([number % FOLDS for number in numbers])
    sizes, found = FoldSizes(), []
    for at, number in enumerate(numbers):
        left = len(numbers) - at
        found.append(sizes.nearest(number, "", 1, len(numbers) // FOLDS, left))
        sizes.add(found[-1], "")
    return np.array(found)


def drawn(chance: np.random.Generator, images: int) -> Array:
    """(images, neurons) activations with common factors."""
    loadings = np.random.default_rng(1).standard_normal((FACTORS, NEURONS))
    loadings /= np.sqrt(2 * (loadings**2).sum(axis=0))
    own = np.sqrt(0.5) * chance.standard_normal((images, NEURONS))
    return np.asarray(chance.standard_normal((images, FACTORS)) @ loadings + own)


def compared(
    a: Sample, b: Sample, *, paired: bool, copied: bool
) -> tuple[intervals.Estimates, float]:
    """The estimates of a pair, and its p."""
    weights = np.full(NEURONS, 1 / NEURONS)
    flags = np.full((1, 1), paired)
    added, changes = noise_kernel.noise_sums(a.noise, b.noise, weights, paired=flags, threads=1)
    emd = np.abs(a.noise.whole - b.noise.whole).sum() / NEURONS
    found = intervals.estimate(
        np.asarray(emd),
        added[0, 0],
        changes[0, 0],
        len(a.images),
        len(b.images),
        paired,
        copied,
    )
    shares = (
        significance.paired_shares(a.images, a.numbers, b.images, b.numbers)
        if paired
        else significance.fold_shares(a.images, b.images)
    )
    flat = [sample.folds.reshape(len(sample.folds), -1).astype(float) for sample in (a, b)]
    gram = significance.curve_difference_gram(flat[0], flat[1], *shares)
    return found, float(significance.flip_test(gram))


def measured(case: Case, replicates: int, seed: int) -> dict[str, Any]:
    """Draws so many pairs of datasets, and counts."""
    chance = np.random.default_rng(seed)
    shared, moved, truth = round(case.overlap * case.images), case.moved, case.truth
    alike = LIKENESS[case.kind]
    told: dict[bool, list[tuple[float, ...]]] = {True: [], False: []}
    for _ in range(replicates):
        one = drawn(chance, case.images)
        other = drawn(chance, case.images)
        other[:shared] = alike * one[:shared] + np.sqrt(1 - alike**2) * other[:shared]
        other[shared if case.kind == "same" else 0 :] += moved
        names = chance.integers(0, 2**62, 3 * case.images).tolist()
        of_b = [*names[:shared], *names[case.images : 2 * case.images - shared]]
        # A plan takes images in the order of another hash of their names.
        order = np.argsort(chance.random(3 * case.images))
        rank = {names[at]: place for place, at in enumerate(order.tolist())}

        def sample(values: Array, of: Sequence[int], rank: dict[int, int] = rank) -> Sample:
            at = sorted(range(len(of)), key=lambda image: rank[of[image]])
            return Sample.of(values[at], dealt([of[image] for image in at]))

        a = sample(one, names[: case.images])
        for paired, named in ((True, of_b), (False, names[2 * case.images :])):
            copied = paired and case.overlap >= LEAST_COPIED
            found, p = compared(a, sample(other, named), paired=paired, copied=copied)
            held = bool(found.low - 1e-6 <= truth <= found.high + 1e-6)
            corrected = float(found.emd_corrected)
            told[paired].append((held, float(found.high - found.low), p <= LEVEL, corrected))
    row = {**asdict(case), "replicates": replicates, "true": truth}
    for paired, name in ((True, "paired"), (False, "independent")):
        held, length, alarms, corrected = np.array(told[paired], float).mean(axis=0)
        row |= {
            f"{name}_coverage": held,
            f"{name}_length": length,
            f"{name}_found": alarms,
            f"{name}_corrected": corrected,
        }
    return row


def cases(images: Sequence[int], overlaps: Sequence[int]) -> Iterator[Case]:
    for kind, size, overlap, shift in itertools.product(KINDS, images, overlaps, SHIFTS):
        case = Case(kind, size, overlap / 100, shift)
        if shift == "none" or case.truth > 0:  # all images may be the same
            yield case


def summary(rows: Sequence[dict[str, Any]]) -> str:
    held = [row["paired_coverage"] for row in rows]
    alarms = [row["paired_found"] for row in rows if row["shift"] == "none"]
    said = f"intervals of pairs hold the truth {min(held):.1%} to {max(held):.1%} of the time"
    if alarms:
        said += f"; false alarms {min(alarms):.1%} to {max(alarms):.1%}"
    return f"{said} ({len(rows)} cases)"


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=numbers, default=[100, 300, 1000])
    parser.add_argument("--overlaps", type=numbers, default=[0, 10, 50, 90, 100])
    parser.add_argument("--only", type=re.compile, help="cases, as 'altered, 300 images, 50%%'")
    parser.add_argument("--replicates", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chosen = [
        case
        for case in cases(arguments.images, arguments.overlaps)
        if arguments.only is None or arguments.only.search(str(case))
    ]
    if not chosen:
        parser.error("there is no such case")
    rows, started = [], time.monotonic()
    for case in chosen:
        row = measured(case, arguments.replicates, arguments.seed)
        rows.append(row)
        line = f"{case}: true {row['true']:.3f}"
        for name in ("paired", "independent"):
            line += (
                f"; {name} {row[f'{name}_corrected']:.3f}, holds {row[f'{name}_coverage']:.1%}, "
                f"length {row[f'{name}_length']:.3f}, found {row[f'{name}_found']:.1%}"
            )
        print(line, file=sys.stderr, flush=True)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    measure.emit({"cases": rows}, summary(rows))


if __name__ == "__main__":
    main()
