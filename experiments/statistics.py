"""How right the error bars are: replicates drawn from pools of real images, whose truth is known.

    python -m experiments.statistics [--images 4000] [--replicates 1000] [--nulls 10000] [--out DIR]
    python -m experiments.statistics --only "brighter 1000x1000" --replicates 10000

A pool of crops of photographs is taken as the population, so that its distances are known. Other
pools are crops made 8% brighter, crops of textures, and photographs with one texture in twenty. The
last pool is no set of images: in photographs, one neuron in twenty is moved by hand, and all others
are left alone. Samples of 100 to 10,000 images are drawn with replacement and put into sixteen
folds, as a build does. `pipeline.comparing.intervals` and `significance` make the estimates.
Reported for each pair, size and layer:

    bias       of the plug-in EMD (the reference's figure) and of `emd_corrected`, in bins
    coverage   how often the 95% interval holds the pools' distance; of the plug-in, how often it
               lies within its own spread of it, which is all that one has without the correction
    below_high how often the distance is below the interval's upper end
    wide       how often the interval is called wide
    power      how often p <= 0.05

False alarms are measured on two samples of one pool, of equal and of unequal sizes. The samples are
single images, or images in groups (as videos: crops of one photograph, never split between folds).
Alarms are counted at 5%, and further out at 1% and 0.1%, where `q` of a matrix looks. One more case
shows what does not work: images of a group that are dealt to folds one by one.

`--only` runs only the cases whose names match. Many replicates of one case tell a rate that is
truly off from one that is off by chance.

`--out` writes the paper's curve (EMD against the number of images) as a figure, and all numbers as
JSON. The activations of the pools are kept in the cache of `benchmarks.corpora`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from benchmarks import corpora, measure
from experiments.intervals import noise_by_layer, noise_of
from pipeline.comparing import CONFIDENCE, intervals, significance
from pipeline.comparing.noise_kernel import NoiseCurves

LAYERS = ("blocks.2.1", "blocks.4.2", "blocks.6.0")
MOST_NEURONS = 160
POINTS = 40
"""The points that are kept of each neuron's cumulative distribution: every 25th of 1,000 bins."""
BINS = 1000
FOLDS = 16
SIZES = (100, 316, 1000, 3162, 10_000)
PAIRS = (*zip(SIZES, SIZES, strict=True), (100, 3162), (3162, 100), (316, 10_000))
LEVEL = 0.05
TAILS = (0.01, 0.001)
"""Levels that p of many pairs is held against, as q does."""
AT_ONCE = 100
"""Replicates, whose products with the pool are one."""
POOLS = {"photos": ("photos", 1.0), "brighter": ("photos", 1.08), "textures": ("textures", 1.0)}
MOVED = "a few neurons moved"
POPULATIONS = {
    "photos": {"photos": 1.0},
    "one in 20 textures": {"photos": 0.95, "textures": 0.05},
    "brighter": {"brighter": 1.0},
    "textures": {"textures": 1.0},
    MOVED: {MOVED: 1.0},
}
SINGLE = ((112, 3200), (100, 100), (1000, 316), (32, 3200), (16, 1600))
NULLS = (
    *(("single images", *sizes) for sizes in SINGLE),
    ("groups of about 10", 320, 3200),
    ("groups of about 10", 500, 500),
    ("groups of about 10", 1000, 3200),
    ("groups of about 10, split between folds", 500, 500),
)
ESTIMATES = tuple((name, *sizes) for name in POPULATIONS for sizes in PAIRS)

Case = tuple[str, int, int]
"""The name of a population, and the number of images on either side."""

Array = NDArray[Any]


# Pools.


@dataclass(frozen=True)
class Pool:
    """`curves` (images, features): cumulative distributions of LAYERS side by side. `group`: the
    photograph that a crop is of. `spread`: of every layer, the EMD that one image a side shows.
    """

    curves: Array
    group: Array
    widths: tuple[int, ...]
    spread: dict[str, float]

    def layers(self, values: Array) -> Array:
        """(..., features) -> (..., layers + 1): EMD in bins of each layer, and of all neurons."""
        edges = np.cumsum([0, *(width * POINTS for width in self.widths)])[:-1]
        sums = np.add.reduceat(np.abs(values), edges, axis=-1) * (BINS / POINTS)
        means = sums / np.array(self.widths)
        return np.concatenate([means, sums.sum(-1, keepdims=True) / sum(self.widths)], axis=-1)


def crops(folder: Path, count: int, brightness: float, seed: int) -> Iterator[tuple[int, Array]]:
    """Square crops of the folder's images, mirrored at random: which image, and its pixels."""
    chance = np.random.default_rng(seed)
    images = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
            continue
        image = Image.open(path).convert("RGB")
        least = min(image.size)
        if least > 600:
            image = image.resize((image.width * 600 // least, image.height * 600 // least))
        if least >= 96:
            images.append(np.asarray(image))
    for _ in range(count):
        at = int(chance.integers(len(images)))
        height, width = images[at].shape[:2]
        side = int(min(height, width) * chance.uniform(0.35, 1))
        top, left = chance.integers(height - side + 1), chance.integers(width - side + 1)
        pixels = images[at][top : top + side, left : left + side]
        pixels = pixels[:, ::-1] if chance.random() < 0.5 else pixels
        crop = Image.fromarray(np.ascontiguousarray(pixels)).resize(
            (224, 224), Image.Resampling.BICUBIC
        )
        yield at, np.asarray(ImageEnhance.Brightness(crop).enhance(brightness))


def pool(name: str, count: int, cache: Path) -> Pool:
    path = cache / f"statistics-{name}-{count}.npz"
    if not path.exists():
        corpus, brightness = POOLS[name]
        folder = corpora.corpus(corpus, cache)
        temporary = path.with_suffix(".part.npz")
        np.savez(temporary, **_observe(folder, count, brightness, list(POOLS).index(name)))
        os.replace(temporary, path)
    held = np.load(path)
    return Pool(
        held["curves"],
        held["group"],
        tuple(held["widths"].tolist()),
        dict(zip(held["layers"].tolist(), held["spread"].tolist(), strict=True)),
    )


def moved(photos: Pool) -> Pool:
    """The photographs' curves, those of one neuron in twenty of each layer three points higher."""
    neurons = photos.curves.reshape(len(photos.curves), -1, POINTS).copy()
    some = np.concatenate(
        [start + np.arange(0, width, 20) for start, width in _starts(photos.widths)]
    )
    neurons[:, some] = np.pad(neurons[:, some], ((0, 0), (0, 0), (3, 0)))[:, :, :POINTS]
    return replace(photos, curves=neurons.reshape(photos.curves.shape))


def _starts(widths: Sequence[int]) -> Iterator[tuple[int, int]]:
    return zip(itertools.accumulate((0, *widths[:-1])), widths, strict=True)


def _observe(folder: Path, count: int, brightness: float, seed: int) -> dict[str, Array]:
    from pipeline.counting import Extractor, LayerCounts
    from pipeline.images import prepare
    from pipeline.networks import describe, find_ranges
    from pipeline.spec import Preprocess

    network = describe("efficientnet_lite0")
    extractor = Extractor(network)
    known, _ = find_ranges(network, None, {})
    rule = Preprocess(network.height, network.width, network.mean, network.std)
    starts = np.cumsum([0, *(tap.neurons for tap in network.taps)])
    chosen = {
        index: np.linspace(0, tap.neurons - 1, min(tap.neurons, MOST_NEURONS)).astype(int)
        for index, tap in enumerate(network.taps)
    }
    kept = [index for index, tap in enumerate(network.taps) if tap.name in LAYERS]
    widths = [len(chosen[index]) for index in kept]
    at = dict(zip(kept, np.cumsum([0, *widths])[:-1] * POINTS, strict=True))
    curves = np.empty((count, sum(widths) * POINTS), np.float32)
    sums = {i: np.zeros((2, len(neurons), POINTS)) for i, neurons in chosen.items()}
    done = 0

    def visit(index: int, x: Any) -> None:
        neurons = chosen[index]
        low, high = (v[starts[index] + neurons] for v in (known.low, known.high))
        activations = np.ascontiguousarray(x.numpy()[:, :, neurons])
        for offset in range(len(activations)):
            counts = LayerCounts(low, high, POINTS)
            counts.add(activations[offset : offset + 1])
            table = counts.table[:, :POINTS].astype(np.float64)
            table[:, 0] += counts.table[:, POINTS]
            table[:, -1] += counts.table[:, POINTS + 1]
            curve = np.cumsum(table, axis=1) / activations.shape[1]
            sums[index] += np.stack([curve, curve**2])
            if index in at:
                curves[done + offset, at[index] : at[index] + curve.size] = curve.ravel()

    groups, batch = np.empty(count, np.int32), []
    started = time.monotonic()
    for number, (group, pixels) in enumerate(crops(folder, count, brightness, seed), 1):
        groups[number - 1] = group
        batch.append(prepare(pixels, rule))
        if len(batch) == extractor.micro_batch or number == count:
            extractor.observe(np.stack(batch), visit)
            done, batch = number, []
        if number % 500 == 0:
            rate = number / (time.monotonic() - started)
            print(f"{folder.name}: {number} of {count}, {rate:.0f} images/s", file=sys.stderr)
    # The mean of |x - y| of normal x, y is 2 / sqrt(pi) of their standard deviation.
    spread = [
        2
        / np.sqrt(np.pi)
        * np.sqrt(np.maximum(0, s[1] / count - (s[0] / count) ** 2)).sum(1).mean()
        for s in sums.values()
    ]
    return {
        "curves": curves,
        "group": groups,
        "widths": np.array(widths),
        "layers": np.array([network.taps[index].name for index in sums]),
        "spread": np.array(spread) * (BINS / POINTS),
    }


# Samples.


@dataclass(frozen=True)
class Sample:
    """Drawn folds: `images` (K,), `folds` (K, features), `whole` (features,), `noise`: the curves
    that noise is added to, `halves` (H, layers): EMD between halves of the folds.
    """

    images: Array
    folds: Array
    whole: Array
    noise: NoiseCurves
    halves: Array


def deal(chance: np.random.Generator, count: int) -> Array:
    """Folds of `count` single images: as equal as can be."""
    return chance.permutation(np.arange(count) % FOLDS)


def weights(
    chance: np.random.Generator, pools: dict[str, Pool], shares: dict[str, float], count: int
) -> dict[str, Array]:
    """(K, images) how often each image of each pool is in each fold."""
    names = list(shares)
    of = chance.choice(len(names), size=count, p=list(shares.values()))
    folds = deal(chance, count)
    drawn = {}
    for number, name in enumerate(names):
        mine = np.flatnonzero(of == number)
        drawn[name] = np.zeros((FOLDS, len(pools[name].group)), np.float32)
        picked = chance.integers(len(pools[name].group), size=len(mine))
        np.add.at(drawn[name], (folds[mine], picked), 1)
    return drawn


def samples(
    chance: np.random.Generator,
    pools: dict[str, Pool],
    shares: dict[str, float],
    sizes: Sequence[int],
) -> dict[int, Sample]:
    """One of each size; their products with the pools in one piece."""
    drawn = [weights(chance, pools, shares, size) for size in sizes]
    sums: Array = sum(
        (np.concatenate([d[name] for d in drawn]) @ pools[name].curves for name in shares),
        start=np.zeros(()),
    )
    some = next(iter(pools.values()))
    made = {}
    for number, size in enumerate(sizes):
        folds = sums[number * FOLDS : (number + 1) * FOLDS]
        images = np.sum([d.sum(axis=1) for d in drawn[number].values()], axis=0)
        total = folds.sum(axis=0)
        half = (intervals.splits(FOLDS) + 1) // 2
        one = (half @ folds) / (half @ images)[:, None]
        other = ((1 - half) @ folds) / ((1 - half) @ images)[:, None]
        curves = folds / images[:, None]
        made[size] = Sample(
            images,
            curves,
            total / size,
            noise_of(curves.reshape(FOLDS, -1, POINTS), images),
            some.layers(one - other),
        )
    return made


def replicate(
    chance: np.random.Generator, pools: dict[str, Pool], cases: Sequence[Case]
) -> dict[Case, dict[str, Array]]:
    """What is estimated of each case (photographs against what it names), by layer."""
    some = next(iter(pools.values()))
    sizes_a = sorted({case[1] for case in cases})
    first = samples(chance, pools, POPULATIONS["photos"], sizes_a)
    found = {}
    for name in dict.fromkeys(case[0] for case in cases):
        sizes_b = sorted({case[2] for case in cases if case[0] == name})
        second = samples(chance, pools, POPULATIONS[name], sizes_b)
        for case in (case for case in cases if case[0] == name):
            a, b = first[case[1]], second[case[2]]
            emd = some.layers(a.whole - b.whole)
            noise = noise_by_layer(a.noise, b.noise, some.widths, BINS / POINTS)
            estimates = intervals.estimate(emd, *noise, FOLDS, FOLDS)
            found[case] = {
                "emd": emd,
                "corrected": estimates.emd_corrected,
                "se": estimates.se,
                "low": estimates.low,
                "high": estimates.high,
                "wide": intervals.is_wide(estimates.low, estimates.high, estimates.se),
                "floor": intervals.floor(a.halves.T, a.images, b.halves.T, b.images),
                "p": _tests(some, a.folds - b.folds),
            }
    return found


def _tests(some: Pool, apart: Array) -> Array:
    """p of each layer, and of all neurons, of the differences (K, features) of paired folds."""
    edges = np.cumsum([0, *(width * POINTS for width in some.widths)])
    parts = [apart[:, a:b] for a, b in itertools.pairwise(edges)]
    grams = [part.astype(np.float64) @ part.T.astype(np.float64) for part in parts]
    return significance.flip_test(np.stack([*grams, sum(grams)]))


def study(
    pools: dict[str, Pool], replicates: int, seed: int, cases: Sequence[Case]
) -> list[dict[str, Any]]:
    chance = np.random.default_rng(seed)
    found: dict[Case, list[dict[str, Array]]] = {}
    started = time.monotonic()
    for number in range(1, replicates + 1):
        for key, values in replicate(chance, pools, cases).items():
            found.setdefault(key, []).append(values)
        if number % 20 == 0:
            left = (time.monotonic() - started) / number * (replicates - number)
            print(f"{number} of {replicates} replicates, {left:.0f} s left", file=sys.stderr)
    some = next(iter(pools.values()))
    centres = {
        name: sum(share * pools[of].curves.mean(axis=0) for of, share in shares.items())
        for name, shares in POPULATIONS.items()
    }
    rows = []
    for (name, *sizes), runs in found.items():
        truth = some.layers(centres["photos"] - centres[name])
        columns = {column: np.stack([run[column] for run in runs]) for column in runs[0]}
        for index, layer in enumerate([*LAYERS, "all"]):
            mine = {column: values[:, index] for column, values in columns.items()}
            true = float(truth[index])
            near = np.abs(mine["emd"] - true) <= 1.96 * mine["emd"].std()
            rows.append(
                {
                    "b": name,
                    "images_a": sizes[0],
                    "images_b": sizes[1],
                    "layer": layer,
                    "true": true,
                    "emd": float(mine["emd"].mean()),
                    "emd_sd": float(mine["emd"].std()),
                    "floor": float(mine["floor"].mean()),
                    "corrected": float(mine["corrected"].mean()),
                    "corrected_sd": float(mine["corrected"].std()),
                    "se": float(mine["se"].mean()),
                    "low": float(mine["low"].mean()),
                    "high": float(mine["high"].mean()),
                    "coverage": float(((mine["low"] <= true) & (true <= mine["high"])).mean()),
                    "below_high": float((true <= mine["high"]).mean()),
                    "plug_in_coverage": float(near.mean()),
                    "wide": float(mine["wide"].mean()),
                    "power": float((mine["p"] <= LEVEL).mean()),
                    "replicates": len(runs),
                }
            )
    return rows


# False alarms: only inner products of folds are needed, so that a few directions are enough.


def directions(one: Pool) -> list[Array]:
    """(images, d) of each layer: the principal components that hold 99% of the variance.

    What is left out is spread over so many directions that it adds less than one in a thousand to
    the variance of the inner product of two images, which is that of all squared eigenvalues.
    """
    centred = one.curves - one.curves.mean(axis=0)
    edges = np.cumsum([0, *(width * POINTS for width in one.widths)])
    kept = []
    for a, b in itertools.pairwise(edges):
        variance, vectors = np.linalg.eigh(centred[:, a:b] @ centred[:, a:b].T)
        variance, vectors = variance[::-1], vectors[:, ::-1]
        count = int(np.searchsorted(np.cumsum(variance), 0.99 * variance.sum())) + 1
        left_out = float((variance[count:] ** 2).sum() / (variance**2).sum())
        if left_out > 1e-3:
            raise RuntimeError(f"{count} components leave {left_out:.2%} of the variance out")
        kept.append(vectors[:, :count] * np.sqrt(variance[:count]))
    return kept


def false_alarms(
    one: Pool, replicates: int, seed: int, cases: Sequence[Case]
) -> list[dict[str, Any]]:
    chance = np.random.default_rng(seed)
    parts = directions(one)
    images = np.concatenate(parts, axis=1)
    ends = np.cumsum([part.shape[1] for part in parts])[:-1]
    by_group = [np.flatnonzero(one.group == group) for group in np.unique(one.group)]
    rows: list[dict[str, Any]] = []
    for case, *sizes in cases:
        group, split = 1 if case == "single images" else 10, "split" in case
        tests = []
        for start in range(0, replicates, AT_ONCE):
            drawn = []
            for _ in range(min(AT_ONCE, replicates - start)):
                a, b = (_grouped(chance, by_group, len(one.group), n, group, split) for n in sizes)
                drawn.append(a - b)
            apart = (np.concatenate(drawn) @ images).reshape(len(drawn), FOLDS, -1)
            each = [part @ part.transpose(0, 2, 1) for part in np.split(apart, ends, axis=2)]
            tests.append(np.stack([*each, sum(each)], axis=1))
        p = significance.flip_test(np.concatenate(tests).astype(np.float64))
        for index, layer in enumerate([*LAYERS, "all"]):
            alarms = float((p[:, index] <= LEVEL).mean())
            rows.append(
                {
                    "images": case,
                    "images_a": sizes[0],
                    "images_b": sizes[1],
                    "layer": layer,
                    "nominal": LEVEL,
                    "false_alarms": alarms,
                    "tails": {level: float((p[:, index] <= level).mean()) for level in TAILS},
                    "error": float(np.sqrt(LEVEL * (1 - LEVEL) / replicates)),
                    "replicates": replicates,
                }
            )
        print(case, sizes, [row["false_alarms"] for row in rows[-4:]], file=sys.stderr)
        print("  further out", [list(row["tails"].values()) for row in rows[-4:]], file=sys.stderr)
    return rows


def _grouped(
    chance: np.random.Generator,
    by_group: Sequence[Array],
    pool_size: int,
    count: int,
    group: int,
    split: bool,
) -> Array:
    """(K, images) shares of each image in each fold; groups go to the fold that has least."""
    if group == 1:
        folds, picked = np.arange(count) % FOLDS, chance.integers(pool_size, size=count)
    else:
        parts, loads, left = [], [0] * FOLDS, count
        while left:
            size = min(left, int(chance.integers(group // 2, 2 * group)))
            first = loads.index(min(loads))
            members = by_group[int(chance.integers(len(by_group)))]
            dealt = (first + np.arange(size)) % FOLDS if split else np.full(size, first)
            parts.append((dealt, members[chance.integers(len(members), size=size)]))
            for fold in dealt.tolist():
                loads[fold] += 1
            left -= size
        folds, picked = (np.concatenate(column) for column in zip(*parts, strict=True))
    drawn = np.zeros((FOLDS, pool_size), np.float32)
    np.add.at(drawn, (folds, picked), 1)
    return drawn / drawn.sum(axis=1, keepdims=True)


def needed(pools: dict[str, Pool]) -> dict[str, dict[str, float]]:
    """Returns, for every layer, the floor and the number of images that makes it small.

    The floor is given at 100, 1,000 and 10,000 images a side. Small means below one bin of 1,000.
    """
    return {
        layer: {
            **{f"floor_{size}": spread / np.sqrt(size) for size in (100, 1000, 10_000)},
            "images_for_one_bin": float(np.ceil(spread**2)),
        }
        for layer, spread in pools["photos"].spread.items()
    }


def figure(rows: Sequence[dict[str, Any]], path: Path, layer: str) -> None:
    """EMD against the number of images, as in the paper's figure, with what the folds add."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [name for name in POPULATIONS if name != MOVED]
    plot, axes = plt.subplots(1, len(names), figsize=(3.3 * len(names), 3.4), sharex=True)
    for axis, name in zip(axes, names, strict=True):
        mine = [
            r
            for r in rows
            if r["b"] == name and r["layer"] == layer and r["images_a"] == r["images_b"]
        ]
        sizes = [r["images_a"] for r in mine]
        axis.fill_between(
            sizes, [r["low"] for r in mine], [r["high"] for r in mine], color="#9ecae1", alpha=0.6,
            label="95% interval",
        )  # fmt: skip
        axis.plot(sizes, [r["corrected"] for r in mine], "o-", color="#08519c", label="corrected")
        axis.plot(
            sizes, [r["emd"] for r in mine], "s-", color="#a63603", label="EMD as the paper's"
        )
        axis.plot(sizes, [r["floor"] for r in mine], ":", color="#636363", label="floor")
        axis.axhline(mine[0]["true"], color="black", linewidth=0.8, label="of the whole pools")
        axis.set(xscale="log", xlabel="images a side", ylim=(0, None))
        axis.set_title(f"photos and {name}" if name != "photos" else "photos, twice", fontsize=10)
    axes[0].set_ylabel(f"bins, {layer}")
    axes[0].legend(fontsize=8)
    plot.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "vdna"}):
        plot.savefig(path, metadata={"Date": None})


def summary(rows: Sequence[dict[str, Any]], alarms: Sequence[dict[str, Any]]) -> str:
    """In one line: of the cases that there are."""
    said = []
    told = [row for row in rows if row["true"] and row["power"] >= 0.5]
    for wide, which in ((False, "are mostly not wide"), (True, "are mostly wide")):
        held = [row["coverage"] for row in told if (row["wide"] > 0.5) == wide]
        if held:
            said.append(
                f"where sets are mostly told apart, {CONFIDENCE:.0%} intervals that {which} hold "
                f"the truth {min(held):.1%} to {max(held):.1%} of the time ({len(held)} cases)"
            )
    below = [row["below_high"] for row in rows]
    if below:
        said.append(f"the truth is below their upper end at least {min(below):.1%} of the time")
    whole = [row["false_alarms"] for row in alarms if "split" not in row["images"]]
    if whole:
        said.append(f"at {LEVEL:.0%}, false alarms are {min(whole):.1%} to {max(whole):.1%}")
    for level in TAILS:
        rates = [row["tails"][level] for row in alarms if "split" not in row["images"]]
        if rates:
            said.append(f"at {level:.1%} {min(rates):.2%} to {max(rates):.2%}")
    return "; ".join(said)


def chosen(cases: Sequence[Case], pattern: re.Pattern[str] | None) -> list[Case]:
    """Those named so: "brighter 1000x1000"."""
    names = (f"{which} {a}x{b}" for which, a, b in cases)
    named = zip(cases, names, strict=True)
    return [case for case, name in named if pattern is None or pattern.search(name)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000, help="of each pool")
    parser.add_argument("--only", type=re.compile, help="cases, as 'brighter 1000x1000'")
    parser.add_argument("--replicates", type=int, default=1000, help="of each case of estimates")
    parser.add_argument("--nulls", type=int, default=10_000, help="of each case of false alarms")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a folder for statistics.json and the figure")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    arguments = parser.parse_args()
    estimates, nulls = (chosen(cases, arguments.only) for cases in (ESTIMATES, NULLS))
    if not estimates and not nulls:
        every = sorted({f"{which} {a}x{b}" for which, a, b in (*ESTIMATES, *NULLS)})
        parser.error(f"--only {arguments.only.pattern!r} matches none of: {'; '.join(every)}")
    pools = {name: pool(name, arguments.images, arguments.cache) for name in POOLS}
    pools[MOVED] = moved(pools["photos"])
    alarms = false_alarms(pools["photos"], arguments.nulls, arguments.seed, nulls) if nulls else []
    rows = study(pools, arguments.replicates, arguments.seed, estimates) if estimates else []
    result = {"needed": needed(pools), "false_alarms": alarms, "estimates": rows}
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(result, indent=1)
        (arguments.out / "statistics.json").write_text(text + "\n", encoding="utf-8")
        if arguments.only is None:
            figure(rows, arguments.out / "images.svg", "blocks.6.0")
    measure.emit(result, summary(rows, alarms))


if __name__ == "__main__":
    main()
