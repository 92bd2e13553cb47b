"""How real a picture looks: the distance of its own DNA to that of real ones, by a few neurons.

    python -m experiments.realism [--images 160] [--out DIR]

As in the paper, the neurons that best tell real from synthetic pictures are chosen. Pictures are
then ranked by the distance of their own DNA to that of the real set, through these neurons only.
Everything is chosen on one half of each set, and scored on the other half: other photographs, other
files. There are two tasks. In each, real and synthetic pictures are matched, so that neither the
frame nor the resolution tells which is which:

    scenes   crops of photographs | of a game's textures, of rendered and painted wallpapers;
             all of them shrunk to 96 pixels and brought back, and coded as JPEG
    cut-outs photographs cut out (`stamps`) | 3D renders of furniture, cartoons, painted portraits;
             all of them on white, by way of 128 pixels, and coded as JPEG

Neurons are chosen by the EMD between real and synthetic DNAs, on all synthetic sets of a task
together. For `across`, the set that is scored is left out, so its kind is new to the neurons. The
score is the area under the ROC curve (AUC) of held-out real pictures against each held-out
synthetic set. It is reported for the distance through a number of neurons and through all neurons,
and for these measures of the pooled features of the last layer:

    FD           the Fréchet distance to the real set's Gaussian; one picture has no covariance, so
                 this is the squared distance to the mean, and a constant
    Mahalanobis  to the real set's Gaussian (covariance shrunk after Ledoit and Wolf)
    cosine       to the real set's mean
    classifier   a logistic regression of real against synthetic: what could be told, given both

The first neurons and the classifier have seen synthetic pictures. All neurons, FD, Mahalanobis and
cosine have seen only real ones. The 95% intervals come from a bootstrap over pictures (over
photographs, where crops share one). For held-out renders, the rank correlation of realism with the
texture of the object is reported too. The texture is the mean local contrast inside the object, and
no network takes part in this measure. It is used because nothing says which renders carry
photographs as textures.

`--out` writes all numbers as JSON, a figure, and a sheet of the most and least real renders. The
sheet is for looking at, not for git: licences are those of `benchmarks.corpora`.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata, spearmanr

from benchmarks import corpora, measure
from experiments.changes import LAST
from experiments.observe import Observer, Seen, emd, spread

Array = NDArray[Any]
Picture = Image.Image

FEW = (5, 20, 50, 200, 1000)
MAIN = "50 neurons"
"""What the paper takes for cars; it takes 20 to 200."""
ALL = "all neurons"
OTHERS = ("FD", "Mahalanobis", "cosine", "classifier")
SCORES = (*(f"{k} neurons" for k in FEW), ALL, "last layer", *OTHERS)
BOOTSTRAPS = 1000
SCENE, OBJECT, ROOM = 96, 128, 200
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Kind:
    """A set of pictures: `corpus`, and which of its files; `real` or not; `task`."""

    task: str
    corpus: str
    real: bool
    takes: Callable[[Path], bool] = lambda path: True
    least: int = 96


def _cartoon(path: Path) -> bool:
    return "cartoon" in path.parts


def _photographed(path: Path) -> bool:
    """Tells whether it is a photograph, or a stamp of a thing (not of a sign or letter)."""
    things = {"animals", "clothes", "food", "household", "plants", "vehicles", "hobbies"}
    return not _cartoon(path) and bool(things & set(path.parts))


KINDS: dict[str, Kind] = {
    "photographs": Kind("scenes", "photos", True, least=256),
    "textures": Kind("scenes", "textures", False, least=256),
    "wallpapers": Kind("scenes", "wallpapers", False, least=256),
    "cut-outs": Kind("cut-outs", "stamps", True, _photographed),
    "renders": Kind("cut-outs", "renders", False),
    "cartoons": Kind("cut-outs", "stamps", False, _cartoon),
    "portraits": Kind("cut-outs", "portraits", False, least=256),
}
TASKS = tuple(dict.fromkeys(kind.task for kind in KINDS.values()))


def files(kind: Kind, folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and kind.takes(path):
            with Image.open(path) as image:
                if max(image.size) >= kind.least:
                    found.append(path)
    return found


def coded(image: Picture) -> Array:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(held).convert("RGB"))


def scene(path: Path, seed: int) -> Array:
    """A square crop, by way of `SCENE` pixels."""
    chance = np.random.default_rng(seed)
    with Image.open(path) as image:
        whole = image.convert("RGB")
    scale = 600 / min(whole.size)
    if scale < 1:
        whole = whole.resize((round(whole.width * scale), round(whole.height * scale)))
    side = int(max(SCENE, min(whole.size) * chance.uniform(0.5, 1)))
    side = min(side, *whole.size)
    left, top = (int(chance.integers(length - side + 1)) for length in whole.size)
    crop = whole.crop((left, top, left + side, top + side))
    small = crop.resize((SCENE, SCENE), Image.Resampling.LANCZOS)
    return coded(small.resize((224, 224), Image.Resampling.BICUBIC))


def cutout(path: Path) -> Array:
    """An object on white, by way of `OBJECT` pixels."""
    small = shrunk(path)
    scale = ROOM / max(small.size)
    drawn = small.resize(
        (max(1, round(small.width * scale)), max(1, round(small.height * scale))),
        Image.Resampling.BICUBIC,
    )
    whole = Image.new("RGB", (224, 224), (255,) * 3)
    whole.paste(drawn, ((224 - drawn.width) // 2, (224 - drawn.height) // 2), drawn)
    return coded(whole)


def shrunk(path: Path) -> Picture:
    """The object alone, transparent, of at most `OBJECT` pixels."""
    with Image.open(path) as image:
        whole = image.convert("RGBA")
    alpha = whole.getchannel("A").point(lambda value: 255 * (value > 8))
    whole = whole.crop(alpha.getbbox() or (0, 0, *whole.size))
    whole.thumbnail((OBJECT, OBJECT), Image.Resampling.LANCZOS)
    return whole


def textured(path: Path) -> float:
    """Mean contrast of neighbouring pixels, inside the object, in grey levels."""
    small = shrunk(path)
    grey = np.asarray(small.convert("L"), np.float64)
    inside = np.asarray(small.getchannel("A")) > 250
    apart = np.abs(np.diff(grey, axis=1))[inside[:, 1:] & inside[:, :-1]]
    return float(np.mean(apart)) if len(apart) else 0.0


@dataclass(frozen=True)
class Half:
    """Half of a set, with the path of each picture; several may be crops of one photograph."""

    paths: list[Path]
    seen: Seen

    @property
    def groups(self) -> Array:
        return np.unique([str(path) for path in self.paths], return_inverse=True)[1]


def look(observer: Observer, name: str, kind: Kind, images: int, cache: Path) -> list[Half]:
    """The half that is fitted on, and the half that is told of."""
    found = files(kind, corpora.corpus(kind.corpus, cache))
    chance = np.random.default_rng(list(KINDS).index(name))
    order = chance.permutation(len(found))
    halves = []
    for number, mine in enumerate((order[::2], order[1::2])):
        # Scenes are crops, and a file gives as many as are needed; a cut-out is there once.
        count = images if kind.task == "scenes" else min(images, len(mine))
        paths = [found[mine[at % len(mine)]] for at in range(count)]
        pictures = [
            (lambda p=p, seed=2 * at + number: scene(p, seed))
            if kind.task == "scenes"
            else (lambda p=p: cutout(p))
            for at, p in enumerate(paths)
        ]
        half = ("fitted on", "held out")[number]
        halves.append(Half(paths, observer.see(pictures, f"{name}, {half}")))
    return halves


def to_set(seen: Seen, curve: Array) -> Array:
    """(images, neurons): each image's own DNA against a set's."""
    return np.stack([emd(own - curve) for own in seen.curves])


def scorer(
    real: Half, synthetic: Sequence[Half], last: slice
) -> Callable[[Half], dict[str, Array]]:
    """What is fitted on these halves: pictures -> how unreal each is, by each score."""
    from sklearn.covariance import LedoitWolf
    from sklearn.linear_model import LogisticRegression

    curve = real.seen.curves.mean(axis=0)
    others = np.mean([half.seen.curves.mean(axis=0) for half in synthetic], axis=0)
    order = np.argsort(-emd(curve - others), kind="stable")
    x = real.seen.means[:, last]
    y = np.concatenate([half.seen.means[:, last] for half in synthetic])
    centre, scale = x.mean(axis=0), spread(x)
    gaussian = LedoitWolf().fit((x - centre) / scale)
    classifier = LogisticRegression(C=0.01, class_weight="balanced", max_iter=5000).fit(
        (np.concatenate([x, y]) - centre) / scale, np.repeat([0, 1], [len(x), len(y)])
    )

    def scores(half: Half) -> dict[str, Array]:
        each = to_set(half.seen, curve)
        features = half.seen.means[:, last]
        return {
            **{f"{k} neurons": each[:, order[:k]].mean(axis=1) for k in FEW},
            ALL: each.mean(axis=1),
            "last layer": each[:, last].mean(axis=1),
            "FD": np.square(features - x.mean(axis=0)).sum(axis=1) + x.var(axis=0, ddof=1).sum(),
            "Mahalanobis": gaussian.mahalanobis((features - centre) / scale),
            "cosine": 1
            - (features @ centre) / np.linalg.norm(features, axis=1) / np.linalg.norm(centre),
            "classifier": classifier.decision_function((features - centre) / scale),
        }

    return scores


def auc(real: Array, synthetic: Array) -> float:
    """How often a synthetic picture is further off than a real one."""
    ranks = rankdata(np.concatenate([real, synthetic]))[len(real) :]
    least = len(synthetic) * (len(synthetic) + 1) / 2
    return float((ranks.sum() - least) / (len(real) * len(synthetic)))


def interval(real: Half, synthetic: Half, a: Array, b: Array) -> tuple[float, float]:
    """95% of bootstrap samples of whole groups."""
    chance = np.random.default_rng(0)
    members = [
        [np.flatnonzero(half.groups == group) for group in range(half.groups.max() + 1)]
        for half in (real, synthetic)
    ]
    found = []
    for _ in range(BOOTSTRAPS):
        x, y = (
            values[np.concatenate([of[at] for at in chance.integers(len(of), size=len(of))])]
            for values, of in zip((a, b), members, strict=True)
        )
        found.append(auc(x, y))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def study(images: int, cache: Path, sheet: Path | None = None) -> dict[str, Any]:
    observer = Observer()
    last = observer.layers.slices[LAST]
    halves = {name: look(observer, name, kind, images, cache) for name, kind in KINDS.items()}
    result: dict[str, Any] = {
        "images": {name: [len(half.paths) for half in of] for name, of in halves.items()},
        "scores": list(SCORES),
        "within": {},
        "across": {},
        "means": {},
        "layers_of_main": {},
    }
    for task in TASKS:
        kinds = {name: kind for name, kind in KINDS.items() if kind.task == task}
        real = next(name for name, kind in kinds.items() if kind.real)
        made = [name for name, kind in kinds.items() if not kind.real]
        within = scorer(halves[real][0], [halves[name][0] for name in made], last)
        result["layers_of_main"][task] = _layers(observer, halves, real, made)
        for name in made:
            others = [halves[other][0] for other in made if other != name]
            across = scorer(halves[real][0], others, last)
            for how, score in (("within", within), ("across", across)):
                a, b = score(halves[real][1]), score(halves[name][1])
                result[how][name] = {
                    of: {
                        "auc": auc(a[of], b[of]),
                        "interval": interval(halves[real][1], halves[name][1], a[of], b[of]),
                    }
                    for of in SCORES
                }
        if "renders" in made:
            scores = within(halves["renders"][1])
            result["textured"] = _textured(halves["renders"][1], scores)
            if sheet:
                gallery(halves["renders"][1].paths, scores[MAIN], sheet)
    for how in ("within", "across"):
        result["means"][how] = {
            of: float(np.mean([row[of]["auc"] for row in result[how].values()])) for of in SCORES
        }
    return result


def _layers(
    observer: Observer, halves: dict[str, list[Half]], real: str, made: Sequence[str]
) -> dict[str, int]:
    """How many of the first 50 neurons are of which layer."""
    curve = halves[real][0].seen.curves.mean(axis=0)
    others = np.mean([halves[name][0].seen.curves.mean(axis=0) for name in made], axis=0)
    first = np.argsort(-emd(curve - others), kind="stable")[: int(MAIN.split()[0])]
    found = {
        name: int(((first >= of.start) & (first < of.stop)).sum())
        for name, of in observer.layers.slices.items()
    }
    return {name: count for name, count in found.items() if count}


def _textured(half: Half, scores: dict[str, Array]) -> dict[str, Any]:
    """Returns each score's rank correlation of realism with texture, and its 95% interval."""
    texture = np.array([textured(path) for path in half.paths])
    chance = np.random.default_rng(0)
    found = {}
    for of, values in scores.items():
        drawn = [
            spearmanr(-values[some], texture[some])[0]
            for some in chance.integers(len(texture), size=(BOOTSTRAPS, len(texture)))
        ]
        low, high = np.quantile(drawn, [0.025, 0.975])
        rho = float(spearmanr(-values, texture)[0])
        found[of] = {"rho": rho, "interval": (float(low), float(high))}
    return found


def gallery(paths: Sequence[Path], scores: Array, out: Path, each: int = 12) -> None:
    """The most real above, the least real below."""
    order = np.argsort(scores)
    sheet = Image.new("RGB", (each * 100, 210), (255,) * 3)
    for row, some in enumerate((order[:each], order[::-1][:each])):
        for column, at in enumerate(some):
            small = Image.fromarray(cutout(paths[at])).resize((96, 96))
            sheet.paste(small, (column * 100 + 2, row * 108 + 2))
    sheet.save(out)


def table(result: dict[str, Any]) -> str:
    names = list(result["within"])
    lines = []
    for how in ("within", "across"):
        lines.append(f"{'AUC, ' + how:16}" + "".join(f"{name:>12}" for name in (*names, "mean")))
        for of in SCORES:
            values = [result[how][name][of]["auc"] for name in names]
            values.append(result["means"][how][of])
            lines.append(f"{of:16}" + "".join(f"{value:12.2f}" for value in values))
    of_few, of_all = (result["textured"][of]["rho"] for of in (MAIN, ALL))
    lines.append(
        f"realism of renders with their texture: rank correlation {of_few:.2f} through {MAIN}, "
        f"{of_all:.2f} through all"
    )
    return "\n".join(lines)


def draw(result: dict[str, Any], out: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(result["within"])
    colours = dict(zip(names, ("#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#cc79a7"), strict=True))
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axis, how in zip(figure.subplots(1, 2, sharey=True), ("within", "across"), strict=True):
        for shift, name in enumerate(names):
            at = np.arange(len(SCORES)) + (shift - 2) * 0.14
            rows = [result[how][name][of] for of in SCORES]
            for x, row in zip(at, rows, strict=True):
                axis.plot([x, x], row["interval"], color=colours[name], lw=1.2)
            values = [row["auc"] for row in rows]
            axis.plot(at, values, "osD^v"[shift], color=colours[name], ms=5, label=name)
        axis.plot(
            range(len(SCORES)),
            [result["means"][how][of] for of in SCORES],
            "k_",
            ms=22,
            label="mean",
        )
        axis.axhline(0.5, color="0.5", ls=":", lw=1)
        axis.axvline(len(SCORES) - len(OTHERS) - 0.5, color="0.8", lw=1)
        axis.set_xticks(range(len(SCORES)), SCORES, rotation=60, ha="right")
        title = {"within": "neurons chosen on all kinds", "across": "the scored kind is new"}[how]
        axis.set(title=title)
    axes = figure.axes
    axes[0].set_ylabel("AUC, held-out real against synthetic")
    axes[0].legend(fontsize=8, loc="lower left", ncols=2)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vdna"}):
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=160, help="of each half of a set, at most")
    parser.add_argument("--out", type=Path, help="a folder for realism.json and the figures")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    arguments = parser.parse_args()
    sheet = None
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        sheet = arguments.out / "realism-renders.png"
    result = study(arguments.images, arguments.cache, sheet)
    if arguments.out:
        (arguments.out / "realism.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, arguments.out / "realism.svg")
    measure.emit(result, table(result))


if __name__ == "__main__":
    main()
