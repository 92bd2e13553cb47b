"""Where the seconds of a small build go, from the shell's command to its end.

    python -m benchmarks.start_up FOLDER [--limit 60] [--rounds 3]
    python -m benchmarks.start_up FOLDER --timeline        # of the first image on Ray

Each round builds the first images of the folder twice into an empty catalogue, on Ray and in one
process (`--workers 0`), and reads the times that the command's own log states. `ratio` is how many
times as long the build on Ray took. The least of each over all rounds is reported, as whatever runs
beside it only adds to a time.

`--timeline` builds one image on Ray, and says what its seconds were spent on until it was counted.
For that, each Python process notes when it starts and when it imports a library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import measure

ENGINES = {"in one process": ("--workers", "0"), "on Ray": ()}

NOTES = """
import importlib.abc, os, sys, time

def note(what):
    with open({file!r}, "a") as notes:
        notes.write(f"{{time.time()}} {{os.getpid()}} {{what}}\\n")

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("pipeline.engine.shard_actor", "torch", "openvino"):
            note(name)

note("process")
sys.meta_path.insert(0, Finder())
"""
"""A `sitecustomize.py`, which each Python process runs first."""


def seconds_of(folder: str, limit: int, engine: tuple[str, ...]) -> dict[str, float]:
    """Builds a dataset, and returns how long each stage took.

    Args:
        folder: The images.
        limit: How many of them.
        engine: The options that choose where the shards run.

    Returns:
        Seconds. `start` lasts until the source is listed, Ray's own start included; `plan` until
        the shards are handed out; `load` until the first of them is counted, `count` until the last
        is, and `commit` until the command has ended.
    """
    with tempfile.TemporaryDirectory() as catalogue:
        options = ("-c", catalogue, "--limit", str(limit), "--log-format", "json", *engine)
        command = (sys.executable, "-m", "jobs.build", "images", folder, *options)
        began = time.time()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        ended = time.time()
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    at = [(datetime.fromisoformat(line["time"]).timestamp(), line) for line in lines]
    listed = next(when for when, line in at if line["message"].startswith("images: listing"))
    planned = next(when for when, line in at if line.get("event") == "Started")
    counted = [when for when, line in at if line.get("event") == "StepDone"]
    return {
        "start": listed - began,
        "plan": planned - listed,
        "load": counted[0] - planned,
        "count": counted[-1] - counted[0],
        "commit": ended - counted[-1],
        "whole": ended - began,
    }


def start_up(folder: str, limit: int, rounds: int) -> dict[str, Any]:
    """The least seconds of each stage and engine, over so many rounds, and the ratio of the two."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    for _ in range(rounds):
        for name, engine in ENGINES.items():
            found[name].append(seconds_of(folder, limit, engine))
    seconds = {
        name: {stage: round(min(of[stage] for of in runs), 2) for stage in runs[0]}
        for name, runs in found.items()
    }
    whole = [seconds[name]["whole"] for name in ENGINES]
    return {"images": limit, "seconds": seconds, "ratio": round(whole[1] / whole[0], 2)}


def timeline(folder: str) -> dict[str, float]:
    """Builds one image on Ray.

    Args:
        folder: The images.

    Returns:
        Seconds, one after the other, until the image was counted. `command` is what the command
        does before it starts Ray; `Ray` is Ray's start; `worker` is a worker's start, with the
        libraries of Ray; `pipeline` is the import of this product; `torch` that of torch; `network`
        is the rest: the libraries that run the network, its loading, and the image.
    """
    with tempfile.TemporaryDirectory() as scratch:
        notes = Path(scratch, "notes")
        Path(scratch, "sitecustomize.py").write_text(NOTES.format(file=str(notes)))
        paths = [scratch, str(measure.ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        options = ("-c", f"{scratch}/dnas", "--limit", "1", "--log-format", "json")
        command = (sys.executable, "-m", "jobs.build", "images", folder, *options)
        began = time.time()
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        noted = [line.split(maxsplit=2) for line in notes.read_text().splitlines()]
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    at = [(datetime.fromisoformat(line["time"]).timestamp(), line) for line in lines]
    starting = next(when for when, line in at if line["message"].startswith("starting Ray"))
    counted = next(when for when, line in at if line.get("event") == "StepDone")
    worker = next(pid for _, pid, what in noted if what == "torch")  # the command imports none
    times = {what: float(when) for when, pid, what in reversed(noted) if pid == worker}
    marks = {
        "command": starting,
        "Ray": times["process"],
        "worker": times["pipeline.engine.shard_actor"],
        "pipeline": times["torch"],
        "torch": times.get("openvino", counted),
        "network": counted,
    }
    spans = pairwise([began, *marks.values()])
    return {name: round(end - start, 2) for name, (start, end) in zip(marks, spans, strict=True)}


def main() -> None:
    """Prints the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", help="a folder of images")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeline", action="store_true", help="of the first image on Ray")
    given = parser.parse_args()
    if given.timeline:
        print(json.dumps(timeline(given.folder), indent=2))
        return
    print(json.dumps(start_up(given.folder, given.limit, given.rounds), indent=2))


if __name__ == "__main__":
    main()
