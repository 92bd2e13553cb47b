"""Where the time of an image goes, on one core: read, decode, hash, resize, forward, count.

    python -m benchmarks.stages FOLDER [--backend torch] [--limit 400] [--pillow]

One thread of `make_dna` does everything, so that the times add up. They are CPU time, in
milliseconds an image: what a core spends, whatever else runs beside it. `rest` is what no stage
accounts for: planning, merging, and handing images from thread to thread. `start` is spent once,
on loading the network. Images are hashed as `vdna build` does, though `make_dna` does not.
`--pillow` has Pillow decode all JPEGs, as it did before libjpeg-turbo took most of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

from pipeline import images, make_dna
from pipeline.counting import histogram
from pipeline.counting.extractor import Extractor
from pipeline.images import decoding, loading
from pipeline.sources import Members
from pipeline.spec import Backend

STAGES: dict[str, tuple[Any, str]] = {
    "start": (Extractor, "__init__"),
    "read": (Members, "fetch"),
    "decode": (loading, "decode"),
    "hash": (loading, "hash_image"),
    "resize": (loading, "prepare"),
    "observe": (Extractor, "observe"),
    "count": (histogram.LayerCounts, "add"),
}
"""The function of each stage. The forward pass is what `observe` takes beside the count."""


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Adds the CPU time of each stage's function to `spent`, while the block runs."""
    before = {name: getattr(*place) for name, place in STAGES.items()}
    lock, starting = threading.Lock(), threading.Event()

    def around(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            if starting.is_set():  # the network is tried once as it is loaded
                return function(*positional, **named)
            if name == "start":
                starting.set()
            began = time.thread_time()
            try:
                return function(*positional, **named)
            finally:
                with lock:
                    spent[name] += time.thread_time() - began
                if name == "start":
                    starting.clear()

        return call

    for name, (place, attribute) in STAGES.items():
        setattr(place, attribute, around(name, before[name]))
    load = images.load

    def hashing(data: bytes, rule: Any, on_device: bool, _: bool) -> Any:
        """Loads an image as a build does that keeps image hashes, whoever asks."""
        return load(data, rule, on_device, hashed=True)

    images.load = hashing
    try:
        yield
    finally:
        images.load = load
        for name, (place, attribute) in STAGES.items():
            setattr(place, attribute, before[name])


def stages(folder: str, backend: Backend, limit: int | None) -> dict[str, Any]:
    """Milliseconds of CPU time an image and stage, and what part of the whole each is."""
    make_dna(folder, backend=backend, threads=1, limit=1)  # compiles, and converts the network
    spent: dict[str, float] = defaultdict(float)
    began = time.process_time()
    with timed(spent):
        counted = make_dna(folder, backend=backend, threads=1, limit=limit).images
    whole = time.process_time() - began
    start = spent.pop("start")
    spent["forward"] = spent.pop("observe") - spent["count"]
    spent["rest"] = whole - start - sum(spent.values())
    order = ("read", "decode", "hash", "resize", "forward", "count", "rest")
    return {
        "images": counted,
        "start_seconds": round(start, 2),
        "milliseconds": {name: round(1000 * spent[name] / counted, 2) for name in order},
        "share": {name: round(spent[name] / (whole - start), 3) for name in order},
    }


def main() -> None:
    """Measures one backend, or all that are installed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--backend", choices=get_args(Backend), nargs="+", default=["torch"])
    parser.add_argument("--limit", type=int, help="images, of all in the folder")
    parser.add_argument("--pillow", action="store_true", help="decode JPEGs by Pillow alone")
    arguments = parser.parse_args()
    if arguments.pillow:
        vars(decoding)["suits"] = lambda *_: False
    result = {}
    for backend in arguments.backend:
        result[backend] = stages(arguments.folder, backend, arguments.limit)
        parts = ", ".join(f"{k} {v}" for k, v in result[backend]["milliseconds"].items())
        print(f"{backend}, ms an image: {parts}", file=sys.stderr)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
