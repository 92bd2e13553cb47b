"""Ranking a folder's images against a dataset: images/s beside a build of the same folder.

    python -m benchmarks.ranking FOLDER [--threads 2] [--rounds 3]

Everything runs in process. Each row has one extractor, which one image warms up. Rows take turns,
and the best of each counts. Rows:

    build       a partial of every shard, as `vdna build` makes and commits them
    rank        the distance of every image to a DNA of the same folder, all neurons
    score       the same, held against a background of two datasets, as `vdna rank` does by itself
    lens        the same through a lens of 20 neurons of the last layer

`kernel` has the nanoseconds for one neuron of one image of random activations, by steps and by the
walk over all 1,000 bins, for layers of different numbers of positions. It also says which of the
two is taken.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.counting import LayerCounts
from pipeline.dna import Lens
from pipeline.engine import InProcess
from pipeline.explaining import RankRequest, rank
from pipeline.explaining import image_emd as nearness
from pipeline.explaining.rank_request import RankedBy
from pipeline.spec import Resources

LAYERS = {1: 2048, 49: 1280, 100: 1280, 197: 768, 784: 40, 12544: 32}
"""Positions -> neurons."""
BINS = 1000


def rates(folder: Path, threads: int, rounds: int) -> dict[str, float]:
    resources = Resources(workers=0, threads=threads, backend="torch")
    with tempfile.TemporaryDirectory() as scratch:
        place, engine = Catalogue(f"{scratch}/near"), InProcess()
        made = [Request("near", str(folder)), Request("other", str(folder), limit=100)]
        build_datasets(place, made, engine, resources)
        spec = place.spec(place.find("near").spec)
        lens = Lens.chosen(spec, [f"{spec.layers[-1]}:0-19"])
        engines = {name: InProcess() for name in ("build", "rank", "score", "lens")}

        def build(turn: str, limit: int | None) -> int:
            request = Request("again", str(folder), exemplars=0, limit=limit)
            own = Catalogue(f"{scratch}/{turn}")
            (result,) = build_datasets(own, [request], engines["build"], resources)
            return result.version.images

        def ranked(
            name: str, through: Lens | None, order: RankedBy = "emd"
        ) -> Callable[[str, int | None], int]:
            def run(turn: str, limit: int | None) -> int:
                work = Path(f"{scratch}/near/_work/_ranks")
                if work.exists():  # else there is nothing left to do
                    work.rename(f"{scratch}/done-{name}-{turn}")
                request = RankRequest(str(folder), "near", limit=limit, order=order)
                engine = engines[name]
                return rank(place, request, engine, lens=through, resources=resources).ranked

            return run

        rows = {
            "build": build,
            "rank": ranked("rank", None),
            "score": ranked("score", None, "score"),
            "lens": ranked("lens", lens),
        }
        best = dict.fromkeys(rows, 0.0)
        for turn in range(rounds + 1):
            for name, run in rows.items():
                start = time.perf_counter()
                images = run(f"{name}-{turn}", None if turn else 1)
                if turn:
                    best[name] = max(best[name], images / (time.perf_counter() - start))
        for each in (engine, *engines.values()):
            each.close()
    return {name: round(rate, 2) for name, rate in best.items()}


def kernel(positions: int, neurons: int, repeats: int = 30) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    low, high = np.full(neurons, -4.0), np.full(neurons, 4.0)
    dataset = LayerCounts(low, high, BINS)
    for _ in range(20):
        dataset.add(rng.normal(0.3, 1.2, (1, positions, neurons)).astype(np.float32))
    image = rng.normal(size=(1, positions, neurons)).astype(np.float32)
    taken = nearness.FEW
    found: dict[str, Any] = {}
    for name, few in (("steps", 0), ("walk", 10**9)):
        nearness.FEW = few
        near = nearness.LayerEmd(low, high, dataset.table[None, :, :BINS], positions)
        near.distances(image)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            near.distances(image)
            seconds.append(time.perf_counter() - start)
        found[name] = round(min(seconds) / neurons * 1e9, 1)
    nearness.FEW = taken
    found["taken"] = "steps" if positions * taken <= BINS else "walk"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="rank beside build")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found = rates(arguments.folder.resolve(strict=True), arguments.threads, arguments.rounds)
    kernels = {positions: kernel(positions, neurons) for positions, neurons in LAYERS.items()}
    ratio = {name: round(found[name] / found["build"], 2) for name in ("rank", "score", "lens")}
    faster = {p: round(row["walk"] / row["steps"], 2) for p, row in kernels.items()}
    measure.emit(
        {"images_per_second": found, "ratio": ratio, "kernel": kernels},
        ", ".join(f"{name} {rate} images/s" for name, rate in found.items())
        + "; "
        + ", ".join(f"{name}/build {each}x" for name, each in ratio.items())
        + "; steps against walk, by positions: "
        + ", ".join(f"{p}: {each}x" for p, each in faster.items()),
    )


if __name__ == "__main__":
    main()
