"""Forty attributes of real photographs under controlled changes: each ignored, the others kept.

    python -m benchmarks.lenses [--images 320] [--out DIR] [--work DIR]

Crops of photographs: without a change and with each of the forty, to fit on, and as many again, of
other photographs, that no lens has seen. Every set is built as `vdna build` builds it. For
each attribute a lens is fitted that ignores it and keeps the other 39 (`pipeline.fit`), with
weights of any sign and with weights from zero up. Reported, held out:

    suppression  1 - |distance through the lens / distance of all neurons alike|, of the ignored one
    change       |that ratio - 1|, of the others: mean and median

both of corrected distances, beside the paper's figures for 40 attributes of CelebA (95.9% and
10.0%; it does not say that they are held out). With `--out`, all numbers as JSON, and a heatmap of
every attribute through every lens.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from benchmarks import corpora, measure
from benchmarks.statistics import crops

Picture = Image.Image
Change = Callable[[Picture, np.random.Generator], Picture]
PAPER = {"suppression": 0.959, "change": 0.10, "median_change": 0.045}
NONE = "none"
SETS = ("fit", "fresh")


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


def pictures(folder: Path, name: str, images: int, seed: int, into: Path) -> Path:
    """So many crops of their own, changed, as files; those that are there are left."""
    done = into / name
    if done.exists():
        return done
    chance = np.random.default_rng([seed, 1])
    part = done.with_name(f"{done.name}.part")
    part.mkdir(parents=True, exist_ok=True)
    for n, (_, pixels) in enumerate(crops(folder, images, 1.0, seed)):
        image = Image.fromarray(pixels)
        changed = ATTRIBUTES[done.name](image, chance) if done.name != NONE else image
        changed.save(part / f"{n:05d}.jpg", quality=95, subsampling=0)
    part.rename(done)
    return done


def halved(folder: Path, work: Path) -> dict[str, Path]:
    """Every other photograph to fit on; the rest are fresh."""
    halves = {of: work / "photographs" / of for of in SETS}
    for at, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = halves[SETS[at % 2]] / f"{at:05d}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path.resolve())
    return halves


def build(place: Any, folder: Path, work: Path, images: int) -> None:
    from pipeline.build import InProcess, Request, build_datasets
    from pipeline.spec import Resources, available_cpus

    resources = Resources(workers=0, threads=available_cpus())
    engine, halves = InProcess(), halved(folder, work)
    names = [f"{of}/{name}" for of in SETS for name in (NONE, *ATTRIBUTES)]
    for seed, name in enumerate(names):
        source = pictures(halves[name.partition("/")[0]], name, images, seed, work / "images")
        build_datasets(place, [Request(name, str(source), exemplars=0)], engine, resources)
        print(f"{seed + 1} of {len(names)} sets: {name}", file=sys.stderr)


def lenses(images: int, work: Path, cache: Path) -> dict[str, Any]:
    from pipeline.catalogue import Catalogue
    from pipeline.fit import Role, Seen
    from pipeline.progress import Silent

    place = Catalogue(str(work / "catalogue"))
    began = time.perf_counter()
    build(place, corpora.corpus("photos", cache), work, images)
    built = time.perf_counter() - began
    began = time.perf_counter()
    fit, fresh = (
        Seen.of(place, [f"{of}/{name}:{of}/{NONE}" for name in ATTRIBUTES], None, None, Silent())
        for of in SETS
    )
    looked = time.perf_counter() - began
    rows = fresh.whole / fresh.whole.sum(axis=1, keepdims=True)
    names = list(ATTRIBUTES)
    result: dict[str, Any] = {
        "images": images,
        "attributes": names,
        "seen": fresh.told.tolist(),
        "bins": fresh.whole.mean(axis=1).round(3).tolist(),
        "build_seconds": round(built, 1),
        "look_seconds": round(looked, 1),
        "paper": PAPER,
    }
    for kind, non_negative in (("signed", False), ("non_negative", True)):
        began = time.perf_counter()
        through = np.empty((len(names), len(names)))
        promised = []
        for at in range(len(names)):
            roles: list[Role] = ["kept"] * len(names)
            roles[at] = "ignored"
            fitted = fit.fit(f"no-{names[at]}", roles, non_negative=non_negative)
            weights = fitted.lens.weights / fitted.lens.weights.sum()
            through[at] = rows @ weights * fit.spec.neurons
            promised.append((fitted.suppression, fitted.change))
        result[kind] = {
            **_summary(through),
            "promised_suppression": float(np.nanmean([s for s, _ in promised])),
            "promised_change": float(np.nanmean([c for _, c in promised])),
            "seconds": round(time.perf_counter() - began, 1),
            "through": through.round(4).tolist(),
        }
    return result


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


def draw(result: dict[str, Any], out: Path) -> None:
    from matplotlib.figure import Figure

    names: Sequence[str] = result["attributes"]
    figure = Figure(figsize=(9.5, 9), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(result["signed"]["through"], cmap="RdBu", vmin=0, vmax=2)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), [f"no {name}" for name in names], fontsize=7)
    axes.set_xlabel("attribute, on images that no lens was fitted on")
    axes.set_ylabel("lens")
    figure.colorbar(image, shrink=0.6, label="distance through the lens, of all neurons alike = 1")
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="lenses that ignore one of forty attributes")
    parser.add_argument("--images", type=int, default=320, help="of each of the 82 sets")
    parser.add_argument("--out", type=Path, help="folder for the figure and the numbers")
    parser.add_argument("--work", type=Path, help="folder that keeps images and DNAs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = lenses(chosen.images, chosen.work or Path(scratch), corpora.DEFAULT_CACHE)
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "lenses.json").write_text(json.dumps(result, indent=1) + "\n")
        draw(result, chosen.out / "lenses.svg")
    signed, whole = result["signed"], result["non_negative"]
    measure.emit(
        result,
        f"{chosen.images} images a set, held out: {signed['suppression']:.1%} suppression and "
        f"{signed['change']:.1%} change (median {signed['median_change']:.1%}) with weights of any "
        f"sign; {whole['suppression']:.1%} and {whole['change']:.1%} from zero up; the paper "
        f"{PAPER['suppression']:.1%} and {PAPER['change']:.1%}",
    )


if __name__ == "__main__":
    main()
