"""Which measure notices a global change of photographs, and from which strength on.

    python -m experiments.changes [--images 128] [--out DIR]

Brightness, contrast, blur and hue of crops are changed. Unchanged crops are compared with other
crops that are changed. Two things are reported.

*Rise.* The corrected EMD of every layer, and its 95% interval, between one set and another. The
other set has the same images at each strength. Reported is in how many layers the EMD never falls,
from the strength on at which the interval leaves 0. Below that strength, a change may make up for
chance differences of the two sets, or make them larger. Also reported is the EMD of the images
against themselves, changed, where nothing is sampled, and its rank correlation with the strength.

*Notice.* Distances of different kinds have no common unit, so each has a threshold of its own, in
each layer. Twice as many unchanged crops are dealt into two halves, 200 times. The threshold is
what 95% of these deals stay below. Then one half is changed, in 40 such deals. A measure notices a
strength if at least 80% of the deals are above its threshold, at that strength and at all greater
ones. These are measured in the same layers, on the same images:

    EMD     of neurons' distributions over images and positions, the mean over neurons
    FD      Fréchet distance of the Gaussians of spatially averaged features, as FID is
    cosine  1 - the cosine of the mean spatially averaged features

`all` is the mean over all neurons for EMD. For FD it is the mean over layers, as in `pipeline.fd`.
For the cosine, the features of all layers are one vector. `--out` writes all numbers as JSON, and a
figure.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import spearmanr

from benchmarks import corpora, measure
from experiments.intervals import noise_by_layer, noise_of
from experiments.observe import BINS, POINTS, Layers, Observer, Seen, emd
from experiments.statistics import crops
from pipeline.comparing import frechet, intervals

Array = NDArray[Any]
Picture = Image.Image

NULLS, DEALS = 200, 40
QUANTILE, POWER = 0.95, 0.8
FOLDS = 16
ALL = "all"
LAST = "bn2"
MEASURES = ("EMD", "FD", "cosine")


def turned(image: Picture, degrees: float) -> Picture:
    """Hue alone, in floating point: at 0 degrees nothing changes, at 360 nothing again."""
    from matplotlib.colors import hsv_to_rgb, rgb_to_hsv

    hsv = rgb_to_hsv(np.asarray(image) / 255)
    hsv[..., 0] = (hsv[..., 0] + degrees / 360) % 1
    return Image.fromarray(np.rint(hsv_to_rgb(hsv) * 255).astype(np.uint8))


CHANGES: dict[str, tuple[str, Callable[[Picture, float], Picture], tuple[float, ...]]] = {
    "brightness": (
        "times (1 + …)",
        lambda image, by: ImageEnhance.Brightness(image).enhance(1 + by),
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
    ),
    "contrast": (
        "times (1 + …)",
        lambda image, by: ImageEnhance.Contrast(image).enhance(1 + by),
        (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28),
    ),
    "blur": (
        "radius, pixels of 224",
        lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)),
        (0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.6, 3.2),
    ),
    "hue": ("degrees", turned, (1.4, 2.8, 5.6, 11.2, 22.5, 45, 90, 180)),
}
"""What the strength is of, what is done, and the strengths."""


def dealt(images: int, deals: int, seed: int) -> Array:
    """(deals, 2 images) bool: which of them are in the first half."""
    chance = np.random.default_rng(seed)
    halves = np.zeros((deals, 2 * images), bool)
    for row in halves:
        row[chance.choice(2 * images, images, replace=False)] = True
    return halves


def distances(layers: Layers, first: Seen, second: Seen, halves: Array) -> dict[str, Array]:
    """Measures each half of `first` against the rest of `second`, as (deals, layers + 1)."""
    share = halves / halves.sum(axis=1, keepdims=True)
    rest = ~halves / (~halves).sum(axis=1, keepdims=True)
    emds, cosines = [], []
    for mine in layers.slices.values():
        apart = _mixed(share, first.curves[:, mine]) - _mixed(rest, second.curves[:, mine])
        emds.append(emd(apart))
        cosines.append(cosine(share @ first.means[:, mine], rest @ second.means[:, mine]))
    frechets = np.array(
        [
            [
                gaussian_distance(first.means[half, mine], second.means[~half, mine])
                for mine in layers.slices.values()
            ]
            for half in halves
        ]
    )
    return {
        "EMD": layers.mean(np.concatenate(emds, axis=1)),
        "FD": np.column_stack([frechets, frechets.mean(axis=1)]),
        "cosine": np.column_stack([*cosines, cosine(share @ first.means, rest @ second.means)]),
    }


def _mixed(weights: Array, curves: Array) -> Array:
    """(sets, neurons, points): the weighted sums of images' curves."""
    flat = curves.reshape(len(curves), -1)
    return (weights.astype(np.float32) @ flat).reshape(len(weights), *curves.shape[1:])


def cosine(a: Array, b: Array) -> Array:
    """(deals,) of rows of features."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray(1 - (a * b).sum(axis=1) / lengths)


def gaussian_distance(a: Array, b: Array) -> float:
    """FD of the pooled features (images, neurons) of two sets."""
    return frechet(a.mean(axis=0), _root(a), b.mean(axis=0), _root(b))


def _root(x: Array) -> Array:
    """(neurons, r) with `root root^T` the covariance; r is the lesser of images and neurons."""
    centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    return centred.T if len(x) < x.shape[1] else np.asarray(np.linalg.qr(centred, mode="r")).T


def estimated(layers: Layers, first: Seen, second: Seen, half: Array) -> dict[str, Array]:
    """Returns (layers + 1) estimates for one deal, as `compare` makes them."""
    folds = np.arange(len(half) // 2) % FOLDS
    sides = []
    for seen, members in ((first, np.flatnonzero(half)), (second, np.flatnonzero(~half))):
        shares = np.zeros((FOLDS, len(half)))
        shares[folds, members] = 1
        sides.append((seen, shares, shares.sum(axis=1)))
    parts: dict[str, list[Array]] = {name: [] for name in ("emd", "halves_a", "halves_b")}
    split = (intervals.splits(FOLDS) + 1) // 2
    folds_of: list[list[Array]] = [[], []]
    for mine in layers.slices.values():
        (sums_a, n_a), (sums_b, n_b) = (
            (_mixed(shares, seen.curves[:, mine]), images) for seen, shares, images in sides
        )
        parts["emd"].append(emd(sums_a.sum(0) / n_a.sum() - sums_b.sum(0) / n_b.sum()))
        parts["halves_a"].append(emd(_halves(split, sums_a, n_a)))
        parts["halves_b"].append(emd(_halves(split, sums_b, n_b)))
        for held, sums, images in zip(folds_of, (sums_a, sums_b), (n_a, n_b), strict=True):
            held.append(sums / images[:, None, None])
    by_layer = {name: layers.mean(np.concatenate(of, axis=-1)) for name, of in parts.items()}
    (_, _, n_a), (_, _, n_b) = sides
    one, other = (
        noise_of(np.concatenate(held, axis=1), images)
        for held, images in zip(folds_of, (n_a, n_b), strict=True)
    )
    noise = noise_by_layer(one, other, layers.widths, BINS / POINTS)
    found = intervals.estimate(by_layer["emd"], *noise, FOLDS, FOLDS)
    floor = intervals.floor(by_layer["halves_a"].T, n_a, by_layer["halves_b"].T, n_b)
    return {
        "emd": by_layer["emd"],
        "corrected": found.emd_corrected,
        "low": found.low,
        "high": found.high,
        "floor": floor,
    }


def _halves(split: Array, sums: Array, images: Array) -> Array:
    """(splits, neurons, points): the difference of the two sides of each split of the folds."""
    flat = sums.reshape(len(sums), -1)
    one = (split @ flat) / (split @ images)[:, None]
    other = ((1 - split) @ flat) / ((1 - split) @ images)[:, None]
    return np.asarray((one - other).reshape(-1, *sums.shape[1:]))


def noticed(power: Sequence[float], strengths: Sequence[float]) -> float | None:
    """The least strength from which on `POWER` is reached throughout; None for never."""
    found = None
    for share, strength in zip(reversed(power), reversed(strengths), strict=True):
        if share < POWER:
            break
        found = strength
    return found


def risen(corrected: Array, low: Array) -> bool | None:
    """Whether it never falls once the interval has left 0; None where it never does."""
    above = np.flatnonzero(low > 0)
    return bool((np.diff(corrected[above[0] :]) >= 0).all()) if len(above) else None


def study(
    images: int, folder: Path, *, nulls: int = NULLS, deals: int = DEALS, seed: int = 1
) -> dict[str, Any]:
    observer = Observer()
    layers = observer.layers
    names = [*layers.names, ALL]
    pictures = [Image.fromarray(pixels) for _, pixels in crops(folder, 2 * images, 1.0, seed)]

    def changed(change: Callable[[Picture, float], Picture], strength: float, name: str) -> Seen:
        return observer.see(
            [lambda p=p: np.asarray(change(p, strength)) for p in pictures],
            f"{name} {strength:g}",
        )

    plain = observer.see([lambda p=p: np.asarray(p) for p in pictures], "unchanged")
    null = distances(layers, plain, plain, dealt(images, nulls, seed + 1))
    threshold = {of: np.quantile(null[of], QUANTILE, axis=0) for of in MEASURES}
    halves = dealt(images, deals, seed + 2)
    result: dict[str, Any] = {
        "images": images,
        "layers": names,
        "nulls": nulls,
        "deals": deals,
        "threshold": {of: threshold[of].tolist() for of in MEASURES},
        "changes": {},
    }
    unchanged = estimated(layers, plain, plain, halves[0])
    for name, (unit, change, strengths) in CHANGES.items():
        rise, paired = [unchanged], [np.zeros(len(names))]
        ratio: dict[str, list[Array]] = {of: [] for of in MEASURES}
        power: dict[str, list[Array]] = {of: [] for of in MEASURES}
        for strength in strengths:
            seen = changed(change, strength, name)
            rise.append(estimated(layers, plain, seen, halves[0]))
            paired.append(layers.mean(emd((seen.curves - plain.curves).mean(axis=0))))
            for of, values in distances(layers, plain, seen, halves).items():
                ratio[of].append(np.median(values, axis=0) / threshold[of])
                power[of].append((values > threshold[of]).mean(axis=0))
        corrected, low = (np.array([row[key] for row in rise]) for key in ("corrected", "low"))
        result["changes"][name] = {
            "unit": unit,
            "strengths": list(strengths),
            "rise": {key: [row[key].tolist() for row in rise] for key in rise[0]},
            "paired": np.array(paired).tolist(),
            "spearman": {
                layer: float(spearmanr(range(len(paired)), of_layer)[0])
                for layer, of_layer in zip(names, np.array(paired).T, strict=True)
            },
            "rises": {
                layer: risen(*of_layer)
                for layer, *of_layer in zip(names, corrected.T, low.T, strict=True)
            },
            "ratio": {of: np.array(ratio[of]).tolist() for of in MEASURES},
            "power": {of: np.array(power[of]).tolist() for of in MEASURES},
            "noticed": {
                of: {
                    layer: noticed([float(row[at]) for row in power[of]], strengths)
                    for at, layer in enumerate(names)
                }
                for of in MEASURES
            },
        }
    return result


def table(result: dict[str, Any]) -> str:
    """For people: of each change, from which strength on each measure notices it."""
    shown = ("bn1", "blocks.2.1", "blocks.4.2", "blocks.6.0", LAST, ALL)
    lines = [f"{'noticed from':24}" + "".join(f"{layer:>12}" for layer in shown)]
    for name, of_change in result["changes"].items():
        for of in MEASURES:
            row = of_change["noticed"][of]
            values = ["never" if row[layer] is None else f"{row[layer]:g}" for layer in shown]
            lines.append(f"{name + ', ' + of:24}" + "".join(f"{value:>12}" for value in values))
        rises = list(of_change["rises"].values())
        rho = of_change["spearman"].values()
        lines.append(
            f"    corrected EMD never falls once seen in {rises.count(True)} of "
            f"{len(rises) - rises.count(None)} planes; of the same images, EMD rises throughout in "
            f"{sum(value > 0.9999 for value in rho)} of {len(rho)}, least rank correlation "
            f"{min(rho):.2f}"
        )
    return "\n".join(lines)


COLOURS = {"EMD": "#0072b2", "FD": "#d55e00", "cosine": "#009e73"}
MARKS = {"EMD": "o", "FD": "s", "cosine": "^"}


def draw(result: dict[str, Any], out: Path) -> None:
    from matplotlib import colormaps, rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    layers = result["layers"][:-1]
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    axes = figure.subplots(2, len(result["changes"]), sharex="col", sharey="row", squeeze=False)
    shade = colormaps["cividis"]
    scale = Normalize(0, 1.15 * (len(layers) - 1))  # the palest is too pale for a line
    for column, (name, of_change) in enumerate(result["changes"].items()):
        strengths = of_change["strengths"]
        top, bottom = axes[0, column], axes[1, column]
        for at in range(len(layers)):
            rows = [row[at] for row in of_change["rise"]["corrected"][1:]]
            top.plot(strengths, rows, color=shade(scale(at)), linewidth=1)
        last = {key: [row[-1] for row in rows[1:]] for key, rows in of_change["rise"].items()}
        top.fill_between(strengths, last["low"], last["high"], color="#d55e00", alpha=0.25)
        top.plot(strengths, last["corrected"], color="#d55e00", lw=2, label="all, 95% interval")
        top.axhline(last["floor"][0], color="0.3", ls=":", lw=1, label="floor of all")
        top.set_title(name)
        top.set(xscale="log", ylim=(0, None))
        for of in MEASURES:
            for layer, style in ((LAST, "-"), (ALL, "--")):
                at = result["layers"].index(layer)
                bottom.plot(
                    strengths,
                    [row[at] for row in of_change["ratio"][of]],
                    style,
                    marker=MARKS[of],
                    markersize=4,
                    color=COLOURS[of],
                    label=f"{of}, {layer}",
                )
        bottom.axhline(1, color="black", lw=0.8)
        bottom.set(xscale="log", yscale="log", xlabel=f"{name}: {of_change['unit']}")
        bottom.xaxis.set_minor_formatter(NullFormatter())
        for axis in (bottom.xaxis, bottom.yaxis):
            axis.set_major_formatter(FormatStrFormatter("%g"))
        bottom.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bottom.yaxis.set_minor_formatter(NullFormatter())
    axes[0, 0].set_ylabel("corrected EMD of each layer, bins")
    axes[1, 0].set_ylabel("distance / 95% of its null")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    axes[1, 0].legend(fontsize=8, loc="upper left", ncols=2)
    bar = figure.colorbar(ScalarMappable(scale, shade), ax=axes[0, :], shrink=0.9)
    bar.set_ticks([0, len(layers) - 1], labels=[layers[0], layers[-1]])
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vdna"}):
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128, help="on either side")
    parser.add_argument("--out", type=Path, help="a folder for changes.json and changes.svg")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    arguments = parser.parse_args()
    result = study(arguments.images, corpora.corpus("photos", arguments.cache))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "changes.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, arguments.out / "changes.svg")
    measure.emit(result, table(result))


if __name__ == "__main__":
    main()
