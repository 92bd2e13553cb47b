"""Where the seconds of a small build go, from the shell's command to its end.

    python -m benchmarks.start_up FOLDER [--limit 60 1200] [--rounds 3]
    python -m benchmarks.start_up FOLDER --timeline        # of the first image on Ray

Each round builds the first images of the folder twice into an empty catalogue, on Ray and in one
process (`--workers 0`), and reads the times that the command's own log states. `ratio` is how many
times as long the build on Ray took. The least of each over all rounds is reported, as whatever runs
beside it only adds to a time. With several limits there is one result for each, in a list.

`--timeline` builds one image on Ray, and says what its seconds were spent on until it was counted;
then what a script takes that only starts Ray and calls an actor, which imports nothing of this
product.

For the parts of these times, each Python process notes when it starts, when it imports a library,
and when it has loaded a network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import measure

ENGINES = {"in one process": ("--workers", "0"), "on Ray": ()}

NOTES = """
import importlib.abc, os, sys, time

NOTED = "pipeline.counting.extractor", "pipeline.engine.shard_actor", "torch", "openvino"

def note(what):
    with open({file!r}, "a") as notes:
        notes.write(f"{{time.time()}} {{os.getpid()}} {{what}}\\n")

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in NOTED:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: noted(name, run, module)
        return spec

def noted(name, run, module):
    note(name)
    run(module)
    note(name + " imported")
    if name == "pipeline.counting.extractor":
        load = module.Extractor.__init__
        def __init__(self, *given, **named):
            load(self, *given, **named)
            note("network")
        module.Extractor.__init__ = __init__

note("process")
sys.meta_path.insert(0, Finder())
"""
"""A `sitecustomize.py`, which each Python process runs first."""

BARE_RAY = """
import json, os, time
import ray
imported = time.time()
cpus = len(os.sched_getaffinity(0)) + 1
ray.init(address="local", num_cpus=cpus, include_dashboard=False, object_store_memory=2**28)

@ray.remote
class Actor:
    def process(self):
        return os.getpid()

pid = ray.get(Actor.remote().process.remote())
print(json.dumps([imported, pid, time.time()]))
"""
"""Starts Ray as this product does on one machine, and calls an actor."""


@dataclass(frozen=True)
class Ran:
    """A command that has ended. Times are in seconds since the epoch.

    Attributes:
        began: When it began.
        printed: When the first line of its result came.
        ended: When its process had ended.
        result: That line.
        log: The lines of its log, each with its time.
        notes: What its processes noted: the time, the process, and what.
    """

    began: float
    printed: float
    ended: float
    result: str
    log: list[tuple[float, dict[str, Any]]]
    notes: list[tuple[float, str, str]]

    def told(self, **fields: str) -> list[float]:
        """When events were told that have these fields."""
        return [when for when, line in self.log if fields.items() <= line.items()]

    def said(self, words: str) -> float:
        """When a message was first said that begins with these words."""
        return next(when for when, line in self.log if line["message"].startswith(words))

    def noted(self, process: str) -> dict[str, float]:
        """What a process noted, with the first time of each."""
        return {what: when for when, pid, what in reversed(self.notes) if pid == process}


def ran(*command: str) -> Ran:
    """Runs a command of Python, whose processes note what they do."""
    with tempfile.TemporaryDirectory() as scratch:
        notes, log = Path(scratch, "notes"), Path(scratch, "log")
        Path(scratch, "sitecustomize.py").write_text(NOTES.format(file=str(notes)))
        paths = [scratch, str(measure.ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        began = time.time()
        with (
            log.open("w") as stderr,
            subprocess.Popen(
                (sys.executable, *command),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment,
            ) as child,
        ):
            assert child.stdout is not None
            result = child.stdout.readline()
            printed = time.time()
            child.stdout.read()
        ended = time.time()
        said = log.read_text()
        if child.returncode:
            raise RuntimeError(f"{command} exited with {child.returncode}: {said[-3000:]}")
        noted = [line.split(maxsplit=2) for line in notes.read_text().splitlines()]
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    return Ran(
        began,
        printed,
        ended,
        result,
        [(datetime.fromisoformat(line["time"]).timestamp(), line) for line in lines],
        [(float(when), pid, what) for when, pid, what in noted],
    )


def built(folder: str, limit: int, engine: tuple[str, ...]) -> Ran:
    """Builds the first images of a folder into an empty catalogue."""
    with tempfile.TemporaryDirectory() as catalogue:
        options = ("-c", catalogue, "--limit", str(limit), "--log-format", "json", *engine)
        return ran("-m", "jobs.build", "images", folder, *options)


def spans(began: float, marks: dict[str, float]) -> dict[str, float]:
    """The seconds before each mark, since the one before it."""
    between = pairwise([began, *marks.values()])
    return {name: end - start for name, (start, end) in zip(marks, between, strict=True)}


def seconds_of(folder: str, limit: int, engine: tuple[str, ...]) -> dict[str, float]:
    """Builds a dataset, and returns how long each stage took.

    Args:
        folder: The images.
        limit: How many of them.
        engine: The options that choose where the shards run.

    Returns:
        What `stages_of` returns.
    """
    return stages_of(built(folder, limit, engine))


def stages_of(build: Ran) -> dict[str, float]:
    """How long each stage of a build took.

    Returns:
        Seconds. `start` lasts until the source is listed; `plan` until the shards are handed out;
        `load` until the first of them is counted, Ray's own start included; `count` until the last
        is, and `commit` until the command has ended.
    """
    counted = build.told(event="StepDone")
    marks = {
        "start": build.said("images: listing"),
        "plan": build.told(event="Started")[0],
        "load": counted[0],
        "count": counted[-1],
        "commit": build.ended,
    }
    return {**spans(build.began, marks), "whole": build.ended - build.began}


def parts_of_load(build: Ran, began: float) -> dict[str, float]:
    """What the seconds until the first shard was counted were spent on.

    Args:
        build: The build.
        began: What is before that is left out.

    Returns:
        Seconds, one after the other. `Ray` is Ray's start until that of a worker's process;
        `worker` is that, with the libraries of Ray; `pipeline` is the import of this product, and
        the shard's claim. `torch` and `openvino` are their imports, and `weights` is the loading
        of the network between them. `network` is its loading by OpenVINO, and the comparison of
        both; `shard` is the first shard.
    """
    worker = next(pid for _, pid, what in build.notes if what == "network")
    noted = build.noted(worker)
    ends = {
        "Ray": "process",
        "worker": "pipeline.engine.shard_actor",
        "pipeline": "torch",
        "torch": "torch imported",
        "weights": "openvino",
        "openvino": "openvino imported",
        "network": "network",
    }
    marks = {name: noted[what] for name, what in ends.items() if noted.get(what, 0) > began}
    return spans(began, {**marks, "shard": build.told(event="StepDone")[0]})


def parts_of_commit(build: Ran) -> dict[str, float]:
    """What the seconds after the last shard were spent on.

    Returns:
        Seconds, one after the other. `merge` adds the shards up and encodes the sums; `store` lasts
        until the commit is there; `close` until the command prints its result, which is after Ray
        has ended; and `exit` until its process has ended.
    """
    marks = {
        "merge": build.told(event="PhaseEnded", phase="merging")[0],
        "store": build.told(event="PhaseEnded", phase="committing")[0],
        "close": build.printed,
        "exit": build.ended,
    }
    return spans(build.told(event="StepDone")[-1], marks)


def least(runs: list[dict[str, float]]) -> dict[str, float]:
    """The least of each number over all runs."""
    return {name: round(min(run[name] for run in runs), 2) for name in runs[0]}


def start_up(folder: str, limit: int, rounds: int) -> dict[str, Any]:
    """The least seconds of each stage and engine, over so many rounds, and the ratio of the two."""
    builds: dict[str, list[Ran]] = {name: [] for name in ENGINES}
    for _ in range(rounds):
        for name, engine in ENGINES.items():
            builds[name].append(built(folder, limit, engine))
    seconds = {name: least([stages_of(run) for run in runs]) for name, runs in builds.items()}
    parts = {
        name: {
            "load": least([parts_of_load(run, run.told(event="Started")[0]) for run in runs]),
            "commit": least([parts_of_commit(run) for run in runs]),
        }
        for name, runs in builds.items()
    }
    whole = [seconds[name]["whole"] for name in ENGINES]
    ratio = round(whole[1] / whole[0], 2)
    return {"images": limit, "seconds": seconds, "parts": parts, "ratio": ratio}


def timeline(folder: str) -> dict[str, dict[str, float]]:
    """Builds one image on Ray, and starts a Ray that has nothing to do with this product.

    Args:
        folder: The images.

    Returns:
        Seconds, one after the other. `first image`: until the image was counted. `command` is what
        the command does before it starts Ray; the others are those of `parts_of_load`.
        `bare Ray`: `command` is Python and the import of Ray; `Ray` lasts until the actor's process
        begins, `worker` until the actor's method has returned, and `end` until all has ended.
    """
    build = built(folder, 1, ())
    starting = build.said("starting Ray")
    bare = ran("-c", BARE_RAY)
    imported, actor, called = json.loads(bare.result)
    marks = {
        "command": imported,
        "Ray": bare.noted(str(actor))["process"],
        "worker": called,
        "end": bare.ended,
    }
    found = {
        "first image": {"command": starting - build.began, **parts_of_load(build, starting)},
        "bare Ray": spans(bare.began, marks),
    }
    return {name: least([seconds]) for name, seconds in found.items()}


def main() -> None:
    """Prints the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", help="a folder of images")
    parser.add_argument("--limit", type=int, nargs="+", default=[60])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeline", action="store_true", help="of the first image on Ray")
    given = parser.parse_args()
    if given.timeline:
        print(json.dumps(timeline(given.folder), indent=2))
        return
    found = [start_up(given.folder, limit, given.rounds) for limit in given.limit]
    print(json.dumps(found if len(found) > 1 else found[0], indent=2))


if __name__ == "__main__":
    main()
