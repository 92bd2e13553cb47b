"""How often `vdna drift` raises a false alarm, and how many versions late it sees a true shift.

    python -m experiments.drift [--histories 1000] [--kinds churn,growing] [--images 300]

A history has 30 versions of a dataset of synthetic images. An image gives each of 40 neurons one
activation. Half of its variance is of five common factors. A third of the neurons are normal, a
third are cut off at zero, and a third at one standard deviation, so that five in six of their
activations are zero. The versions are:

    independent  so many new images each (`--images`)
    growing      so many images, and a tenth of that more in each version
    churn        so many images, a tenth of which are replaced by new ones in each version
    altered      so many images, of which a random share of 20% to 90% is kept in each version, but
                 made anew (a correlation of 0.9 of their activations); all others are new

In a null history all images are of one distribution. In others, from version 15 on, new images (and
those that are made anew) are shifted by normally distributed amounts, whose root mean square is
`--shifts` standard deviations of a neuron. `slowly` means that the shift grows by a tenth of it in
each version.

Folds are dealt by the product's rule for names. The tests, the rule of the alarm, and whether a
pair counts as one of shared images are the product's, too. Reported are the share of null histories
with an alarm, and with one of either kind; and for shifts, the share of histories in which an alarm
is raised at the first shifted version, within four more, and at any later one, the median of how
many versions late it is, and how often there was an alarm before the shift.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import measure
from experiments.intervals import EDGES, FOLDS, Array, shifts
from experiments.pairs import NEURONS, drawn
from pipeline.comparing import significance
from pipeline.comparing.drift_alarm import FALSE_ALARM_RATE, RATED_VERSIONS, alarms
from pipeline.comparing.fold_statistics import LEAST_PAIRED
from pipeline.dna import Pairs
from pipeline.dna.pairs import NUMBERS

KINDS = ("independent", "growing", "churn", "altered")
LIKENESS = 0.9
FIRST_SHIFTED = 15
LATE = 5
"""An alarm is early if it is raised at the first shifted version or at one of the next four."""

CUT = np.repeat([-np.inf, 0.0, 1.0], [NEURONS - 2 * (NEURONS // 3), NEURONS // 3, NEURONS // 3])
"""Below which value each neuron's activations are cut off."""


@dataclass(frozen=True)
class Case:
    """Histories of one kind, and by how much their new images are shifted."""

    kind: str
    images: int
    shift: float = 0.0
    slowly: bool = False

    def __str__(self) -> str:
        size = f"shift {self.shift}" if self.shift else "no shift"
        return f"{self.kind}, {self.images} images, {size}{', slowly' if self.slowly else ''}"

    def moved(self, version: int) -> Array:
        """(neurons,) by how much the new images of a version are shifted."""
        since = version - FIRST_SHIFTED + 1
        part = min(since / 10, 1.0) if self.slowly else 1.0
        return shifts("normal", NEURONS, self.shift, seed=1) * (part if since > 0 else 0.0)


@dataclass(frozen=True)
class Sample:
    """A version: its curves by fold (K, points), their images and numbers, and its names."""

    folds: Array
    images: Array
    numbers: Array
    pairs: Pairs

    @classmethod
    def of(cls, values: Array, names: Array) -> Sample:
        """Counts activations (images, neurons) of images with these names (images,)."""
        dealt = (names % FOLDS).astype(np.int64)
        at = np.searchsorted(EDGES, np.maximum(values, CUT), side="right")
        points, neurons = len(EDGES) + 1, values.shape[1]
        place = (dealt[:, None] * neurons + np.arange(neurons)) * points + at
        counts = np.bincount(place.ravel(), minlength=FOLDS * neurons * points)
        below = counts.reshape(FOLDS, neurons, points).cumsum(axis=2)[..., :-1]
        images = np.bincount(dealt, minlength=FOLDS)
        numbers = np.flatnonzero(images)
        curves = (below[numbers] / images[numbers, None, None]).reshape(len(numbers), -1)
        order = np.argsort(names)
        pairs = Pairs(names[order], dealt[order].astype(np.int8), NUMBERS)
        return cls(curves, images[numbers], numbers, pairs)


def gram_of(a: Sample, b: Sample) -> Array:
    """(K, K) inner products of the differences of folds, as a comparison makes them."""
    if a.pairs.shared(b.pairs).of_smaller >= LEAST_PAIRED:
        shares = significance.paired_shares(a.images, a.numbers, b.images, b.numbers)
    else:
        shares = significance.fold_shares(a.images, b.images)
    return significance.curve_difference_gram(a.folds, b.folds, *shares)


def versions(case: Case, chance: np.random.Generator) -> Iterator[Sample]:
    """Draws the versions of a history."""

    def new(images: int, version: int) -> tuple[Array, Array]:
        names = chance.integers(0, NUMBERS, images, np.uint64)
        return drawn(chance, images) + case.moved(version), names

    added = case.images // 10
    values, names = new(case.images, 0)
    yield Sample.of(values, names)
    for version in range(1, RATED_VERSIONS):
        keep = len(names)
        if case.kind == "independent":
            keep = 0
        elif case.kind == "churn":
            keep = case.images - added
        elif case.kind == "altered":
            keep = round(chance.uniform(0.2, 0.9) * case.images)
        order = chance.permutation(len(names))[:keep]
        values, names = values[order], names[order]
        if case.kind == "altered":
            # The likeness is of the images before any shift.
            plain = values - case.moved(version - 1)
            again = np.sqrt(1 - LIKENESS**2) * drawn(chance, keep)
            values = LIKENESS * plain + again + case.moved(version)
        count = added if case.kind == "growing" else case.images - keep
        more, named = new(count, version)
        values, names = np.concatenate([values, more]), np.concatenate([names, named])
        yield Sample.of(values, names)


def tested(case: Case, chance: np.random.Generator) -> tuple[Array, Array]:
    """(29,) p of the versions of one history: against the one before, and against the first."""
    held = list(versions(case, chance))
    pairs = [*itertools.pairwise(held), *((held[0], of) for of in held[1:])]
    grams = [gram_of(*pair) for pair in pairs]
    whole = max(len(gram) for gram in grams)
    p = np.empty(len(grams))
    for size in range(1, whole + 1):
        mine = [at for at, gram in enumerate(grams) if len(gram) == size]
        if mine:
            p[mine] = significance.flip_test(np.stack([grams[at] for at in mine]))
    return p[: RATED_VERSIONS - 1], p[RATED_VERSIONS - 1 :]


def measured(case: Case, histories: int, seed: int) -> dict[str, Any]:
    """Draws so many histories, and counts their alarms."""
    chance = np.random.default_rng(seed)
    found = [alarms(*tested(case, chance)) for _ in range(histories)]
    step, reference = (np.array([getattr(of, name) for of in found]) for name in found[0]._fields)
    either = step | reference
    row = {**asdict(case), "histories": histories, "seed": seed}
    if not case.shift:
        for name, raised in (("any", either), ("step", step), ("reference", reference)):
            row[name] = float(raised.any(axis=1).mean())
        return row
    before, after = either[:, : FIRST_SHIFTED - 1], either[:, FIRST_SHIFTED - 1 :]
    late = np.where(after.any(axis=1), after.argmax(axis=1), RATED_VERSIONS)
    return row | {
        "before": float(before.any(axis=1).mean()),
        "at_once": float((late < 1).mean()),
        "early": float((late < LATE).mean()),
        "seen": float((late < RATED_VERSIONS).mean()),
        "late": float(np.median(late)),
    }


def cases(kinds: Sequence[str], images: int, sizes: Sequence[float]) -> Iterator[Case]:
    for kind in kinds:
        yield Case(kind, images)
        for size, slowly in itertools.product(sizes, (False, True)):
            yield Case(kind, images, size, slowly)


def line_of(case: Case, row: dict[str, Any]) -> str:
    if not case.shift:
        return (
            f"{case}: {row['any']:.2%} of {row['histories']} histories have an alarm "
            f"(step {row['step']:.2%}, reference {row['reference']:.2%})"
        )
    late = "never" if row["late"] >= RATED_VERSIONS else f"{row['late']:g} versions late"
    return (
        f"{case}: seen at once {row['at_once']:.0%}, within {LATE} versions {row['early']:.0%}, "
        f"ever {row['seen']:.0%}; median {late}; alarms before {row['before']:.1%}"
    )


def summary(rows: Sequence[dict[str, Any]]) -> str:
    rates = [row["any"] for row in rows if not row["shift"]]
    told = f"{min(rates):.1%} to {max(rates):.1%}" if rates else "not measured"
    return (
        f"false alarms in a history of {RATED_VERSIONS} versions: {told}; at most "
        f"{FALSE_ALARM_RATE:.0%} is stated"
    )


def main() -> None:
    def numbers(text: str) -> list[float]:
        return [float(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=1000, help="null histories of each kind")
    parser.add_argument("--shifted", type=int, default=200, help="histories of each shift")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument(
        "--shifts",
        type=lambda text: [float(of) for of in text.split(",") if of],
        default=[0.2, 0.5],
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"there is no kind {min(unknown)!r}; there are {', '.join(KINDS)}")
    rows, started = [], time.process_time()
    for case in cases(arguments.kinds, arguments.images, arguments.shifts):
        histories = arguments.shifted if case.shift else arguments.histories
        if not histories:
            continue
        row = measured(case, histories, arguments.seed)
        rows.append(row)
        print(line_of(case, row), file=sys.stderr, flush=True)
    print(f"{time.process_time() - started:.0f} s of CPU", file=sys.stderr, flush=True)
    measure.emit({"cases": rows}, summary(rows))


if __name__ == "__main__":
    main()
