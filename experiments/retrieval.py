"""Finds pictures: of a domain by a few examples, and with an attribute by a few neurons.

    python -m experiments.retrieval [--images 100] [--fit 128] [--out DIR]

*Domains.* The pool has the same number of pictures of each of six domains (photographs, textures of
a game, painted portraits, 3D renders, cut-out photographs, wallpapers). A query is a small set of
other pictures of one domain: 1, 5 and 20, five times each. The pool is ranked by the distance of
each picture's own DNA to that of the query. It is also ranked by the pooled features of the last
layer: by the cosine to the query's mean, and by the Mahalanobis distance to the query's Gaussian
(shrunk after Ledoit and Wolf; for two pictures or more). Reported are the average precision (AP),
and its mean over domains and queries, with a 95% interval by bootstrap over domains. Cut-outs stand
on white, as renders and portraits do.

*Attributes.* Ten attributes can be given to a photograph (no colour, a frame, fog, a line of text,
…). For each one, two datasets are built as `vdna build` does: crops of one half of the photographs,
with the attribute and without. A lens of 20 neurons is fitted as `vdna lens fit --focus` does. The
pool is crops of the other half: equally many with each attribute, and as many plain ones as all of
these. The pool is ranked by the distance of each picture's own DNA to the DNA of the set with the
attribute, through the lens. For comparison it is ranked through all neurons, by the cosine and the
Mahalanobis distance of pooled features to that set, and by a logistic regression of these features,
with against without, which shows what labels could do. Reported are the precision among the first 1
and 20, and the AP.

The comparison has one limit: the lens and the regression know the set without the attribute, while
the other measures know only the set that is looked for. Nothing was chosen on the pool.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks import corpora, measure
from experiments.changes import LAST
from experiments.lenses import ATTRIBUTES, halved
from experiments.observe import BINS, POINTS, Observer, Seen
from experiments.realism import KINDS, coded, cutout, files, to_set
from experiments.statistics import crops
from pipeline.dna import DNA

Array = NDArray[Any]
Picture = Image.Image

DOMAINS = ("photographs", "textures", "wallpapers", "cut-outs", "renders", "portraits")
QUERIES = (1, 5, 20)
TIMES = 5
ALL = "EMD, all neurons"
LASTS = "EMD, last layer"
LENS = "EMD, lens of 20 neurons"
DOMAIN_SCORES = (ALL, LASTS, "Mahalanobis", "cosine")
ATTRIBUTE_SCORES = (LENS, ALL, LASTS, "Mahalanobis", "cosine", "classifier")
TOP = 20
BOOTSTRAPS = 1000


def written(image: Picture, chance: np.random.Generator) -> Picture:
    """A line of white text, outlined in black, somewhere."""
    letters = "".join(chr(97 + int(at)) for at in chance.integers(26, size=14))
    drawn = image.copy()
    ImageDraw.Draw(drawn).text(
        (int(chance.integers(4, 30)), int(chance.integers(4, 190))),
        f"{letters[:5]} {letters[5:9]} {letters[9:]}".title(),
        (255,) * 3,
        ImageFont.load_default(24),
        stroke_width=2,
        stroke_fill=(0,) * 3,
    )
    return drawn


SOUGHT: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "no colour": ATTRIBUTES["grey"],
    "black frame": ATTRIBUTES["frame-black"],
    "fog": ATTRIBUTES["fog-60"],
    "text": written,
    "blur": ATTRIBUTES["blur-2"],
    "noise": ATTRIBUTES["noise-25"],
    "JPEG": ATTRIBUTES["jpeg-10"],
    "occluded": ATTRIBUTES["occluded-10"],
    "vignette": ATTRIBUTES["vignette"],
    "upside down": ATTRIBUTES["upside-down"],
}
PLAIN = "plain"


def average_precision(scores: Array, relevant: Array) -> float:
    """Returns the average precision of the order by rising scores; ties keep their order."""
    hits = relevant[np.argsort(scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def interval(values: Array) -> tuple[float, float]:
    """95% of bootstrap samples of rows (rows, ...), each row its own mean."""
    chance = np.random.default_rng(0)
    rows = values.reshape(len(values), -1).mean(axis=1)
    drawn = rows[chance.integers(len(rows), size=(BOOTSTRAPS, len(rows)))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


class Pooled:
    """Distances by pooled features (images, C) to those of a set, standardised by the pool's."""

    def __init__(self, pool: Array) -> None:
        self._centre, self._scale = pool.mean(axis=0), pool.std(axis=0) + 1e-6
        self._raw, self._pool = pool, self._even(pool)

    def _even(self, features: Array) -> Array:
        return np.asarray((features - self._centre) / self._scale)

    def to(self, some: Array) -> dict[str, Array]:
        from sklearn.covariance import LedoitWolf

        mean = some.mean(axis=0)
        length = np.linalg.norm(self._raw, axis=1) * np.linalg.norm(mean)
        found = {"cosine": 1 - self._raw @ mean / length}
        if len(some) > 1:
            found["Mahalanobis"] = LedoitWolf().fit(self._even(some)).mahalanobis(self._pool)
        return found

    def told(self, with_it: Array, without: Array) -> Array:
        from sklearn.linear_model import LogisticRegression

        x = self._even(np.concatenate([with_it, without]))
        labels = np.repeat([0, 1], [len(with_it), len(without)])
        model = LogisticRegression(C=0.01, max_iter=5000).fit(x, labels)
        return np.asarray(model.decision_function(self._pool))


def _scene(path: Path, seed: int) -> Array:
    chance = np.random.default_rng(seed)
    with Image.open(path) as image:
        whole = image.convert("RGB")
    side = int(min(whole.size) * chance.uniform(0.5, 1))
    left, top = (int(chance.integers(length - side + 1)) for length in whole.size)
    crop = whole.crop((left, top, left + side, top + side))
    return coded(crop.resize((224, 224), Image.Resampling.BICUBIC))


def domains(observer: Observer, images: int, cache: Path, times: int) -> dict[str, Any]:
    last = observer.layers.slices[LAST]
    chance = np.random.default_rng(1)
    pools, queries = [], []
    for name in DOMAINS:
        kind = KINDS[name]
        found = files(kind, corpora.corpus(kind.corpus, cache))
        order = chance.permutation(len(found))
        for into, mine in ((pools, order[::2]), (queries, order[1::2])):
            paths = [found[mine[at % len(mine)]] for at in range(images)]
            pictures = [
                (lambda p=p, at=at: _scene(p, at))
                if kind.task == "scenes"
                else (lambda p=p: cutout(p))
                for at, p in enumerate(paths)
            ]
            into.append(observer.see(pictures, name))
    of = np.repeat(np.arange(len(DOMAINS)), images)
    pool = Seen(
        np.concatenate([seen.curves for seen in pools]),
        np.concatenate([seen.means for seen in pools]),
    )
    pooled = Pooled(pool.means[:, last])
    found_of: dict[str, Any] = {}
    for size in QUERIES:
        precision = {name: np.full((len(DOMAINS), times), np.nan) for name in DOMAIN_SCORES}
        for at, seen in enumerate(queries):
            for time in range(times):
                some = chance.choice(images, min(size, images), replace=False)
                each = to_set(pool, seen.curves[some].mean(axis=0))
                scores = {ALL: each.mean(axis=1), LASTS: each[:, last].mean(axis=1)}
                scores |= pooled.to(seen.means[some][:, last])
                for name, values in scores.items():
                    precision[name][at, time] = average_precision(values, of == at)
        found_of[str(size)] = {
            name: {
                "ap": float(values.mean()),
                "interval": interval(values),
                "of_domains": dict(zip(DOMAINS, values.mean(axis=1).tolist(), strict=True)),
            }
            for name, values in precision.items()
            if np.isfinite(values).all()
        }
    return {"pool": len(of), "chance": 1 / len(DOMAINS), "queries": found_of}


def attributes(
    observer: Observer, images: int, fit: int, work: Path, cache: Path
) -> dict[str, Any]:
    from pipeline.building import Request, build_datasets
    from pipeline.catalogue import Catalogue
    from pipeline.engine import InProcess
    from pipeline.errors import UsageError
    from pipeline.explaining import fit_lens
    from pipeline.spec import Resources, available_cpus

    last = observer.layers.slices[LAST]
    halves = halved(corpora.corpus("photos", cache), work)
    place = Catalogue(str(work / "catalogue"))
    engine, resources = InProcess(), Resources(workers=0, threads=available_cpus())
    fitted: dict[str, Seen] = {}
    for seed, name in enumerate((PLAIN, *SOUGHT)):
        pictures = [np.asarray(image) for image in _given(halves["fit"], name, fit, seed)]
        folder = work / "images" / own_name(name)
        folder.mkdir(parents=True, exist_ok=True)
        for at, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / f"{at:05d}.png")
        request = Request(own_name(name), str(folder), exemplars=0)
        build_datasets(place, [request], engine, resources)
        fitted[name] = observer.see([lambda p=p: p for p in pictures], f"{name}, to fit on")
    engine.close()
    kinds = [*SOUGHT, *[PLAIN] * len(SOUGHT)]
    shown: list[Array] = []
    for seed, name in enumerate(kinds):
        shown += [np.asarray(i) for i in _given(halves["fresh"], name, images, 100 + seed)]
    pool = observer.see([lambda p=p: p for p in shown], "pool")
    of = np.repeat(np.array(kinds), images)
    pooled = Pooled(pool.means[:, last])
    found: dict[str, Any] = {}
    for name in SOUGHT:
        each = to_set(pool, curve_of(place.load(own_name(name))))
        features = fitted[name].means[:, last]
        scores = {ALL: each.mean(axis=1), LASTS: each[:, last].mean(axis=1)}
        scores |= pooled.to(features)
        scores["classifier"] = pooled.told(features, fitted[PLAIN].means[:, last])
        try:
            lens = fit_lens(place, "sought", focus=f"{own_name(name)}:{PLAIN}", top=TOP).lens
            scores[LENS] = each @ lens.weights / lens.weights.sum()
            seen = int(np.count_nonzero(lens.weights))
        except UsageError:  # no neuron differs: nothing to look through
            scores[LENS] = np.random.default_rng(0).permutation(len(of)).astype(float)
            seen = 0
        found[name] = {
            "neurons": seen,
            **{
                score: {
                    "precision_1": float(of[np.argmin(values)] == name),
                    "precision_20": float((of[np.argsort(values)[:20]] == name).mean()),
                    "ap": average_precision(values, of == name),
                }
                for score, values in scores.items()
            },
        }
    means = {
        score: {
            key: {
                "mean": float(np.mean([row[score][key] for row in found.values()])),
                "interval": interval(np.array([row[score][key] for row in found.values()])),
            }
            for key in ("precision_1", "precision_20", "ap")
        }
        for score in ATTRIBUTE_SCORES
    }
    return {"pool": len(of), "chance": images / len(of), "means": means, "attributes": found}


def curve_of(dna: DNA) -> Array:
    """(neurons, POINTS): what a mean of curves is."""
    every = BINS // POINTS
    curve = np.cumsum(dna.distributions(), axis=1)[:, every - 1 :: every]
    return np.asarray(curve, np.float32)


def own_name(attribute: str) -> str:
    return attribute.replace(" ", "-")


def _given(folder: Path, attribute: str, count: int, seed: int) -> list[Picture]:
    """Crops of the folder's photographs, with the attribute."""
    chance = np.random.default_rng([seed, 1])
    plain = (Image.fromarray(pixels) for _, pixels in crops(folder, count, 1.0, seed))
    if attribute == PLAIN:
        return list(plain)
    return [SOUGHT[attribute](image, chance) for image in plain]


def study(images: int, fit: int, work: Path, cache: Path, *, times: int = TIMES) -> dict[str, Any]:
    observer = Observer()
    return {
        "images": images,
        "fit": fit,
        "domains": domains(observer, images, cache, times),
        "attributes": attributes(observer, max(20, images // 4), fit, work, cache),
    }


def table(result: dict[str, Any]) -> str:
    of_domains, of_attributes = result["domains"], result["attributes"]
    lines = [f"{'domain, AP':26}" + "".join(f"{f'query of {size}':>22}" for size in QUERIES)]
    for name in DOMAIN_SCORES:
        row = f"{name:26}"
        for size in QUERIES:
            of = of_domains["queries"][str(size)].get(name)
            low, high = of["interval"] if of else (0, 0)
            row += f"{of['ap']:9.2f} ({low:.2f}, {high:.2f})" if of else f"{'':22}"
        lines.append(row)
    lines.append(f"{'attribute':26}{'first':>10}{'first 20':>10}{'AP':>10}")
    for name in ATTRIBUTE_SCORES:
        of = of_attributes["means"][name]
        lines.append(
            f"{name:26}"
            + "".join(f"{of[key]['mean']:10.2f}" for key in ("precision_1", "precision_20", "ap"))
        )
    lines.append(
        f"at random: AP {of_domains['chance']:.2f} of a domain, "
        f"{of_attributes['chance']:.2f} of an attribute"
    )
    return "\n".join(lines)


COLOURS = ("#0072b2", "#56b4e9", "#e69f00", "#d55e00", "#009e73", "#cc79a7")
MARKS = "osD^vP"


def draw(result: dict[str, Any], out: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.9))
    styles = {
        name: {"color": colour, "marker": mark}
        for name, colour, mark in zip(ATTRIBUTE_SCORES, COLOURS, MARKS, strict=True)
    }
    for shift, name in enumerate(DOMAIN_SCORES):
        rows = {size: result["domains"]["queries"][str(size)].get(name) for size in QUERIES}
        known = {size: row for size, row in rows.items() if row}
        at = [QUERIES.index(size) + (shift - 1.5) * 0.08 for size in known]
        left.plot(at, [row["ap"] for row in known.values()], label=name, **styles[name])
        for x, row in zip(at, known.values(), strict=True):
            left.plot([x, x], row["interval"], color=styles[name]["color"], lw=1)
    left.axhline(result["domains"]["chance"], color="0.5", ls=":", lw=1)
    left.set_xticks(range(len(QUERIES)), [str(size) for size in QUERIES])
    left.set(
        xlabel="pictures in the query", ylabel="average precision", title="domains", ylim=(0, 1)
    )
    left.legend(fontsize=8, loc="lower right")
    found = result["attributes"]["attributes"]
    for shift, name in enumerate(ATTRIBUTE_SCORES):
        at = np.arange(len(found)) + (shift - 2.5) * 0.12
        values = [row[name]["precision_20"] for row in found.values()]
        right.plot(at, values, ls="", label=name, **styles[name])
    right.axhline(result["attributes"]["chance"], color="0.5", ls=":", lw=1)
    right.set_xticks(range(len(found)), list(found), rotation=30, ha="right")
    right.set(
        ylabel="precision among the first 20", title="attributes of photographs", ylim=(0, 1.03)
    )
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vdna"}):
        figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100, help="of a domain in the pool")
    parser.add_argument(
        "--fit", type=int, default=128, help="of a dataset that a lens is fitted to"
    )
    parser.add_argument("--out", type=Path, help="a folder for retrieval.json and retrieval.svg")
    parser.add_argument("--cache", type=Path, default=corpora.DEFAULT_CACHE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = study(arguments.images, arguments.fit, Path(scratch), arguments.cache)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "retrieval.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, arguments.out / "retrieval.svg")
    measure.emit(result, table(result))


if __name__ == "__main__":
    main()
