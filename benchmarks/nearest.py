"""The nearest of one DNA among many, beside computing every distance.

    python -m benchmarks.nearest [--dnas 400] [--neurons 640] [--top 20] [--groups 20] [--folds 0]

The DNAs are random, and lie on disk as a build stores them. Those of a group are alike: each neuron
has a place that the group shares, from which a DNA's own is a few bins off. They were read once
before, so the disk takes no part. Four things are timed, in CPU time and by the clock:

- `brute`: every distance of one DNA, and the nearest of them;
- `first`: the search when nothing is kept yet, which makes the coarse curves of all;
- `later`: the search of other DNAs afterwards, the mean of several;
- `graph`: the five nearest of each DNA, beside `matrix`, the distances of all pairs.

The nearest are checked to be the same. With `--folds 16`, error bars of the nearest are computed
on both sides of the first comparison, and of all pairs for the matrix.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks import measure

SEARCHES = 5
"""Later searches, each of another DNA."""

GRAPH_TOP = 5


def work(dnas: int, neurons: int, top: int, groups: int, folds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return _timed(folder, dnas, neurons, top, groups, folds)


def _timed(
    folder: str, dnas: int, neurons: int, top: int, groups: int, folds: int
) -> dict[str, Any]:
    from benchmarks.random_catalogue import RandomCatalogue
    from pipeline.catalogue import Catalogue
    from pipeline.comparing import Effort, compare, nearest

    place = Catalogue(folder)
    widths = neurons // 4, neurons // 4, neurons - 2 * (neurons // 4)
    random = RandomCatalogue(place, widths, folds, groups)
    random.add({f"set/{n:04d}": n for n in range(dnas)})
    names = sorted(place.head().datasets)
    bars = bool(folds)

    def timed(question: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        start, cpu = time.perf_counter(), time.process_time()
        found = question()
        spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        return found, spent

    def every(name: str) -> Any:
        found = nearest(place, near=name, error_bars=False, effort=Effort(keep=False))
        if bars:
            chosen = [name, *found.around(name).names[1 : top + 1]]
            nearest(place, chosen, near=name, top=top)
        return found

    compare(place, names[:4], error_bars=bars, effort=Effort(keep=False))  # compiles
    every(names[1])
    whole, brute = timed(lambda: every(names[0]))
    found, first = timed(lambda: nearest(place, near=names[0], top=top, error_bars=bars))
    if found.edges != whole.edges[:top]:
        raise RuntimeError(f"the search found {found.edges}, not {whole.edges[:top]}")
    later, computed = [], []
    for name in names[1 : SEARCHES + 1]:
        ask = partial(nearest, place, near=name, top=top, error_bars=bars)
        one, spent = timed(ask)
        later.append(spent)
        computed.append(one.computed)
    graph, of_graph = timed(lambda: nearest(place, top=GRAPH_TOP, error_bars=bars))
    _, of_matrix = timed(lambda: compare(place, error_bars=bars, effort=Effort(keep=False)))
    mean = {key: float(np.mean([spent[key] for spent in later])) for key in brute}
    return {
        "dnas": dnas,
        "neurons": neurons,
        "folds": folds,
        "top": top,
        "groups": groups,
        "pairs": whole.pairs,
        "computed": computed,
        "graph_pairs": graph.pairs,
        "graph_computed": graph.computed,
        "brute": brute,
        "first": first,
        "later": mean,
        "graph": of_graph,
        "matrix": of_matrix,
        "rows": {
            "first": {"ratio": {"cpu": round(brute["cpu"] / first["cpu"], 2)}},
            "later": {"ratio": {"cpu": round(brute["cpu"] / mean["cpu"], 2)}},
            "graph": {"ratio": {"cpu": round(of_matrix["cpu"] / of_graph["cpu"], 2)}},
        },
    }


def main() -> None:
    if sys.argv[1:] == ["--child"]:
        return measure.answer(work)
    parser = argparse.ArgumentParser(description="time a search for the nearest of many DNAs")
    parser.add_argument("--dnas", type=int, default=400)
    parser.add_argument("--neurons", type=int, default=640)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--groups", type=int, default=20)
    parser.add_argument("--folds", type=int, default=0, help="of each DNA, for error bars")
    chosen = vars(parser.parse_args())
    result = measure.run("benchmarks.nearest", chosen, tuned_malloc=True)
    rows = result["rows"]
    line = ", ".join(f"{name} {row['ratio']['cpu']}x" for name, row in rows.items())
    measure.emit(result, f"fewer CPU seconds than computing every distance: {line}")


if __name__ == "__main__":
    main()
