"""All pairs of distances: the reference's loop over EMD, and the product's matrix.

    python -m benchmarks.emd_reference [--dnas 40] [--reference-dnas 5]

The reference is timed on every pair of a few DNAs, with both allocators, and extrapolated by the
pair to all of them, which it takes no shortcut for; its time is `extrapolated`, never measured.
The product is timed on all of them. Both start from counts in memory and end in the mean over
neurons; the few DNAs that both have seen must agree.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import measure

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
    """What `vdna compare` does of counts that are loaded: curves of a layer, and their distances.

    The only place that knows its interface.
    """
    from pipeline.allocator import keep_memory
    from pipeline.dna import DNA, Ranges
    from pipeline.pairwise import Curves, distances
    from pipeline.spec import Preprocess, Spec, Tap

    taps = tuple(Tap(f"block_{i}", NEURONS, 1) for i in range(LAYERS))
    edge = np.ones(LAYERS * NEURONS)
    ranges = Ranges(tuple((tap.name, tap.neurons) for tap in taps), -edge, edge)
    half = (0.5, 0.5, 0.5)
    spec = Spec("random", "0" * 64, taps, Preprocess(224, 224, half, half), ranges.digest, BINS)
    empty = DNA.empty(spec, ranges)
    loaded = [replace(empty, counts=counts(seed).astype(np.int64)) for seed in range(dnas)]
    keep_memory()

    def compare(dnas: list[DNA], layer: str) -> Any:
        curves = Curves.of([dna.select([layer]) for dna in dnas])
        return distances(curves, curves, np.ones(NEURONS))

    compare(loaded[:2], "block_0")  # compiles
    sums = np.zeros((dnas, dnas))
    start = time.perf_counter()
    for layer in spec.layers:
        sums += compare(loaded, layer)
    seconds = time.perf_counter() - start
    means = sums[:reference_dnas, :reference_dnas] / (LAYERS * NEURONS)
    few = np.triu_indices(reference_dnas, 1)
    return {**_per_pair(dnas * (dnas - 1) // 2, seconds), "emd": means[few].tolist()}


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
        product = product_pairs(many, few)
        error = np.max(np.abs(np.array(product["emd"]) / expected - 1))
        ratios = {
            name: round(row["extrapolated_seconds"] / product["seconds"], 1)
            for name, row in rows.items()
        }
        result |= {"product": product, "ratio": ratios, "relative_error": float(error)}
        line += (
            f" product {product['seconds']} s, measured: {ratios['reference']}x, "
            f"{ratios['reference_tuned_malloc']}x; they differ by {error:.1e} at most"
        )
    measure.emit(result, line)


if __name__ == "__main__":
    main()
