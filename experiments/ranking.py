"""Finds the images of a dataset among others: how well does each way of ranking order a pool?

    python -m experiments.ranking [--images 120] [--out DIR]

There are seven kinds of pictures: photographs, textures of a game, wallpapers, cut-out photographs,
3D renders, cartoons and painted portraits. Half of each kind is a dataset. The other halves make
the pool. For each dataset, the pool is ordered by the distance of each picture to the dataset, and
the average precision (AP) tells how well the dataset's own kind comes first. Nothing is fitted on
the pool, unless a row says so. The ways of ranking:

- *EMD*: the mean over neurons of the distance of the picture's own DNA to the dataset's.
- *EMD, corrected*: a picture has few activations, and their noise makes its distance larger. The
  expected distance of so few activations to their own distribution is taken away.
- *EMD, layers alike*: each layer has the same say, however many neurons it has.
- *EMD, layers scaled*: each layer is divided by the mean distance of the dataset's own pictures to
  the others of the dataset.
- *EMD, layers fitted*: weights of layers by a logistic regression, which tells the dataset's own
  pictures from those of the other datasets, by their distances in each layer to the DNA of the
  other half of the dataset, in both directions.
- *EMD, held against all*: three quarters of the distance to a background are taken away, as
  `vdna rank` does. The background is the DNA of all datasets, each with the same say.
- *EMD, less all*: the whole of the distance to that background is taken away.
- *likelihood*: the mean logarithm of the dataset's histogram at the picture's activations.
- *likelihood ratio*: the same, less that of the background.
- *cosine*, *Mahalanobis* and *nearest pictures* (the mean distance to the 5 nearest of the dataset)
  of the pooled features of the last layer, or of all layers.

"The pool" takes the pool itself as the background, which needs no other dataset. "Odd pictures"
are found the other way round: a tenth as many of other kinds are put among pictures of the
dataset's kind, the background is that mixture, and the AP tells how well the farthest are odd.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import corpora, measure
from experiments.changes import LAST
from experiments.observe import BINS, POINTS, Layers, Observer, Seen, spread
from experiments.realism import KINDS, look, to_set
from experiments.retrieval import average_precision
from pipeline.explaining.image_distances import BACKGROUND_SHARE

Array = NDArray[Any]

SIZES = (20, 120)
"""Pictures of a dataset. The largest is what `--images` has as its default."""

TIMES = 3
"""How often a dataset is drawn, where it is smaller than what is at hand."""

SMOOTHING = 0.5
"""Activations that are added to each bin, as a bin without any has no logarithm."""

NEAREST = 5

OF_OTHERS = 20
"""Pictures of each other dataset that the weights of layers are fitted to."""

HELD = "EMD, held against all"

SHARES = (0, 0.25, 0.5, 0.75, 0.9, 1, 1.1)

ODD = 10
"""One odd picture is put among so many of a dataset's kind."""

BOOTSTRAPS = 1000


def shares(curves: Array) -> Array:
    """(..., POINTS) cumulative distributions -> (..., POINTS) shares of each bin."""
    return np.diff(curves, axis=-1, prepend=np.float32(0))


def noise_of(curve: Array, positions: Array) -> Array:
    """Returns the expected EMD of a few draws to what they are drawn from.

    At each bin, the share of draws below it has the standard deviation sqrt(F (1 - F) / draws), and
    is about normal, so its expected absolute deviation is sqrt(2 / pi) of that.

    Args:
        curve: (neurons, POINTS) cumulative distributions F.
        positions: (neurons,) draws.

    Returns:
        (neurons,) distances, in bins.
    """
    variance = np.clip(curve * (1 - curve), 0, None) / positions[:, None]
    return np.asarray(np.sqrt(2 / np.pi * variance).sum(axis=-1) * (BINS / POINTS))


@dataclass(frozen=True)
class Background:
    """What a dataset is told from: the DNA of many pictures, and each pool picture's EMD to it."""

    log_shares: Array
    distances: Array

    @classmethod
    def of(cls, curves: Array, pool: Seen, images: int) -> Background:
        each = to_set(pool, curves)
        return cls(log_of(curves, images), each.mean(axis=1))


def log_of(curve: Array, images: int) -> Array:
    """(neurons, POINTS) logarithms of smoothed shares of a DNA of some images."""
    counts = np.clip(shares(curve), 0, None) * images + SMOOTHING / POINTS
    return np.asarray(np.log(counts / counts.sum(axis=-1, keepdims=True)), np.float32)


class Features:
    """Pooled features of a pool and of datasets, standardised by a dataset's own."""

    def __init__(self, pool: Array) -> None:
        self._pool = pool

    def to(self, some: Array) -> dict[str, Array]:
        from sklearn.covariance import LedoitWolf

        centre, scale = some.mean(axis=0), spread(some)
        length = np.linalg.norm(self._pool, axis=1) * np.linalg.norm(centre)
        found = {"cosine": 1 - self._pool @ centre / length}
        x, y = (some - centre) / scale, (self._pool - centre) / scale
        squares = np.square(y).sum(axis=1)[:, None] + np.square(x).sum(axis=1) - 2 * y @ x.T
        nearest = np.sort(np.sqrt(np.clip(squares, 0, None)), axis=1)[:, :NEAREST]
        found["nearest pictures"] = nearest.mean(axis=1)
        if x.shape[1] <= 2000:
            found["Mahalanobis"] = LedoitWolf().fit(x).mahalanobis(y)
        return found


@dataclass(frozen=True)
class Pool:
    """The pictures that are ordered, and what does not depend on the dataset."""

    seen: Seen
    layers: Layers
    positions: Array
    itself: Background

    @cached_property
    def noise(self) -> Array:
        return np.array([noise_of(curve, self.positions).mean() for curve in self.seen.curves])

    def scores(
        self, dataset: Seen, others: Sequence[Seen], everything: Background
    ) -> dict[str, Array]:
        """Ranks the pool: what is small is near. `others` are pictures of the other datasets."""
        curve = dataset.curves.mean(axis=0)
        each = to_set(self.seen, curve)
        plain = each.mean(axis=1)
        by_layer = self.layers.mean(each)[:, :-1]
        own = self.layers.mean(others_of(dataset))[:, :-1].mean(axis=0)
        logs = log_of(curve, len(dataset.curves))
        found = {
            "EMD": plain,
            "EMD, corrected": plain - self.noise,
            "EMD, layers alike": by_layer.mean(axis=1),
            "EMD, layers scaled": (by_layer / own).mean(axis=1),
            "EMD, layers fitted": by_layer @ self.fitted_layers(dataset, others),
            HELD: plain - BACKGROUND_SHARE * everything.distances,
            "EMD, less all": plain - everything.distances,
            "EMD, held against the pool": plain - BACKGROUND_SHARE * self.itself.distances,
            "EMD, less the pool": plain - self.itself.distances,
            "likelihood": -self._mean_of(logs),
            "likelihood ratio, all": -self._mean_of(logs - everything.log_shares),
            "likelihood ratio, the pool": -self._mean_of(logs - self.itself.log_shares),
        }
        last = self.layers.slices[LAST]
        for where, at in (("last layer", last), ("all layers", slice(None))):
            features = Features(self.seen.means[:, at]).to(dataset.means[:, at])
            found |= {f"{name}, {where}": values for name, values in features.items()}
        return found

    def fitted_layers(self, dataset: Seen, others: Sequence[Seen]) -> Array:
        """(layers,) weights that tell the dataset's pictures from those of the others."""
        from sklearn.linear_model import LogisticRegression

        rows, labels = [], []
        for half in (0, 1):
            curve = dataset.curves[1 - half :: 2].mean(axis=0)
            for label, some in ((0, [dataset.curves[half::2]]), (1, [o.curves for o in others])):
                for curves in some:
                    each = to_set(Seen(curves, curves), curve)
                    rows.append(self.layers.mean(each)[:, :-1])
                    labels += [label] * len(curves)
        x = np.concatenate(rows)
        scale = spread(x)
        model = LogisticRegression(class_weight="balanced", max_iter=5000).fit(x / scale, labels)
        return np.asarray(model.coef_[0] / scale)

    def _mean_of(self, logs: Array) -> Array:
        """(images,) the mean of a table (neurons, POINTS) at each picture's activations."""
        return np.array([float((shares(own) * logs).sum()) for own in self.seen.curves]) / len(logs)


def others_of(dataset: Seen) -> Array:
    """(images, neurons): each picture's EMD to the others of its dataset."""
    images, total = len(dataset.curves), dataset.curves.sum(axis=0)
    return np.stack(
        [
            np.abs(own - (total - own) / (images - 1)).sum(axis=-1) * (BINS / POINTS)
            for own in dataset.curves
        ]
    )


def interval(rows: Array) -> tuple[float, float]:
    """95% of bootstrap samples of kinds; (kinds,) values."""
    chance = np.random.default_rng(0)
    drawn = rows[chance.integers(len(rows), size=(BOOTSTRAPS, len(rows)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def joined(parts: Sequence[Seen]) -> Seen:
    return Seen(
        np.concatenate([seen.curves for seen in parts]),
        np.concatenate([seen.means for seen in parts]),
    )


def study(images: int, cache: Path, *, sizes: Sequence[int], times: int = TIMES) -> dict[str, Any]:
    observer = Observer()
    halves = {name: look(observer, name, kind, images, cache) for name, kind in KINDS.items()}
    seen = {name: (fitted.seen, held.seen) for name, (fitted, held) in halves.items()}
    return measured(seen, observer.layers, observer.positions, sizes, times)


def measured(
    halves: Mapping[str, tuple[Seen, Seen]],
    layers: Layers,
    positions: Array,
    sizes: Sequence[int],
    times: int,
) -> dict[str, Any]:
    seen = joined([held for _, held in halves.values()])
    labels = np.repeat(np.array(list(halves)), [len(held.curves) for _, held in halves.values()])

    def against(kind: str, dataset: Seen) -> Background:
        """All datasets in one: this one, and those of the other kinds as they are."""
        each = [dataset, *(of for name, (of, _) in halves.items() if name != kind)]
        curves = np.mean([one.curves.mean(axis=0) for one in each], axis=0)
        return Background.of(curves, seen, sum(len(one.curves) for one in each))

    pool = Pool(
        seen,
        layers,
        positions,
        Background.of(seen.curves.mean(axis=0), seen, len(seen.curves)),
    )
    chance = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for size in sizes:
        precision: dict[str, dict[str, list[float]]] = {}
        for kind, (fitted, _) in halves.items():
            have = len(fitted.curves)
            for _ in range(times if size < have else 1):
                some = chance.choice(have, min(size, have), replace=False)
                others = [
                    Seen(of.curves[:OF_OTHERS], of.means[:OF_OTHERS])
                    for name, (of, _) in halves.items()
                    if name != kind
                ]
                dataset = Seen(fitted.curves[some], fitted.means[some])
                scores = pool.scores(dataset, others, against(kind, dataset))
                for way, values in scores.items():
                    ap = average_precision(values, labels == kind)
                    precision.setdefault(way, {}).setdefault(kind, []).append(ap)
        of_kinds = {
            way: np.array([np.mean(of) for of in kinds.values()])
            for way, kinds in precision.items()
        }
        found[str(size)] = {
            way: {
                "ap": float(values.mean()),
                "interval": interval(values),
                "above_emd": interval(values - of_kinds["EMD"]),
                "of_kinds": dict(zip(halves, values.tolist(), strict=True)),
            }
            for way, values in of_kinds.items()
        }
    return {
        "pool": len(labels),
        "shares": of_shares(halves, pool, labels),
        "odd": odd(halves, pool, labels, times),
        "images": {kind: len(fitted.curves) for kind, (fitted, _) in halves.items()},
        "sizes": found,
    }


def of_shares(
    halves: Mapping[str, tuple[Seen, Seen]], pool: Pool, labels: Array
) -> dict[str, float]:
    """Returns the mean AP by the share of the distance to the pool that is taken away."""
    found: dict[str, list[float]] = {}
    for kind, (fitted, _) in halves.items():
        plain = to_set(pool.seen, fitted.curves.mean(axis=0)).mean(axis=1)
        for share in SHARES:
            ap = average_precision(plain - share * pool.itself.distances, labels == kind)
            found.setdefault(str(share), []).append(ap)
    return {share: float(np.mean(values)) for share, values in found.items()}


def odd(
    halves: Mapping[str, tuple[Seen, Seen]], pool: Pool, labels: Array, times: int
) -> dict[str, float]:
    """Returns the mean AP of odd pictures among a dataset's kind, by the farthest of it."""
    chance = np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    for kind, (fitted, _) in halves.items():
        curve, own = fitted.curves.mean(axis=0), np.flatnonzero(labels == kind)
        for _ in range(times):
            few = chance.choice(
                np.flatnonzero(labels != kind), max(1, len(own) // ODD), replace=False
            )
            some = np.concatenate([own, few])
            seen = Seen(pool.seen.curves[some], pool.seen.means[some])
            plain = to_set(seen, curve).mean(axis=1)
            mixture = to_set(seen, seen.curves.mean(axis=0)).mean(axis=1)
            for way, share in (("EMD", 0.0), ("held", BACKGROUND_SHARE), ("less", 1.0)):
                ap = average_precision(share * mixture - plain, labels[some] != kind)
                found.setdefault(way, []).append(ap)
    return {way: float(np.mean(values)) for way, values in found.items()}


def table(result: dict[str, Any]) -> str:
    lines = []
    for size, ways in result["sizes"].items():
        kinds = list(next(iter(ways.values()))["of_kinds"])
        lines.append(
            f"{f'AP, {size} pictures':36}{'mean':>6}{'':14}"
            + "".join(f"{k[:10]:>12}" for k in kinds)
        )
        for way, row in sorted(ways.items(), key=lambda item: -item[1]["ap"]):
            low, high = row["interval"]
            lines.append(
                f"{way:36}{row['ap']:6.2f} ({low:.2f}, {high:.2f})"
                + "".join(f"{row['of_kinds'][kind]:12.2f}" for kind in kinds)
            )
    for what, of in (
        ("by share of the distance to the pool", "shares"),
        ("of odd pictures", "odd"),
    ):
        told = ", ".join(f"{way} {ap:.2f}" for way, ap in result[of].items())
        lines.append(f"AP {what}: {told}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=120, help="of each half of a kind, at most")
    parser.add_argument("--out", type=Path, help="a folder for ranking.json")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    arguments = parser.parse_args()
    result = study(arguments.images, arguments.cache, sizes=SIZES)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "ranking.json").write_text(json.dumps(result, indent=1) + "\n")
    measure.emit(result, table(result))


if __name__ == "__main__":
    main()
