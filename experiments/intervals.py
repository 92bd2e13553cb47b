"""How often the 95% interval holds the truth, for synthetic images whose true distance is known.

    python -m experiments.intervals [--neurons 24,160] [--images 100,300] [--factors 0,5]
    python -m experiments.intervals --jackknife
    python -m experiments.intervals --only "uniform 160 neurons, 100 images" --replicates 5000

An image gives each neuron one normal activation. With common factors, half of its variance is a
random mixture of as many factors, which all neurons share. The second dataset is shifted:

    uniform      every neuron by the same amount
    half         every second neuron, the others not at all
    sparse       one neuron in twenty
    normal       by normally distributed amounts
    exponential  by exponentially distributed amounts

Sizes of shifts are given as the root mean square over neurons, in standard errors of the mean of a
neuron. For each number of neurons and factors they are chosen so that the test finds the smallest
in somewhat more than half of the replicates; the largest is a few times as large.

Activations are counted in 25 bins, and their images are dealt to sixteen folds. From there on all
is the product's own: `pipeline.comparing.noise_kernel`, `intervals` and `significance`. Reported
are the coverage, how often the truth is below and above the interval, the means of its ends, and
the share of intervals that are called wide. `--jackknife` adds the coverage of the textbook's
interval, by the jackknife of the square (docs/statistics.md). `--out FILE` adds cases to a JSON
file as they are done, so that a long run can be cut into several.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtrit

from benchmarks import measure
from pipeline.comparing import intervals, noise_kernel, significance
from pipeline.comparing.noise_kernel import NoiseCurves

Array = NDArray[Any]

FOLDS = 16
LOW, WIDTH, POINTS = -3.6, 0.3, 24
PER_WIDTH = 1 / WIDTH
EDGES = LOW + WIDTH * np.arange(1, POINTS + 1)
TABLE = ndtri((np.arange(2**16) + 0.5) / 2**16).astype(np.float32)
"""Quantiles of the normal distribution, of which activations are drawn."""

KINDS = ("uniform", "half", "sparse", "normal", "exponential")
NEURONS, FACTORS, IMAGES = (24, 160, 3120), (0, 5, 50), (100, 300, 1000, 3000)
SHIFTS = {
    (1, 0): (2.5, 5.0),
    (24, 0): (0.9, 2.0, 5.0),
    (24, 5): (1.2, 3.0, 6.0),
    (24, 50): (1.0, 2.5, 5.5),
    (160, 0): (0.55, 1.5, 4.0),
    (160, 5): (0.9, 2.5, 5.0),
    (160, 50): (0.6, 1.7, 4.5),
    (3120, 0): (0.26, 1.0, 4.0),
    (3120, 5): (0.85, 2.5, 5.0),
    (3120, 50): (0.5, 1.5, 4.5),
}
"""Root mean squares of shifts, in standard errors of a neuron's mean, by neurons and factors."""

LEVEL = 0.05


@dataclass(frozen=True)
class Case:
    """One kind and size of shift between two datasets of so many images."""

    kind: str
    neurons: int
    factors: int
    images: int
    shift: float

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.neurons} neurons, {self.images} images, {self.factors} factors, "
            f"shift {self.shift}"
        )


def cases(neurons: Sequence[int], factors: Sequence[int], images: Sequence[int]) -> Iterator[Case]:
    for count in neurons:
        for common in factors:
            for size in images:
                for shift in SHIFTS.get((count, common), ()):
                    yield from (Case(kind, count, common, size, shift) for kind in KINDS)


def shifts(kind: str, neurons: int, size: float, seed: int) -> Array:
    """(neurons,) shifts whose root mean square is `size`."""
    at = np.random.default_rng(seed).permutation(neurons)
    spread = (at + 0.5) / neurons
    each = {
        "uniform": np.ones(neurons),
        "half": np.where(at % 2 == 0, 1.0, 0.0),
        "sparse": np.where(at % 20 == 0, 1.0, 0.0),
        "normal": ndtri(spread),
        "exponential": -np.log(spread),
    }[kind]
    return np.asarray(each * size / np.sqrt((each**2).mean()))


def distance(moved: Array) -> float:
    """The EMD of populations whose neurons are shifted so, in bins."""
    return float(np.abs(ndtr(EDGES - moved[:, None]) - ndtr(EDGES)).sum(axis=1).mean())


@njit(error_model="numpy", cache=True)
def _count(folds: Array, common: Array, moved: Array, own: float, seed: int, table: Array) -> None:
    """Writes the cumulative distributions (16, neurons, points) of images, by xorshift64*.

    `common` (neurons, images) is what images share between neurons.
    """
    state = np.uint64(seed)
    count, neurons, points = folds.shape
    images = common.shape[1]
    counts = np.empty((count, points + 1), np.int32)
    for n in range(neurons):
        counts[:] = 0
        for first in range(0, images, 4):
            state ^= state << np.uint64(13)
            state ^= state >> np.uint64(7)
            state ^= state << np.uint64(17)
            random = state * np.uint64(2685821657736338717)
            for i in range(first, min(first + 4, images)):
                x = own * table[random & np.uint64(65535)] + common[n, i] + moved[n]
                counts[i % count, int(min(max((x - LOW) * PER_WIDTH, 0.0), points))] += 1
                random >>= np.uint64(16)
        for k in range(count):
            share, below = 1 / len(range(k, images, count)), 0
            for p in range(points):
                below += counts[k, p]
                folds[k, n, p] = below * share


@dataclass(frozen=True, eq=False)
class Images:
    """Images that are drawn, but not yet shifted.

    `common` (neurons, images) is what each image adds to its neurons by common factors, `own` the
    standard deviation of the rest, and `seed` makes the rest.
    """

    common: Array
    own: float
    seed: int

    @classmethod
    def draw(cls, chance: np.random.Generator, images: int, loadings: Array) -> Images:
        """Draws images; `loadings` (factors, neurons) mix the common factors."""
        factors = chance.standard_normal((len(loadings), images), np.float32)
        own = np.sqrt(0.5) if len(loadings) else 1.0
        common = (
            loadings.T @ factors
            if len(loadings)
            else np.zeros((loadings.shape[1], images), np.float32)
        )
        return cls(common, own, int(chance.integers(1, 2**62)))

    def folds(self, moved: Array) -> Array:
        """(16, neurons, points) cumulative distributions of the folds of the shifted images."""
        folds = np.empty((FOLDS, len(moved), POINTS), np.float32)
        _count(folds, self.common, moved, self.own, self.seed, TABLE)
        return folds

    @property
    def sizes(self) -> Array:
        """(16,) images of each fold."""
        return np.bincount(np.arange(self.common.shape[1]) % FOLDS, minlength=FOLDS).astype(float)


def noise_of(folds: Array, images: Array, numbers: tuple[int, ...] | None = None) -> NoiseCurves:
    """Returns the curves of one DNA from those of its folds (K, neurons, points), numbered so."""
    count, neurons, points = folds.shape
    made = NoiseCurves.empty(neurons, 1, points)
    signs = intervals.patterns(numbers or tuple(range(count))).astype(np.float32)
    _add_folds(folds, images / images.sum(), signs, made.whole[0], made.rows[0])
    made.finish(0)
    return made


@njit(error_model="numpy", cache=True, fastmath={"contract"})
def _add_folds(folds: Array, share: Array, signs: Array, whole: Array, rows: Array) -> None:
    count, neurons, points = folds.shape
    deviations = np.empty((count, points), np.float32)
    for n in range(neurons):
        for k in range(count):
            for p in range(points):
                whole[n, p] += share[k] * folds[k, n, p]
        for k in range(count):
            for p in range(points):
                deviations[k, p] = (folds[k, n, p] - whole[n, p]) * share[k]
        for k in range(count):
            for p in range(points):
                for j in range(len(signs)):
                    rows[n, p, j] += signs[j, k] * deviations[k, p]


def noise_by_layer(
    a: NoiseCurves, b: NoiseCurves, widths: Sequence[int], step: float
) -> tuple[Array, Array]:
    """(layers + 1, 6) and (layers + 1, 30, 8): noise of the mean of each layer, and of all neurons.

    `step` is how many bins a point stands for.
    """
    sums, ends = [], np.cumsum(widths)
    for end, width in zip(ends, widths, strict=True):
        weights = np.zeros(ends[-1])
        weights[end - width : end] = step
        sums.append(noise_kernel.noise_sums(a, b, weights, threads=1))
    added, changes = (np.stack([of[0, 0] for of in part]) for part in zip(*sums, strict=True))
    scales = np.array([*widths, ends[-1]])
    return (
        np.concatenate([added, added.sum(axis=0, keepdims=True)]) / scales[:, None],
        np.concatenate([changes, changes.sum(axis=0, keepdims=True)]) / scales[:, None, None],
    )


def jackknife_interval(a: Array, b: Array, images_a: Array, images_b: Array) -> tuple[float, float]:
    """The interval by the jackknife of the square, taken back to the distance."""

    def apart(x: Array, y: Array) -> Array:
        return np.abs(x - y).sum(axis=(-1, -2)) / x.shape[-2]

    def left_out(folds: Array, images: Array) -> tuple[Array, Array]:
        sums = folds * images[:, None, None]
        total = sums.sum(axis=0)
        return total / images.sum(), (total - sums) / (images.sum() - images)[:, None, None]

    (whole_a, dropped_a), (whole_b, dropped_b) = left_out(a, images_a), left_out(b, images_b)
    emd = apart(whole_a, whole_b)
    square, variance, scale, plain = emd**2, 0.0, 0.0, 0.0
    for dropped, other, images in ((dropped_a, whole_b, images_a), (dropped_b, whole_a, images_b)):
        without, h = apart(dropped, other), images.sum() / images
        folds = len(images)

        def jackknifed(value: Any, parts: Array, h: Array = h, folds: int = folds) -> Any:
            bias = ((1 - 1 / h) * parts).sum() - (folds - 1) * value
            pseudo = h * value - (h - 1) * parts
            return bias, ((pseudo - (value - bias)) ** 2 / (h - 1)).mean()

        bias, of_square = jackknifed(emd**2, without**2)
        square, variance, scale = (
            square - bias, variance + of_square, scale + of_square**2 / (folds - 1),
        )  # fmt: skip
        plain += jackknifed(emd, without)[1]
    quantile = stdtrit(variance**2 / scale, (1 + intervals.CONFIDENCE) / 2)
    moved = 2 * quantile**2 * plain
    reach = np.sqrt(moved**2 + quantile**2 * variance)
    ends = square + moved - reach, max(square, 0) + moved + reach
    return float(np.sqrt(max(ends[0], 0))), float(np.sqrt(max(ends[1], 0)))


@dataclass(frozen=True)
class Pair:
    """What a pair of datasets shows: the distance, its noise, and products of folds."""

    emd: float
    added: Array
    changes: Array
    gram: Array
    jackknife: tuple[float, float]

    @classmethod
    def of(cls, a: Array, b: Array, one: NoiseCurves, images: Array, *, jackknife: bool) -> Pair:
        """Compares folds (16, neurons, points); `one` has the curves of a."""
        other, neurons = noise_of(b, images), a.shape[1]
        weights = np.full(neurons, 1 / neurons)
        added, changes = noise_kernel.noise_sums(one, other, weights, threads=1)
        apart = (a - b).reshape(FOLDS, -1)
        return cls(
            float(np.abs(one.whole - other.whole).sum() / neurons),
            added[0, 0],
            changes[0, 0],
            (apart @ apart.T).astype(np.float64),
            jackknife_interval(a, b, images, images) if jackknife else (np.nan, np.nan),
        )


def measured(
    cases: Sequence[Case], replicates: int, seed: int, *, jackknife: bool
) -> Iterator[dict[str, Any]]:
    """Draws so many pairs of datasets, and counts how often intervals hold the truth.

    All cases have as many neurons, factors and images. So they are of the same images, which only
    are shifted in other ways.
    """
    chance = np.random.default_rng(seed)
    neurons, factors, images = cases[0].neurons, cases[0].factors, cases[0].images
    moved = [shifts(case.kind, neurons, case.shift * np.sqrt(2 / images), seed) for case in cases]
    mixed = chance.standard_normal((factors, neurons))
    loadings = (mixed / np.sqrt(2 * (mixed**2).sum(axis=0))).astype(np.float32)
    pairs: list[list[Pair]] = [[] for _ in cases]
    for _ in range(replicates):
        drawn = [Images.draw(chance, images, loadings) for _ in "ab"]
        a = drawn[0].folds(np.zeros(neurons))
        one = noise_of(a, drawn[0].sizes)
        for found, by in zip(pairs, moved, strict=True):
            found.append(Pair.of(a, drawn[1].folds(by), one, drawn[1].sizes, jackknife=jackknife))
    for case, found, by in zip(cases, pairs, moved, strict=True):
        yield reported(case, distance(by), found, jackknife=jackknife)


def reported(case: Case, truth: float, pairs: Sequence[Pair], *, jackknife: bool) -> dict[str, Any]:
    """Says of one case how often the test finds it, and intervals hold the truth."""
    emds = np.array([pair.emd for pair in pairs])
    added, changes = (np.array([getattr(p, of) for p in pairs]) for of in ("added", "changes"))
    found = intervals.estimate(emds, added, changes, FOLDS, FOLDS)
    held = (found.low <= truth) & (truth <= found.high)
    wide = intervals.is_wide(found.low, found.high, found.se)
    p = significance.flip_test(np.array([pair.gram for pair in pairs]))
    row = {
        **asdict(case),
        "replicates": len(pairs),
        "power": float((p <= LEVEL).mean()),
        "true": truth,
        "emd": float(np.mean(emds)),
        "emd_sd": float(np.std(emds)),
        "se": float(found.se.mean()),
        "corrected": float(found.emd_corrected.mean()),
        "low": float(found.low.mean()),
        "high": float(found.high.mean()),
        "coverage": float(held.mean()),
        "truth_below": float((truth < found.low).mean()),
        "truth_above": float((truth > found.high).mean()),
        "wide": float(wide.mean()),
        "held_if_not_wide": float(held[~wide].mean()) if not wide.all() else None,
    }
    if jackknife:
        ends = np.array([pair.jackknife for pair in pairs])
        row["jackknife_coverage"] = float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())
    return row


def summary(rows: Sequence[dict[str, Any]]) -> str:
    told = [row for row in rows if row["power"] >= 0.5]
    if not told:
        return "no case is told apart in half of the replicates"
    said = []
    for wide, which in ((False, "mostly not wide"), (True, "mostly wide")):
        held = [row["coverage"] for row in told if (row["wide"] > 0.5) == wide]
        if held:
            said.append(
                f"intervals that are {which} hold the truth {min(held):.1%} to {max(held):.1%} of "
                f"the time ({len(held)} cases)"
            )
    return "; ".join(said)


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=numbers, default=NEURONS)
    parser.add_argument("--factors", type=numbers, default=FACTORS)
    parser.add_argument("--images", type=numbers, default=IMAGES)
    parser.add_argument("--only", type=re.compile, help="cases, as 'sparse 160 neurons, 100 '")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jackknife", action="store_true", help="also the textbook's interval")
    parser.add_argument("--out", type=Path, help="a JSON file, to which the cases are added")
    arguments = parser.parse_args()
    chosen = [
        case
        for case in cases(arguments.neurons, arguments.factors, arguments.images)
        if arguments.only is None or arguments.only.search(str(case))
    ]
    if not chosen:
        parser.error("there is no such case")
    rows = []
    for _, alike in itertools.groupby(
        chosen, lambda each: (each.neurons, each.factors, each.images)
    ):
        together, started = list(alike), time.monotonic()
        found = list(
            measured(together, arguments.replicates, arguments.seed, jackknife=arguments.jackknife)
        )
        rows += found
        for case, row in zip(together, found, strict=True):
            line = f"{case}: power {row['power']:.0%}, coverage {row['coverage']:.1%} "
            line += f"(below {row['truth_below']:.1%}, above {row['truth_above']:.1%}), "
            line += f"wide {row['wide']:.0%}"
            print(line, file=sys.stderr, flush=True)
        print(f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        if arguments.out:
            known = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
            arguments.out.write_text(json.dumps([*known, *found], indent=1) + "\n")
    measure.emit({"cases": rows}, summary(rows))


if __name__ == "__main__":
    main()
