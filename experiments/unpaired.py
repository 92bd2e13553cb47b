"""How far a lens goes that is fitted to other images on either side, and what helps it.

    python -m experiments.unpaired [--images 96] [--scored 192] [--draw 0] [--out DIR]

Six changes of crops of photographs are attributes, at strengths that the words of
`vdna lens fit --ignore` do not have. For each a lens is fitted that ignores it and keeps the other
five, in eight ways:

    same crops             the same crops, with the change and without
    other crops            other crops with the change than without, and the distance of the ignored
                           one as it is, those of the others corrected, as `vdna lens fit` does
    twice as many          the same, of twice as many crops on either side
    both corrected         other crops, all distances corrected
    twice, both corrected  the same, of twice as many crops on either side
    not corrected          other crops, all distances as they are
    with the word          other crops, and beside them the word of the change, made of the crops
                           without (`--ignore dark:light --ignore brightness`)
    the word alone         the word in place of the other crops

Lenses are scored on crops of photographs that none was fitted on, the same with each change and
without: how much of the ignored one is gone (suppression), and by how much others change, as in
`experiments.lenses`. `--out` writes the numbers as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import corpora, measure
from experiments.lenses import halved
from experiments.statistics import crops

Array = NDArray[Any]
Crops = list[tuple[int, Array]]

ATTRIBUTES = {
    "brightness": 0.6,
    "contrast": 1.7,
    "saturation": 0.3,
    "hue": 40,
    "blur": 0.015,
    "noise": 24,
}
"""The strength of each change, which lies between those that its word has."""

WAYS = {
    "same crops": (["same crops"], "same crops"),
    "other crops": (["other crops"], "other crops"),
    "twice as many": (["twice as many"], "twice as many"),
    "both corrected": (["both corrected"], "both corrected"),
    "twice, both corrected": (["twice, both corrected"], "twice, both corrected"),
    "not corrected": (["not corrected"], "not corrected"),
    "with the word": (["other crops", "words"], "other crops"),
    "the word alone": (["words"], "other crops"),
}
"""What is ignored and what is kept in each way, by what `measured` calls it."""

BINS = 250
NONE = "none"
LEAST = 48


class Sets:
    """Counts sets of crops, fold by fold: a photograph's crops are in one fold."""

    def __init__(self) -> None:
        from pipeline.building import make_dna
        from pipeline.counting import Counter, Extractor
        from pipeline.networks import describe, find_ranges
        from pipeline.spec import Resources, available_cpus

        network = describe("efficientnet_lite0")
        self.spec = make_dna([np.zeros((8, 8, 3), np.uint8)], bins=BINS).spec
        ranges, _ = find_ranges(network, None, {})
        resources = Resources(threads=available_cpus())
        self._counter = Counter(Extractor(network), self.spec, ranges, resources, ())

    def count(self, of: Crops, change: Callable[[Array, str], Array] | None) -> Any:
        """Counts crops, with a change or without; returns their folds."""
        from pipeline.dna import HeldFolds
        from pipeline.images import Decoded
        from pipeline.sources import Entry, Shard

        by_fold = defaultdict(list)
        for at, (photograph, pixels) in enumerate(of):
            by_fold[photograph % 16].append((Entry(f"crop-{at:05d}", "", 0, ""), pixels))

        def counted(fold: int) -> tuple[int, Any]:
            members = dict(by_fold[fold])

            def fetch(entry: Entry) -> Decoded:
                pixels = members[entry]
                return Decoded(change(pixels, entry.uri) if change else pixels)

            shard = Shard(fold, fold, tuple(members))
            return fold, self._counter.count(shard, "", fetch=fetch).dna

        with ThreadPoolExecutor(2) as pool:
            return HeldFolds.of(pool.map(counted, sorted(by_fold)))


def made(word: str, strength: float) -> Callable[[Array, str], Array]:
    from pipeline.altered_pictures import altered

    def change(pixels: Array, name: str) -> Array:
        return np.asarray(altered(Image.fromarray(pixels), word, strength, name))

    return change


def observed(images: int, scored: int, photos: Path, draw: int) -> tuple[Any, dict[str, Any]]:
    """Counts all sets; returns their spec, and the folds of each.

    Each draw fits to crops of its own, and all are scored on the same ones.
    """
    from pipeline.altered_pictures import PICTURE_CHANGES

    sets = Sets()
    with tempfile.TemporaryDirectory() as work:
        halves = halved(photos, Path(work))
        seed = 1000 * draw
        base = list(crops(halves["fit"], 2 * images, 1.0, seed + 1))
        fresh = list(crops(halves["fresh"], scored, 1.0, 2))
        other = {
            word: list(crops(halves["fit"], 2 * images, 1.0, seed + 10 + at))
            for at, word in enumerate(ATTRIBUTES)
        }
    began, folds = time.perf_counter(), {}

    def count(name: str, of: Crops, change: Callable[[Array, str], Array] | None = None) -> None:
        folds[name] = sets.count(of, change)
        took = time.perf_counter() - began
        print(f"{name}: {len(of)} crops, after {took:.0f} s", file=sys.stderr)

    count(NONE, base[:images])
    count(f"{NONE}, more", base[images:])
    count(f"{NONE}, fresh", fresh)
    for word, strength in ATTRIBUTES.items():
        change = made(word, strength)
        count(f"{word}, same", base[:images], change)
        count(f"{word}, other", other[word][:images], change)
        count(f"{word}, more", other[word][images:], change)
        count(f"{word}, fresh", fresh, change)
        for each in PICTURE_CHANGES[word].strengths:
            count(f"{word} {each:g}", base[:images], made(word, each))
    for name in (NONE, *ATTRIBUTES):
        first = NONE if name == NONE else f"{name}, other"
        folds[f"{name}, twice"] = folds[first] + folds.pop(f"{name}, more")
    return sets.spec, folds


def measured(spec: Any, folds: dict[str, Any]) -> dict[str, Any]:
    """Measures the attributes in each way; returns the distances by the ways' names."""
    from pipeline.altered_pictures import PICTURE_CHANGES
    from pipeline.explaining import AttributeDistances
    from pipeline.explaining.attribute import Attribute
    from pipeline.explaining.attribute_distances import FoldReader

    readers = {name: FoldReader(of.read) for name, of in folds.items()}
    ways = {
        "same crops": [Attribute(f"{w}, same", NONE, True) for w in ATTRIBUTES],
        "other crops": [Attribute(f"{w}, other", NONE) for w in ATTRIBUTES],
        "twice as many": [Attribute(f"{w}, twice", f"{NONE}, twice") for w in ATTRIBUTES],
        "not corrected": [Attribute(f"{w}, other", NONE, True) for w in ATTRIBUTES],
        "words": [
            Attribute(f"{w} {by:g}", NONE, True)
            for w in ATTRIBUTES
            for by in PICTURE_CHANGES[w].strengths
        ],
        "fresh": [Attribute(f"{w}, fresh", f"{NONE}, fresh", True) for w in ATTRIBUTES],
    }
    seen = {way: AttributeDistances.measured(of, spec, readers) for way, of in ways.items()}
    return {
        **seen,
        "both corrected": without_plain(seen["other crops"]),
        "twice, both corrected": without_plain(seen["twice as many"]),
    }


def without_plain(seen: Any) -> Any:
    """Leaves the corrected distances alone, so that what is ignored is fitted to these, too."""
    halves = tuple(replace(half, plain=None) for half in seen.halves)
    return replace(seen, whole=replace(seen.whole, plain=None), halves=halves)


def rows_of(parts: Sequence[tuple[Any, Sequence[int]]]) -> Any:
    """Joins some attributes of several measurements."""
    from pipeline.explaining.lens_problem import NeuronDistances

    def joined(of: Callable[[Any], Any]) -> Any:
        views = [(of(seen), list(rows)) for seen, rows in parts]
        plain = [view.distances if view.plain is None else view.plain for view, _ in views]
        return NeuronDistances(
            np.concatenate([view.distances[rows] for view, rows in views]),
            np.concatenate([view.variances[rows] for view, rows in views]),
            np.concatenate([all_[rows] for all_, (_, rows) in zip(plain, views, strict=True)]),
        )

    first = parts[0][0]
    return replace(
        first,
        attributes=tuple(seen.attributes[row] for seen, rows in parts for row in rows),
        whole=joined(lambda seen: seen.whole),
        halves=tuple(joined(half) for half in map(_half, range(4))),
        p=np.concatenate([seen.p[list(rows)] for seen, rows in parts]),
    )


def _half(at: int) -> Callable[[Any], Any]:
    return lambda seen: seen.halves[at]


def scores(seen: dict[str, Any]) -> list[dict[str, Any]]:
    """Fits a lens for each attribute in each way, and scores it on fresh crops."""
    words = [name.split(" ")[0] for name in seen["words"].attributes]
    fresh = seen["fresh"].whole.distances
    rows = []
    for way, (ignores, keeps) in WAYS.items():
        left = []
        for at, word in enumerate(ATTRIBUTES):
            others = [k for k in range(len(ATTRIBUTES)) if k != at]
            own = [k for k, name in enumerate(words) if name == word]
            kept = (seen[keeps], others)
            ignored = [(seen[of], own if of == "words" else [at]) for of in ignores]
            problem = rows_of([*ignored, kept])
            number = sum(len(of) for _, of in ignored)
            fitted = problem.fit("x", ["ignored"] * number + ["kept"] * len(others))
            weights = fitted.lens.weights / fitted.lens.weights.sum()
            left.append(fresh @ weights / fresh.mean(axis=1))
        through = np.array(left)
        ignores_it = np.eye(len(through), dtype=bool)
        gone = 1 - np.abs(through[ignores_it])
        rows.append(
            {
                "way": way,
                "suppression": float(gone.mean()),
                "least": float(gone.min()),
                "change": float(np.abs(through[~ignores_it] - 1).mean()),
                "of_each": dict(zip(ATTRIBUTES, gone.round(4).tolist(), strict=True)),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="lenses that are fitted to other images")
    parser.add_argument("--images", type=int, default=96, help="crops of each set to fit on")
    parser.add_argument("--scored", type=int, default=192, help="fresh crops of each set")
    parser.add_argument("--draw", type=int, default=0, help="number of the draw of the crops")
    parser.add_argument("--out", type=Path, help="folder for the numbers")
    chosen = parser.parse_args()
    if min(chosen.images, chosen.scored) < LEAST:
        parser.error(f"give {LEAST} images or more")
    spec, folds = observed(chosen.images, chosen.scored, corpora.corpus("photos"), chosen.draw)
    rows = scores(measured(spec, folds))
    for row in rows:
        print(
            f"{row['way']}: {row['suppression']:.1%} (least {row['least']:.1%}), change "
            f"{row['change']:.1%}",
            file=sys.stderr,
        )
    result = {
        "images": chosen.images,
        "scored": chosen.scored,
        "draw": chosen.draw,
        "rows": rows,
    }
    if chosen.out:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "unpaired.json").write_text(json.dumps(result, indent=1) + "\n")
    measure.emit(result, "; ".join(f"{row['way']} {row['suppression']:.1%}" for row in rows))


if __name__ == "__main__":
    main()
