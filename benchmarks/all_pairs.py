"""All pairs of many DNAs: the kernel against the adders' floor, and a catalogue of a thousand.

    python -m benchmarks.all_pairs kernel [--dnas 40,100,400] [--neurons 64]
    python -m benchmarks.all_pairs catalogue [--dnas 1000] [--neurons 160] [--folds 0]

`kernel` measures how many values one core compares per second of its CPU time, with cumulative
distributions that are made already and with those that are made on the way. Each is a share of the
floor: two float32 additions for each value, measured in the same run on rows that lie in the first
cache. A share above 1 is no error, because integers need one addition.

`catalogue` compares all pairs of random DNAs on disk. Then one DNA is changed, and they are
compared again. The time is modelled as loads x (`open` + values x `load`) + pairs x (values x
`compare` + planes x `estimate`); `estimate` counts only with folds. The first two are measured on
DNAs of two sizes. All are measured on a third of the DNAs, and checked on all of them. For larger
networks the script says what the model gives.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks import measure

BINS = 1000
REPEATS = 9
TIMES = 100_000
WIDER, WIDE = 8, 24
"""So many times as many neurons, in so many DNAs: what a load costs by the value."""
VIT_B = (768,) * 13
"""Neurons of its layers, after each block and the last norm; its weights are not at hand."""


@njit(nogil=True, fastmath=True, error_model="numpy")
def _additions(x: NDArray[np.float32], times: int) -> float:
    """Eight rows of `x` (6, n): two additions a value and nothing else, `times` over."""
    a0, a1, b0, b1, b2, b3 = x[0], x[1], x[2], x[3], x[4], x[5]
    total = np.float32(0)
    for _ in range(times):
        s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = np.float32(0)
        for k in range(x.shape[1]):
            u, v = a0[k], a1[k]
            s0 += u - b0[k]
            s1 += u - b1[k]
            s2 += u - b2[k]
            s3 += u - b3[k]
            t0 += v - b0[k]
            t1 += v - b1[k]
            t2 += v - b2[k]
            t3 += v - b3[k]
        total += (s0 + s1 + s2 + s3) * (t0 + t1 + t2 + t3)
        a0[0] += np.float32(1e-3)  # else the loop is done once
    return float(total)


def _best(work: Callable[[], object]) -> float:
    """Least CPU seconds of some runs: the machine may have other things to do."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


def kernel(dnas: list[int], neurons: int) -> dict[str, Any]:
    """In one thread, so that CPU time is the core's."""
    from pipeline.comparing import Curves, distances

    rows = np.random.default_rng(0).random((6, BINS), np.float32)
    _additions(rows, 1)

    def at(size: int) -> dict[str, Any]:
        count = max(1, neurons * max(dnas) // size)  # the same counts, in fewer DNAs
        counts = [
            np.random.default_rng(n).integers(0, 1000, (count, BINS)).astype(np.int64)
            for n in range(size)
        ]
        nothing = [np.zeros(count, np.int64)] * size
        weights = np.ones(count)
        curves = Curves.empty(count, size, BINS)

        def fill() -> None:
            curves.fill(0, counts, nothing, nothing)

        def compare() -> None:
            distances(curves, curves, weights, threads=1)

        fill()
        compare()
        values = size * (size - 1) // 2 * count * BINS
        floor = 8 * BINS * TIMES / _best(lambda: _additions(rows, TIMES))
        filling, comparing = _best(fill), _best(compare)
        return {
            "dnas": size,
            "neurons": count,
            "floor_values_per_second": floor,
            "values_per_second": values / comparing,
            "share_of_floor": round(values / comparing / floor, 3),
            "with_cumulation": round(values / (comparing + filling) / floor, 3),
        }

    return {"bins": BINS, "sizes": [at(size) for size in dnas]}


def catalogue(dnas: int, neurons: int, folds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _catalogue(folder, dnas, neurons, folds)


def _catalogue(folder: str, dnas: int, neurons: int, folds: int) -> dict[str, Any]:
    from pipeline import storage
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import compare, tiles
    from pipeline.networks import describe
    from pipeline.spec import available_cpus

    place = Catalogue(folder)
    store = Store(place, neurons, folds)
    start = time.perf_counter()
    store.commit({f"set/{n:04d}": store.put(f"set/{n:04d}", n) for n in range(dnas)})
    written = time.perf_counter() - start
    nothing = {"load": 0.0, "compare": 0.0, "estimate": 0.0, "loads": 0, "pairs": 0}
    spent = dict(nothing)
    real_load, real_distances, real_sums = tiles._Cache._load, tiles.distances, tiles.fold_sums
    real_estimates = tiles._estimates
    real_compute = tiles.compute

    def timed(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            begun = time.perf_counter()
            result = function(*arguments, **more)
            spent[what] += time.perf_counter() - begun
            return result

        return call

    def loading(shelf: Any, job: Any, members: Any, layer: str) -> Any:
        spent["loads"] += len(members) * job.spec.tap(layer).neurons / job.spec.neurons
        return timed("load", real_load)(shelf, job, members, layer)

    def counted(tile: tiles.Tile) -> tiles.Block:
        spent["pairs"] += tile.pairs
        return real_compute(tile)

    tiles._Cache._load = loading  # type: ignore[method-assign, assignment] - timed in its place
    tiles.distances = timed("compare", real_distances)
    tiles.fold_sums = timed("compare", real_sums)
    tiles._estimates = timed("estimate", real_estimates)
    tiles.compute = counted

    def run(names: list[str]) -> dict[str, Any]:
        spent.update(nothing)
        begun = time.perf_counter()
        compare(place, names, error_bars=bool(folds))
        return {"dnas": len(names) or dnas, "seconds": time.perf_counter() - begun, **spent}

    names = sorted(place.head().datasets)
    run(names[:4])  # compiles
    third = run(names[4 : 4 + dnas // 3])
    wide = Store(place, WIDER * neurons, folds)
    wide.commit({f"wide/{n}": wide.put(f"wide/{n}", n) for n in range(WIDE)})
    wider = run([f"wide/{n}" for n in range(WIDE)])
    for item in list(storage.walk(place.matrices_uri(store.spec.digest))):
        storage.delete(item.uri)
    whole = run([])
    store.commit({names[7]: store.put(names[7], dnas + 1)})
    changed = run([])
    values = neurons * BINS
    evaluations = 1 + tiles.NOISE_WORK if folds else 1
    each, of_wide = (row["load"] / row["loads"] for row in (third, wider))
    load = max(0.0, of_wide - each) / ((WIDER - 1) * values)
    opening = max(0.0, each - values * load)
    rate = third["compare"] / (third["pairs"] * values * evaluations)
    estimate = third["estimate"] / (third["pairs"] * (len(store.spec.layers) + 1))
    lite0 = [tap.neurons for tap in describe("efficientnet_lite0").taps]
    predicted = whole["loads"] * (opening + values * load)
    predicted += whole["pairs"] * values * evaluations * rate
    predicted += whole["pairs"] * (len(store.spec.layers) + 1) * estimate
    return {
        "neurons": neurons,
        "bins": BINS,
        "folds": folds,
        "cpus": available_cpus(),
        "write_seconds": written,
        "third": third,
        "whole": whole,
        "changed": changed,
        "open_ms": opening * 1e3,
        "load_ns_per_value": load * 1e9,
        "compare_ns_per_value": rate * 1e9,
        "estimate_ms_per_plane": estimate * 1e3,
        "predicted_busy_seconds": predicted,
        "measured_busy_seconds": whole["load"] + whole["compare"] + whole["estimate"],
        "modelled": {
            name: _model(1000, widths, store.spec, (opening, load, rate, estimate), bool(folds))
            for name, widths in {"efficientnet_lite0": lite0, "ViT-B": VIT_B}.items()
        },
    }


def _model(
    dnas: int,
    widths: Sequence[int],
    spec: Any,
    rates: tuple[float, float, float, float],
    folds: bool,
) -> dict[str, Any]:
    """Seconds of one core of this machine for all pairs of a network's DNAs, cut as `compare` does.

    `rates`: seconds to open a DNA, to load a value of it, to compare one, and to estimate what is
    known of a pair in one layer.
    """
    from pipeline.catalogue import Version
    from pipeline.comparing import tiles
    from pipeline.spec import Tap

    opening, load, rate, estimate = rates
    taps = tuple(Tap(str(n), width, 1) for n, width in enumerate(widths))
    spec = replace(spec, taps=taps)
    job = tiles.Job("memory://none", spec, spec.layers, True, error_bars=folds)
    none = Version("", "", "", 1, 0, (), {}, "", "", "", ())
    members = [(str(n), replace(none, dna=str(n))) for n in range(dnas)]
    opened = loaded = 0
    for tile in tiles.cut(job, [], members):
        opened += len({name for name, _ in (*tile.a, *tile.b)})
        for layer in spec.layers:
            before = None
            for step in tile.steps(layer):
                fresh = step.a != before
                beside = not (tile.square and step.a == step.b)
                before = step.a
                taken = len(step.a) * fresh + len(step.b) * beside
                loaded += taken * spec.tap(layer).neurons * BINS
    pairs, values, planes = dnas * (dnas - 1) // 2, spec.neurons * BINS, len(taps) + 1
    evaluations = 1 + tiles.NOISE_WORK if folds else 1
    one = opening + values * (load + evaluations * rate) + planes * estimate
    return {
        "neurons": spec.neurons,
        "side": job.side,
        "loads_of_each": round(loaded / values / dnas, 1),
        "load_seconds": round(opened * opening + loaded * load),
        "compare_seconds": round(pairs * values * evaluations * rate),
        "estimate_seconds": round(pairs * planes * estimate),
        "one_changed_seconds": round(dnas * one, 1),
    }


class Store:
    """Writes random DNAs as a build stores them, all versions in one commit."""

    def __init__(self, place: Any, neurons: int, folds: int) -> None:
        from pipeline.catalogue import canonical_json
        from pipeline.dna import DNA, Ranges
        from pipeline.spec import Numerics, Preprocess, Spec, Tap

        self.place, self.folds = place, folds
        widths = [neurons // 4, neurons - neurons // 4 - neurons // 2, neurons // 2]
        taps = tuple(Tap(f"block_{i}", width, 1) for i, width in enumerate(widths))
        edge = np.ones(neurons)
        ranges = Ranges(tuple((tap.name, tap.neurons) for tap in taps), -edge, edge)
        half = (0.5, 0.5, 0.5)
        self.spec = Spec(
            "random", "0" * 64, taps, Preprocess(8, 8, half, half), ranges.digest, BINS
        )
        self.empty = DNA.empty(self.spec, ranges)
        self.numerics = Numerics("cpu", False, False, 8, 1, ())
        from pipeline import storage

        storage.create(place.spec_uri(self.spec.digest), canonical_json(self.spec.to_json()))

    def random(self, seed: int, images: int) -> Any:
        rng = np.random.default_rng(seed)
        at = np.clip(rng.normal(rng.uniform(300, 700), 150, (self.spec.neurons, images)), 0, 999)
        rows = np.arange(self.spec.neurons)[:, None] * BINS + at.astype(np.int64)
        counts = np.bincount(rows.ravel(), minlength=self.spec.neurons * BINS)
        return replace(
            self.empty,
            images=images,
            counts=counts.reshape(-1, BINS),
            numerics=((self.numerics, images),),
        )

    def put(self, name: str, seed: int) -> Any:
        from functools import reduce

        import pyarrow as pa

        from pipeline import storage
        from pipeline.catalogue import Version, footers_of
        from pipeline.dna import DNA, dna_metadata, encode_layers, to_table

        digest = hashlib.sha256(f"{name} {seed}".encode()).hexdigest()[:32]
        parts = [
            self.random(seed * 64 + n, 5000 // max(1, self.folds))
            for n in range(max(1, self.folds))
        ]
        dna = reduce(DNA.__add__, parts)
        shared = {"dataset": name, "digest": digest, "manifest": "none"}
        kinds = {"dna": ([to_table(dna.select([la])) for la in dna.layers], {})}
        if self.folds:
            tables = [
                pa.concat_tables(to_table(p.select([la]), n) for n, p in enumerate(parts))
                for la in dna.layers
            ]
            heads = {
                str(n): {k: dna_metadata(p)[k] for k in ("images", "failed", "numerics")}
                for n, p in enumerate(parts)
            }
            kinds["folds"] = (tables, {"folds": heads})
        files, sha256 = {}, {}
        for kind, (tables, more) in kinds.items():
            data = encode_layers(kind, dna_metadata(dna, **shared, **more), tables)
            storage.create(self.place.uri(kind, self.spec.digest, name, digest), data)
            files[kind] = data
            sha256[kind] = hashlib.sha256(data).hexdigest()
        numerics = tuple(dna_metadata(dna)["numerics"])
        origin = {"file": "random", "software": "benchmark", "notes": []}
        return Version(
            digest,
            "none",
            self.spec.digest,
            dna.images,
            0,
            (),
            sha256,
            "",
            "",
            "",
            numerics,
            origin,
            footers_of(files),
            transparent=dna.transparent,
            single_colour=dna.single_colour,
        )

    def commit(self, versions: Mapping[str, Any]) -> None:
        def change(head: Any) -> Any:
            new = {name: {self.spec.digest: version} for name, version in versions.items()}
            return replace(
                head,
                default_spec=head.default_spec or self.spec.digest,
                datasets={**head.datasets, **new},
            )

        self.place.append("random", change)


def _child(which: str, **settings: Any) -> dict[str, Any]:
    return kernel(**settings) if which == "kernel" else catalogue(**settings)


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(_child)
    parser = argparse.ArgumentParser(description="time all pairs of many DNAs")
    parser.add_argument("which", choices=("kernel", "catalogue"))
    parser.add_argument("--dnas")
    parser.add_argument("--neurons", type=int)
    parser.add_argument("--folds", type=int, default=0, help="of each DNA, compared too")
    chosen = parser.parse_args()
    if chosen.which == "kernel":
        sizes = [int(size) for size in (chosen.dnas or "40,100,400").split(",")]
        settings: dict[str, Any] = {"dnas": sizes, "neurons": chosen.neurons or 64}
    else:
        settings = {
            "dnas": int(chosen.dnas or 1000),
            "neurons": chosen.neurons or 160,
            "folds": chosen.folds,
        }
    result = measure.run(
        "benchmarks.all_pairs", {"which": chosen.which, **settings}, tuned_malloc=True
    )
    measure.emit(result, _line(chosen.which, result))


def _line(which: str, result: dict[str, Any]) -> str:
    if which == "kernel":
        return "share of the adders' floor, of one core: " + "; ".join(
            f"{size['dnas']} DNAs {size['share_of_floor']:.2f} "
            f"({size['with_cumulation']:.2f} with the cumulative sums)"
            for size in result["sizes"]
        )
    whole, changed = result["whole"], result["changed"]
    return (
        f"{whole['dnas']} DNAs of {result['neurons']} x {result['bins']}, {result['folds']} folds: "
        f"{whole['pairs']:,} pairs in {whole['seconds']:.1f} s (loading {whole['load']:.1f}, "
        f"comparing {whole['compare']:.1f}, estimating {whole['estimate']:.1f}; the model says "
        f"{result['predicted_busy_seconds']:.1f} together); one changed: "
        f"{changed['pairs']:,} pairs in {changed['seconds']:.1f} s; "
        f"peak {result['peak_mb']} MB"
    )


if __name__ == "__main__":
    main()
