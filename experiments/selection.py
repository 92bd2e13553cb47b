"""Which dataset to train on: does the nearest one transfer best?

    python -m experiments.selection [--each 48] [--splits 5] [--out DIR]

The paper orders the datasets of MSeg by their distance to a target, and relates this order to how
well networks that were trained on them do there. This script does what two cores can, with real
images that share labels. The images are cut-out photographs of six classes
(`tuxpaint-stamps-default`, its folders: birds, mammals, clothes, household, plants, vehicles). Each
is shown in 18 domains: before five backgrounds (white, black, grey, crops of photographs, textures
of a game), and under thirteen changes of light, colour and sharpness. Every domain is a candidate
and a target in turn. The cut-outs are halved at random, `splits` times. On one half, a logistic
regression learns a candidate's pooled features of the last layer. It is tested on the other half,
in the target's domain: the same classes, but never the same object. No distance sees a label of the
target. Candidates and targets are of one size.

For each distance, two numbers are reported. One is the rank correlation, over candidates, of
nearness and balanced accuracy: the mean over targets and splits, with a 95% interval by bootstrap
over targets. The other is regret: how much accuracy is lost by taking the nearest candidate and not
the best, beside that of a candidate taken at random. A target's own domain is not a candidate. The
distances are:

    EMD of the last layer, of the last block, of all neurons alike
    EMD, class lens: all neurons, each weighed by the mean EMD of one class against all, over
        classes and candidates, on the halves that are learnt from
    FD, cosine: of the same pooled features as are learnt from

Limits: the domains are changes of one source, which is smaller and tidier than datasets of
different origin. There is only one set of labels, and only the linear layer is trained. Targets
share their candidates, so the interval is too narrow where these are what matters.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from scipy.stats import spearmanr

from benchmarks import corpora, measure
from experiments.changes import LAST, cosine, gaussian_distance
from experiments.lenses import blurred, compressed, enhanced, foggy, hue, noisy, pixelated, tinted
from experiments.observe import POINTS, Observer, Seen, emd, spread
from experiments.statistics import crops

Array = NDArray[Any]
Picture = Image.Image
Change = Callable[[Picture, np.random.Generator], Picture]

CLASSES: dict[str, tuple[str, ...]] = {
    "birds": ("animals/birds",),
    "mammals": ("animals/mammals", "animals/marsupials"),
    "clothes": ("clothes",),
    "household": ("household",),
    "plants": ("plants", "food/fruit", "food/vegetables"),
    "vehicles": ("vehicles", "military/vehicles"),
}
LEAST_SIDE = 64
BLOCK = "blocks.6.0"
DISTANCES = ("EMD, last layer", "EMD, last block", "EMD, all", "EMD, class lens", "FD", "cosine")
BOOTSTRAPS = 2000
REGULARISATION = 0.01


@dataclass(frozen=True)
class Domain:
    background: str
    change: Change


def _same(image: Picture, chance: np.random.Generator) -> Picture:
    return image


DOMAINS: dict[str, Domain] = {
    "white": Domain("white", _same),
    "black": Domain("black", _same),
    "grey": Domain("grey", _same),
    "photos": Domain("photos", _same),
    "textures": Domain("textures", _same),
    "dark": Domain("white", enhanced(ImageEnhance.Brightness, 0.35)),
    "contrast": Domain("grey", enhanced(ImageEnhance.Contrast, 2.5)),
    "fog": Domain("grey", foggy(0.6)),
    "blur": Domain("white", blurred(3)),
    "noise": Domain("white", noisy(40)),
    "jpeg": Domain("white", compressed(5)),
    "pixelated": Domain("white", pixelated(7)),
    "no colour": Domain("white", enhanced(ImageEnhance.Color, 0.0)),
    "hue 90": Domain("white", hue(90)),
    "warm": Domain("white", tinted(1.3, 0.6)),
    "photos, blur": Domain("photos", blurred(3)),
    "photos, dark": Domain("photos", enhanced(ImageEnhance.Brightness, 0.35)),
    "textures, no colour": Domain("textures", enhanced(ImageEnhance.Color, 0.0)),
}
PLAIN = {"white": (255,) * 3, "black": (0,) * 3, "grey": (128,) * 3}


def cutouts(folder: Path, each: int, seed: int) -> tuple[list[Picture], Array]:
    """Up to so many of each class, with transparency, and the number of the class of each."""
    chance = np.random.default_rng(seed)
    pictures, labels = [], []
    for number, places in enumerate(CLASSES.values()):
        paths = []
        for place in places:
            for path in sorted((folder / place).rglob("*.png")):
                with Image.open(path) as image:
                    large = max(image.size) >= LEAST_SIDE
                if large and not {"cartoon", "plastic", "toys"} & set(path.parts):
                    paths.append(path)
        chosen = chance.permutation(len(paths))[:each]
        pictures += [Image.open(paths[at]).convert("RGBA") for at in sorted(chosen)]
        labels += [number] * len(chosen)
    return pictures, np.array(labels)


def shown(cutout: Picture, background: Picture, change: Change, seed: int) -> Array:
    """A domain's pixels of a cut-out, in the middle of 224 x 224."""
    scale = 200 / max(cutout.size)
    size = [max(1, round(side * scale)) for side in cutout.size]
    drawn = cutout.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    whole = background.copy()
    whole.paste(drawn, ((224 - size[0]) // 2, (224 - size[1]) // 2), drawn)
    return np.asarray(change(whole, np.random.default_rng(seed)))


def backgrounds(name: str, count: int, cache: Path, seed: int) -> list[Picture]:
    if name in PLAIN:
        return [Image.new("RGB", (224, 224), PLAIN[name])] * count
    folder = corpora.corpus(name, cache)
    return [Image.fromarray(pixels) for _, pixels in crops(folder, count, 1.0, seed)]


def halves(labels: Array, splits: int, seed: int) -> Array:
    """(splits, images) bool: half of each class to learn from."""
    chance = np.random.default_rng(seed)
    learnt = np.zeros((splits, len(labels)), bool)
    for row in learnt:
        for number in np.unique(labels):
            mine = chance.permutation(np.flatnonzero(labels == number))
            row[mine[: len(mine) // 2]] = True
    return learnt


@dataclass(frozen=True)
class Shown:
    """A domain, of each split: `learnt` and `tested` (splits, neurons, points), the halves' DNAs;
    `between` (neurons,): the mean EMD of one class against all, on what is learnt. `features`
    (images, C): pooled, of the last layer.
    """

    learnt: Array
    tested: Array
    between: Array
    features: Array

    @classmethod
    def of(cls, seen: Seen, labels: Array, learnt: Array, last: slice) -> Shown:
        flat = seen.curves.reshape(len(labels), -1)

        def mixed(members: Array) -> Array:
            shares = (members / members.sum(axis=1, keepdims=True)).astype(np.float32)
            return (shares @ flat).reshape(len(members), -1, POINTS)

        one = mixed(learnt)
        apart = [
            emd(mixed(learnt & (labels == number)) - one).mean(axis=0)
            for number in np.unique(labels)
        ]
        return cls(one, mixed(~learnt), np.mean(apart, axis=0), seen.means[:, last])


def transfer(shown: list[Shown], labels: Array, learnt: Array) -> Array:
    """(splits, candidates, targets) balanced accuracy."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    found = np.empty((len(learnt), len(shown), len(shown)))
    for split, half in enumerate(learnt):
        for i, candidate in enumerate(shown):
            x = candidate.features[half]
            centre, scale = x.mean(axis=0), spread(x)
            model = LogisticRegression(
                C=REGULARISATION, class_weight="balanced", max_iter=5000
            ).fit((x - centre) / scale, labels[half])
            for j, target in enumerate(shown):
                told = model.predict((target.features[~half] - centre) / scale)
                found[split, i, j] = balanced_accuracy_score(labels[~half], told)
    return found


def apart(
    shown: list[Shown], learnt: Array, last: slice, block: slice, lens: Array
) -> dict[str, Array]:
    """(splits, candidates, targets) of each distance."""
    found = {name: np.empty((len(learnt), len(shown), len(shown))) for name in DISTANCES}
    for split, half in enumerate(learnt):
        for i, a in enumerate(shown):
            for j, b in enumerate(shown):
                each = emd(a.learnt[split] - b.tested[split])
                x, y = a.features[half], b.features[~half]
                values = (
                    each[last].mean(),
                    each[block].mean(),
                    each.mean(),
                    each @ lens,
                    gaussian_distance(x, y),
                    cosine(x.mean(axis=0)[None], y.mean(axis=0)[None])[0],
                )
                for name, value in zip(DISTANCES, values, strict=True):
                    found[name][split, i, j] = value
    return found


def agreement(distance: Array, accuracy: Array) -> tuple[Array, Array]:
    """Returns, for each target, the rank correlation of nearness with accuracy, and the regret.

    Both are means over splits.
    """
    splits, domains, _ = distance.shape
    rho, regret = np.empty((splits, domains)), np.empty((splits, domains))
    for j in range(domains):
        others = np.delete(np.arange(domains), j)
        for split in range(splits):
            near, right = distance[split, others, j], accuracy[split, others, j]
            # Of candidates that are all as good, none is better placed.
            rho[split, j] = spearmanr(-near, right)[0] if np.ptp(right) > 0 else 0.0
            regret[split, j] = right.max() - right[near.argmin()]
    return rho.mean(axis=0), regret.mean(axis=0)


def interval(values: Array, seed: int) -> tuple[float, float]:
    """95% of the means of bootstrap samples of targets."""
    chance = np.random.default_rng(seed)
    drawn = values[chance.integers(len(values), size=(BOOTSTRAPS, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def study(each: int, splits: int, cache: Path, *, seed: int = 1) -> dict[str, Any]:
    observer = Observer()
    last, block = (observer.layers.slices[name] for name in (LAST, BLOCK))
    pictures, labels = cutouts(corpora.corpus("stamps", cache), each, seed)
    learnt = halves(labels, splits, seed)
    domains = []
    for number, (name, domain) in enumerate(DOMAINS.items()):
        behind = backgrounds(domain.background, len(pictures), cache, seed + number)
        seen = observer.see(
            [
                lambda p=p, b=b, at=at, change=domain.change: shown(p, b, change, at)
                for at, (p, b) in enumerate(zip(pictures, behind, strict=True))
            ],
            name,
        )
        domains.append(Shown.of(seen, labels, learnt, last))
    lens = np.mean([of.between for of in domains], axis=0)
    accuracy = transfer(domains, labels, learnt)
    distances = apart(domains, learnt, last, block, lens / lens.sum())
    names = list(DOMAINS)
    own = np.diagonal(accuracy, axis1=1, axis2=2)
    others = ~np.eye(len(names), dtype=bool)
    right = np.where(others, accuracy, np.nan)
    result: dict[str, Any] = {
        "images": len(labels),
        "of_class": dict(zip(CLASSES, np.bincount(labels).tolist(), strict=True)),
        "domains": names,
        "splits": splits,
        "accuracy": accuracy.mean(axis=0).round(4).tolist(),
        "own_domain": float(own.mean()),
        "best_other": float(np.nanmax(right, axis=1).mean()),
        "random_other": float(np.nanmean(right)),
        "random_regret": float((np.nanmax(right, axis=1) - np.nanmean(right, axis=1)).mean()),
        "distances": {},
    }
    plain = {}
    for name in DISTANCES:
        rho, regret = agreement(distances[name], accuracy)
        plain[name] = rho
        result["distances"][name] = {
            "distance": distances[name].mean(axis=0).tolist(),
            "rho": float(rho.mean()),
            "rho_interval": interval(rho, seed),
            "rho_of_targets": rho.round(4).tolist(),
            "regret": float(regret.mean()),
            "regret_interval": interval(regret, seed),
        }
    result["differences"] = {
        f"{name} - FD": {
            "rho": float((plain[name] - plain["FD"]).mean()),
            "interval": interval(plain[name] - plain["FD"], seed),
        }
        for name in DISTANCES
        if name != "FD"
    }
    return result


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':18}{'rank correlation':>26}{'regret, accuracy':>26}"]
    for name, of in result["distances"].items():
        (low, high), (least, most) = of["rho_interval"], of["regret_interval"]
        lines.append(
            f"{name:18}{of['rho']:>9.2f} ({low:5.2f} to {high:4.2f})"
            f"{of['regret']:>11.1%} ({least:.1%} to {most:.1%})"
        )
    lines.append(
        f"{'taken at random':18}{0:>9.2f}{result['random_regret']:>28.1%}\n"
        f"{result['images']} cut-outs, {len(result['domains'])} domains, {result['splits']} "
        f"splits; accuracy in the own domain {result['own_domain']:.1%}, from the best other "
        f"{result['best_other']:.1%}, from any other {result['random_other']:.1%}"
    )
    return "\n".join(lines)


def draw(result: dict[str, Any], out: Path) -> None:
    from matplotlib import colormaps, rc_context
    from matplotlib.figure import Figure

    names = result["domains"]
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    accuracy = np.array(result["accuracy"])
    shades = colormaps["cividis"](np.linspace(0, 0.9, len(names)))
    for axis, name in zip(axes, ("EMD, last layer", "FD"), strict=False):
        distance = np.array(result["distances"][name]["distance"])
        for j in range(len(names)):
            others = np.delete(np.arange(len(names)), j)
            axis.plot(distance[others, j], accuracy[others, j], ".", color=shades[j], ms=5)
        rho = result["distances"][name]["rho"]
        axis.set(xlabel=f"{name}: candidate to target", title=f"mean rank correlation {rho:.2f}")
    axes[0].set_ylabel("balanced accuracy on the target")
    for at, name in enumerate(reversed(DISTANCES)):
        of = result["distances"][name]
        low, high = of["rho_interval"]
        axes[2].plot(of["rho_of_targets"], [at + 0.18] * len(names), "|", color="0.6", ms=7)
        axes[2].plot([low, high], [at, at], color="#0072b2", lw=3)
        axes[2].plot(of["rho"], at, "o", color="#d55e00")
    axes[2].axvline(0, color="black", lw=0.8)
    axes[2].set_yticks(range(len(DISTANCES)), list(reversed(DISTANCES)))
    axes[2].set_xlabel("rank correlation: mean, 95% interval, each target")
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vdna"}):
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=48, help="cut-outs of a class, at most")
    parser.add_argument("--splits", type=int, default=5, help="of what is learnt and tested")
    parser.add_argument("--out", type=Path, help="a folder for selection.json and selection.svg")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    arguments = parser.parse_args()
    result = study(arguments.each, arguments.splits, arguments.cache)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "selection.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, arguments.out / "selection.svg")
    measure.emit(result, table(result))


if __name__ == "__main__":
    main()
