"""Forty attributes of real photographs under controlled changes: each ignored, the others kept.

    python -m experiments.lenses [--images 768] [--scored 3072] [--out DIR] [--work DIR]

Crops of photographs without a change and with each of the forty, all built as `vdna build` builds
them, in three draws:

    paired   the same crops, without a change and with each
    apart    crops of the same photographs, of each set its own; half as many at most
    fresh    as paired, of other photographs, which no lens has seen

For each attribute a lens is fitted that ignores it and keeps the other 39. It is fitted to the
first two draws, at rising numbers of images (`pipeline.explaining.AttributeDistances.fit`). Weights
may have any sign; with most images, lenses with weights from zero up are fitted too. Reported are
two scores on the fresh photographs:

    suppression  1 - |distance through the lens / distance of all neurons alike|, of the ignored one
    change       |that ratio - 1|, of the others: mean and median

Images do not all take a change in the same way. This adds to the distance of every neuron, and adds
less with more images. So what is left of an attribute through any lens shrinks with the number of
images that it is scored on. For this reason some of the folds are scored by themselves, too
(`scored`).

The paper's figures for 40 attributes of CelebA stand beside these (95.9% and 10.0%; it does not say
that they are held out). `--out` writes all numbers as JSON, a figure of both scores against the
number of images, and a heatmap of every attribute through every lens.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from benchmarks import corpora, measure
from experiments.statistics import crops
from pipeline.comparing import cumulative

Picture = Image.Image
Change = Callable[[Picture, np.random.Generator], Picture]
PAPER = {"suppression": 0.959, "change": 0.10, "median_change": 0.045}
NONE = "none"
DRAWS = ("paired", "apart")
LEAST = 96
BINS = 250
KINDS = {"signed": False, "non_negative": True}
PARTS = (2, 4, 8, 16)
"""Folds of the images to score on."""


def enhanced(kind: Any, by: float) -> Change:
    return lambda image, chance: kind(image).enhance(by)


def hue(degrees: int) -> Change:
    def change(image: Picture, chance: np.random.Generator) -> Picture:
        h, s, v = image.convert("HSV").split()
        turned = h.point(lambda value: (value + degrees * 256 // 360) % 256)
        return Image.merge("HSV", (turned, s, v)).convert("RGB")

    return change


def tinted(red: float, blue: float) -> Change:
    def change(image: Picture, chance: np.random.Generator) -> Picture:
        r, g, b = image.split()
        r, b = (c.point(lambda v, by=by: min(255, int(v * by))) for c, by in ((r, red), (b, blue)))
        return Image.merge("RGB", (r, g, b))

    return change


def noisy(sigma: float) -> Change:
    def change(image: Picture, chance: np.random.Generator) -> Picture:
        pixels = np.asarray(image, np.float64)
        return Image.fromarray(
            np.clip(pixels + chance.normal(0, sigma, pixels.shape), 0, 255).astype(np.uint8)
        )

    return change


def compressed(quality: int) -> Change:
    def change(image: Picture, chance: np.random.Generator) -> Picture:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=quality)
        return Image.open(held).convert("RGB")

    return change


def occluded(share: float) -> Change:
    def change(image: Picture, chance: np.random.Generator) -> Picture:
        side = int(image.width * share**0.5)
        left, top = (int(chance.integers(image.width - side + 1)) for _ in range(2))
        covered = image.copy()
        ImageDraw.Draw(covered).rectangle((left, top, left + side, top + side), (128, 128, 128))
        return covered

    return change


def foggy(share: float) -> Change:
    white = Image.new("RGB", (224, 224), (235, 238, 242))
    return lambda image, chance: Image.blend(image, white, share)


def nearer(part: float) -> Change:
    def change(image: Picture, chance: np.random.Generator) -> Picture:
        cut = int(image.width * (1 - part) / 2)
        inner = image.crop((cut, cut, image.width - cut, image.height - cut))
        return inner.resize(image.size, Image.Resampling.BICUBIC)

    return change


def framed(width: int, colour: int) -> Change:
    return lambda image, chance: ImageOps.expand(
        image.resize((224 - 2 * width, 224 - 2 * width)), width, (colour,) * 3
    )


def pixelated(by: int) -> Change:
    def change(image: Picture, chance: np.random.Generator) -> Picture:
        small = image.resize((image.width // by, image.height // by), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.NEAREST)

    return change


def vignetted(image: Picture, chance: np.random.Generator) -> Picture:
    at = np.linspace(-1, 1, image.width)
    dark = 1 - 0.8 * np.clip((at[:, None] ** 2 + at**2) / 2, 0, 1)
    return Image.fromarray((np.asarray(image) * dark[:, :, None]).astype(np.uint8))


def blurred(radius: float) -> Change:
    return lambda image, chance: image.filter(ImageFilter.GaussianBlur(radius))


def turned(degrees: float) -> Change:
    return lambda image, chance: image.rotate(degrees, Image.Resampling.BICUBIC)


ATTRIBUTES: dict[str, Change] = {
    "dark-2": enhanced(ImageEnhance.Brightness, 0.5),
    "dark-1": enhanced(ImageEnhance.Brightness, 0.75),
    "bright-1": enhanced(ImageEnhance.Brightness, 1.33),
    "bright-2": enhanced(ImageEnhance.Brightness, 2.0),
    "contrast-low": enhanced(ImageEnhance.Contrast, 0.5),
    "contrast-high": enhanced(ImageEnhance.Contrast, 2.0),
    "grey": enhanced(ImageEnhance.Color, 0.0),
    "pale": enhanced(ImageEnhance.Color, 0.5),
    "vivid": enhanced(ImageEnhance.Color, 2.0),
    "hue-20": hue(20),
    "hue-60": hue(60),
    "hue-180": hue(180),
    "warm": tinted(1.2, 0.8),
    "cool": tinted(0.8, 1.2),
    "blur-1": blurred(1),
    "blur-2": blurred(2),
    "blur-4": blurred(4),
    "noise-10": noisy(10),
    "noise-25": noisy(25),
    "noise-50": noisy(50),
    "jpeg-30": compressed(30),
    "jpeg-10": compressed(10),
    "jpeg-5": compressed(5),
    "turned-15": turned(15),
    "turned-90": turned(90),
    "turned-180": turned(180),
    "upside-down": lambda image, chance: ImageOps.flip(image),
    "occluded-10": occluded(0.1),
    "occluded-40": occluded(0.4),
    "fog-30": foggy(0.3),
    "fog-60": foggy(0.6),
    "near-70": nearer(0.7),
    "near-50": nearer(0.5),
    "frame-black": framed(16, 0),
    "frame-white": framed(32, 255),
    "posterised": lambda image, chance: ImageOps.posterize(image, 3),
    "solarised": lambda image, chance: ImageOps.solarize(image, 128),
    "inverted": lambda image, chance: ImageOps.invert(image),
    "pixelated": pixelated(8),
    "vignette": vignetted,
}


def halved(folder: Path, work: Path) -> dict[str, Path]:
    """Every other photograph to fit on; the rest are fresh."""
    halves = {of: work / "photographs" / of for of in ("fit", "fresh")}
    for at, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = halves[("fit", "fresh")[at % 2]] / f"{at:05d}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())
    return halves


def draw_pictures(
    photographs: Path, names: Sequence[str], images: int, seed: int, to: Path
) -> None:
    """The same crops with each change, as files, and a table of the photograph that each is of."""
    if all((to / f"{name}.csv").exists() for name in names):
        return
    for name in names:
        (to / name).mkdir(parents=True, exist_ok=True)
    photograph_of = []

    def save(at: int, image: Picture) -> None:
        for number, name in enumerate(names):
            chance = np.random.default_rng([seed, number, at])
            changed = ATTRIBUTES[name](image, chance) if name != NONE else image
            changed.save(to / name / f"{at:05d}.jpg", quality=95, subsampling=0)

    def one_by_one() -> Iterator[tuple[int, Picture]]:
        for at, (photograph, pixels) in enumerate(crops(photographs, images, 1.0, seed)):
            photograph_of.append(photograph)
            yield at, Image.fromarray(pixels)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(lambda of: save(*of), one_by_one()):
            pass
    for name in names:
        with (to / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("uri", "photograph"))
            for at, photograph in enumerate(photograph_of):
                rows.writerow((f"{name}/{at:05d}.jpg", photograph))


def first(table: Path, images: int) -> Path:
    """A table of the first ones; under one name for all numbers, so that a build goes on."""
    lines = table.read_text().splitlines()
    some = table.with_name(f"{table.stem}-first.csv")
    some.write_text("\n".join(lines[: 1 + images]) + "\n")
    return some


def sizes_of(draw: str, sizes: Sequence[int]) -> Sequence[int]:
    return {"paired": sizes, "apart": sizes[:-1]}[draw]


def build(
    place: Any, work: Path, sizes: Sequence[int], scored: int, photos: Path
) -> dict[int, int]:
    """All sets, at each size of those to fit on; the commit at which all are of that size."""
    from pipeline.building import Request, build_datasets
    from pipeline.engine import InProcess
    from pipeline.spec import Resources, available_cpus

    done = work / f"commits-{sizes[-1]}-{scored}.json"
    if done.exists():
        return {int(size): commit for size, commit in json.loads(done.read_text()).items()}
    if (work / "images").exists():
        raise SystemExit(f"{work} has the images of a run that did not end, or was of other sizes")
    resources = Resources(workers=0, threads=available_cpus())
    engine, names, images = InProcess(), (NONE, *ATTRIBUTES), work / "images"
    halves = halved(photos, work)
    draw_pictures(halves["fit"], names, sizes[-1], 1, images / "paired")
    draw_pictures(halves["fresh"], names, scored, 2, images / "fresh")
    for at, name in enumerate(names):
        draw_pictures(halves["fit"], [name], sizes[-2], 10 + at, images / "apart")
        print(f"pictures of {at + 1} of {len(names)} sets", file=sys.stderr)

    def build_all(of: str, size: int) -> None:
        began = time.perf_counter()
        for name in names:
            source = str(first(images / of / f"{name}.csv", size))
            how: dict[str, Any] = {"group_by": "photograph", "bins": BINS, "exemplars": 0}
            build_datasets(place, [Request(f"{of}/{name}", source, **how)], engine, resources)
        took = time.perf_counter() - began
        print(f"{of}: {size} images of each set in {took:.0f} s", file=sys.stderr)

    build_all("fresh", scored)
    commits = {}
    for size in sizes:
        for of in (draw for draw in DRAWS if size in sizes_of(draw, sizes)):
            build_all(of, size)
        commits[size] = place.head().number
    done.write_text(json.dumps(commits))
    return commits


def lenses(sizes: Sequence[int], scored: int, work: Path, cache: Path) -> dict[str, Any]:
    from pipeline.catalogue import Catalogue
    from pipeline.events import ignore
    from pipeline.explaining import AttributeDistances, Role

    place = Catalogue(str(work / "catalogue"))
    began = time.perf_counter()
    commits = build(place, work, sizes, scored, corpora.corpus("photos", cache))
    names = list(ATTRIBUTES)

    def seen(of: str, at: int) -> AttributeDistances:
        sign = ":" if of == "apart" else "="
        pairs = [f"{of}/{name}{sign}{of}/{NONE}" for name in names]
        return AttributeDistances.of(place, pairs, None, at, ignore)

    fresh = Fresh.of(place, names)
    result: dict[str, Any] = {
        "images": sizes[-1],
        "scored": scored,
        "attributes": names,
        "bins": fresh.distances[-1].mean(axis=1).round(3).tolist(),
        "build_seconds": round(time.perf_counter() - began, 1),
        "paper": PAPER,
        "rows": [],
    }
    for size in sizes:
        for of in (draw for draw in DRAWS if size in sizes_of(draw, sizes)):
            fit = seen(of, commits[size])
            for kind, non_negative in KINDS.items():
                if non_negative and size != sizes_of(of, sizes)[-1]:
                    continue
                began = time.perf_counter()
                left, promised = [], []
                for at, name in enumerate(names):
                    roles: list[Role] = ["kept"] * len(names)
                    roles[at] = "ignored"
                    fitted = fit.fit(f"no-{name}", roles, non_negative=non_negative)
                    weights = fitted.lens.weights / fitted.lens.weights.sum()
                    left.append(fresh.through(weights))
                    promised.append((fitted.suppression, fitted.change))
                through = np.stack(left, axis=1)
                row = {
                    "draw": of,
                    "kind": kind,
                    "images": size,
                    "seen": int(fit.detected.sum()),
                    **_summary(through[-1]),
                    "scored": [
                        {"images": images, **_summary(some)}
                        for images, some in zip(fresh.scored.tolist(), through, strict=True)
                    ],
                    "promised_suppression": float(np.nanmean([s for s, _ in promised])),
                    "promised_change": float(np.nanmean([c for _, c in promised])),
                    "seconds": round(time.perf_counter() - began, 1),
                }
                result["rows"].append({**row, "through": through[-1].round(4).tolist()})
                print(f"{of}, {kind}, {size} images: {told(row)}", file=sys.stderr)
    return result


@dataclass(frozen=True)
class Fresh:
    """Distances of the attributes, in bins, on images that no lens was fitted on.

    `distances` (S, A, N): of the first of PARTS folds, `scored` (S,) images, the last one all.
    """

    distances: NDArray[np.float64]
    scored: NDArray[np.int64]

    @classmethod
    def of(cls, place: Any, names: Sequence[str]) -> Fresh:
        plain, images = _curves(place, NONE)

        def differences() -> Iterator[NDArray[np.float64]]:
            for name in names:
                curves, its = _curves(place, name)
                if not np.array_equal(its, images):
                    raise SystemExit(f"fresh/{name} is not of the images of fresh/{NONE}")
                yield curves - plain

        return cls.apart(differences(), images)

    @classmethod
    def apart(cls, differences: Iterable[NDArray[np.float64]], images: NDArray[np.int64]) -> Fresh:
        """Makes it from the differences of curves with and without each attribute.

        Args:
            differences: For each attribute (K, N, bins); each fold is multiplied by its images.
            images: (K,), the number of images in each fold.
        """
        scored = np.array([images[:folds].sum() for folds in PARTS])
        distances = [
            [
                np.abs(apart[:k].sum(axis=0)).sum(axis=1) / n
                for k, n in zip(PARTS, scored, strict=True)
            ]
            for apart in differences
        ]
        return cls(np.array(distances).swapaxes(0, 1), scored)

    def through(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(S, A) what a lens, of weights that sum to one, makes of each attribute's distance."""
        found: NDArray[np.float64] = self.distances @ weights / self.distances.mean(axis=2)
        return found


def _curves(place: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Cumulative distributions of the folds, each times its images (K, N, bins); their images."""
    file = place.open_file("folds", f"fresh/{name}", place.find(f"fresh/{name}"))
    layers = [list(file.read_folds(layer).values()) for layer in file.spec.layers]
    curves = [np.stack([cumulative(fold) * fold.images for fold in folds]) for folds in layers]
    return np.concatenate(curves, axis=1), np.array([fold.images for fold in layers[0]])


def told(row: dict[str, Any]) -> str:
    return (
        f"{row['suppression']:.1%} suppression (least {row['least_suppression']:.1%}) and "
        f"{row['change']:.1%} change (median {row['median_change']:.1%})"
    )


def _summary(through: NDArray[np.float64]) -> dict[str, Any]:
    own = np.eye(len(through), dtype=bool)
    suppression = 1 - np.abs(np.diagonal(through))
    change = np.abs(through[~own] - 1)
    return {
        "suppression": float(suppression.mean()),
        "least_suppression": float(suppression.min()),
        "change": float(change.mean()),
        "median_change": float(np.median(change)),
        "suppression_of_each": suppression.round(4).tolist(),
    }


def best(result: dict[str, Any], kind: str = "signed") -> dict[str, Any]:
    """Returns the row with paired images and the largest number of them."""
    last = [row for row in result["rows"] if (row["draw"], row["kind"]) == ("paired", kind)][-1]
    return dict(last)


def draw(result: dict[str, Any], out: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "vdna"}
    names: Sequence[str] = result["attributes"]
    figure = Figure(figsize=(9.5, 9), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(best(result)["through"], cmap="RdBu", vmin=0, vmax=2)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), [f"no {name}" for name in names], fontsize=7)
    axes.set_xlabel("attribute, of photographs that no lens was fitted on")
    axes.set_ylabel("lens")
    figure.colorbar(image, shrink=0.6, label="distance through the lens, of all neurons alike = 1")
    with rc_context(settings):
        figure.savefig(out / "lenses.svg", metadata={"Date": None})
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, what in zip(figure.subplots(1, 2), ("suppression", "change"), strict=True):
        for of, line in (("paired", "-"), ("apart", "--")):
            rows = [r for r in result["rows"] if (r["draw"], r["kind"]) == (of, "signed")]
            sizes = [row["images"] for row in rows]
            label = {"paired": "the same crops", "apart": "other crops"}[of]
            for part, colour in ((-1, "tab:blue"), (-3, "tab:cyan")):
                scored = [row["scored"][part] for row in rows]
                values = [100 * of_some[what] for of_some in scored]
                told_of = f"{label}, scored on {scored[0]['images']:,}"
                axes.plot(sizes, values, line, color=colour, marker="o", label=told_of)
        axes.axhline(100 * result["paper"][what], color="grey", linewidth=1, label="the paper")
        sizes = sorted({row["images"] for row in result["rows"]})
        axes.set(xscale="log", xlabel="images of each set", ylabel=f"mean {what}, %")
        axes.set_xticks(sizes, map(str, sizes))
        axes.minorticks_off()
    figure.axes[0].legend(fontsize=7)
    with rc_context(settings):
        figure.savefig(out / "lens-images.svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="lenses that ignore one of forty attributes")
    parser.add_argument("--images", type=int, default=768, help="to fit on, of each set, at most")
    parser.add_argument("--scored", type=int, default=3072, help="fresh ones, of each set")
    parser.add_argument("--out", type=Path, help="folder for the figures and the numbers")
    parser.add_argument("--work", type=Path, help="folder that keeps images and DNAs")
    chosen = parser.parse_args()
    if chosen.images < 2 * LEAST:
        parser.error(f"--images is {chosen.images}; give {2 * LEAST} or more")
    if chosen.scored < LEAST:
        parser.error(f"--scored is {chosen.scored}; give {LEAST} or more")
    sizes = [chosen.images // 2, chosen.images]
    while sizes[0] // 2 >= LEAST:
        sizes.insert(0, sizes[0] // 2)
    with tempfile.TemporaryDirectory() as scratch:
        work = chosen.work or Path(scratch)
        result = lenses(sizes, chosen.scored, work, corpora.DEFAULT_CACHE)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "lenses.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, chosen.out)
    measure.emit(
        result,
        f"{chosen.images} images a set, scored on {chosen.scored} of photographs that no lens has "
        f"seen: with weights of any "
        f"sign {told(best(result))}; from zero up {told(best(result, 'non_negative'))}; the paper "
        f"{PAPER['suppression']:.1%} and {PAPER['change']:.1%}",
    )


if __name__ == "__main__":
    main()
