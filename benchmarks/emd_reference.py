"""All pairs of distances: the reference's loop over EMD, and the product's matrix.

    python -m benchmarks.emd_reference [--dnas 40] [--reference-dnas 5]

The reference is timed on every pair of a few DNAs, with both allocators. Its time for all DNAs is
extrapolated by the number of pairs, because it takes no shortcut for them. So it is `extrapolated`,
never measured. The product is timed on all DNAs. `memory` and `by_layer` start from counts in
memory, as the reference does. `curves_made` starts from the cumulative distributions, which are
made once for each DNA, however many it is compared with. All of them end in the mean over neurons.
On the few DNAs that both have seen, the two must agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measure

WAYS = ("memory", "by_layer", "curves_made")
LAYERS, NEURONS, BINS = 12, 768, 1000
"""A ViT-B's twelve blocks: 9,216 histograms of 1,000 bins."""


def counts(seed: int) -> NDArray[np.int32]:
    """Random histograms (LAYERS * NEURONS, BINS), one DNA. The cost is the same for real ones."""
    chance = np.random.default_rng(seed)
    return chance.integers(0, 1000, (LAYERS * NEURONS, BINS), np.int32)


def _reference(dnas: int) -> dict[str, Any]:
    """The reference's own EMD, pair by pair, on DNAs as its own files load: int32."""
    import torch
    from vdna import EMD
    from vdna.vdnas import get_vdna

    loaded = []
    for seed in range(dnas):
        vdna = get_vdna(f"histogram-{BINS}")
        vdna.feature_extractor_name = "random"
        layers = torch.split(torch.from_numpy(counts(seed)), NEURONS)
        vdna.data = {f"block_{i}": layer for i, layer in enumerate(layers)}
        vdna.neurons_list = dict.fromkeys(vdna.data, NEURONS)
        loaded.append(vdna)
    EMD(loaded[0], loaded[1])
    start = time.perf_counter()
    distances = [float(EMD(a, b)) for a, b in combinations(loaded, 2)]
    return {**_per_pair(len(distances), time.perf_counter() - start), "emd": distances}


def _product(dnas: int, reference_dnas: int) -> dict[str, Any]:
    """`pairwise_emd` of DNAs in memory, what `vdna compare` does of them once they are loaded (the
    curves of a layer, kept whole, and their distances), and the distances alone. The only place
    that knows its interface.
    """
    from pipeline import pairwise_emd
    from pipeline.comparing import Curves, distances
    from pipeline.counting import keep_memory
    from pipeline.dna import DNA, Ranges
    from pipeline.spec import Preprocess, Spec, Tap

    taps = tuple(Tap(f"block_{i}", NEURONS, 1) for i in range(LAYERS))
    edge = np.ones(LAYERS * NEURONS)
    ranges = Ranges(tuple((tap.name, tap.neurons) for tap in taps), -edge, edge)
    half = (0.5, 0.5, 0.5)
    spec = Spec("random", "0" * 64, taps, Preprocess(224, 224, half, half), ranges.digest, BINS)
    empty = replace(DNA.empty(spec, ranges), images=1)
    loaded = [replace(empty, counts=counts(seed).astype(np.int64)) for seed in range(dnas)]
    keep_memory()

    def layers(dnas: list[DNA]) -> Iterator[Curves]:
        for layer in spec.layers:
            yield Curves.of([dna.select([layer]) for dna in dnas])

    def means(layers: Iterable[Curves]) -> Any:
        sums = sum(distances(curves, curves, np.ones(NEURONS)) for curves in layers)
        return sums / (LAYERS * NEURONS)

    ways: tuple[tuple[Callable[..., Any], Callable[..., Any]], ...] = (
        (list, pairwise_emd),
        (list, lambda dnas: means(layers(dnas))),
        (lambda dnas: list(layers(dnas)), means),
    )
    few = np.triu_indices(reference_dnas, 1)
    found = {}
    for name, (prepare, work) in zip(WAYS, ways, strict=True):
        work(prepare(loaded[:2]))  # compiles
        ready = prepare(loaded)
        start = time.perf_counter()
        emd = work(ready)
        seconds = time.perf_counter() - start
        found[name] = _per_pair(dnas * (dnas - 1) // 2, seconds)
        found[name]["emd"] = emd[:reference_dnas, :reference_dnas][few].tolist()
    return found


def _per_pair(pairs: int, seconds: float) -> dict[str, Any]:
    return {
        "pairs": pairs,
        "seconds": round(seconds, 4),
        "pairs_per_second": round(pairs / seconds, 2),
    }


def reference_pairs(dnas: int = 5, tuned_malloc: bool = False) -> dict[str, Any]:
    """The reference's loop on all pairs of `dnas` random DNAs, in a fresh process."""
    settings = {"which": "reference", "dnas": dnas}
    return measure.run("benchmarks.emd_reference", settings, tuned_malloc=tuned_malloc)


def product_pairs(dnas: int = 40, reference_dnas: int = 5) -> dict[str, Any]:
    """The product on all pairs of `dnas` random DNAs; `emd` of the first `reference_dnas` only."""
    settings = {"which": "product", "dnas": dnas, "reference_dnas": reference_dnas}
    return measure.run("benchmarks.emd_reference", settings, tuned_malloc=True)


def _child(which: str, **settings: int) -> dict[str, Any]:
    return _reference(**settings) if which == "reference" else _product(**settings)


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_child)
    parser = argparse.ArgumentParser(description="time all pairs of distances")
    parser.add_argument("--dnas", type=int, default=40, help="for the product")
    parser.add_argument("--reference-dnas", type=int, default=5, help="for the reference")
    parser.add_argument("--reference-only", action="store_true")
    arguments = parser.parse_args()
    few, many = arguments.reference_dnas, arguments.dnas
    if few < 2 or many < few:
        parser.error("two DNAs at least, and no more for the reference than for the product")
    pairs = many * (many - 1) // 2
    rows = {
        "reference": reference_pairs(few),
        "reference_tuned_malloc": reference_pairs(few, tuned_malloc=True),
    }
    expected = rows["reference"]["emd"]
    line = f"EMD, {LAYERS * NEURONS} neurons x {BINS} bins, {pairs} pairs:"
    for name, row in rows.items():
        row["extrapolated_seconds"] = round(pairs / row["pairs_per_second"], 2)
        line += (
            f" {name} {row['pairs_per_second']} pairs/s on {row['pairs']}, "
            f"so {row['extrapolated_seconds']} s (extrapolated);"
        )
    result: dict[str, Any] = dict(rows)
    if not arguments.reference_only:
        found = product_pairs(many, few)
        for name in WAYS:
            product = found[name]
            error = np.max(np.abs(np.array(product["emd"]) / expected - 1))
            ratios = {
                of: round(row["extrapolated_seconds"] / product["seconds"], 1)
                for of, row in rows.items()
            }
            result[name] = product | {"ratio": ratios, "relative_error": float(error)}
            line += (
                f" product, {name}: {product['seconds']} s, measured, {ratios['reference']}x, "
                f"{ratios['reference_tuned_malloc']}x, {error:.1e} apart at most;"
            )
    measure.emit(result, line.rstrip(";"))


if __name__ == "__main__":
    main()
