"""How much of a cluster's work is left when a node dies every minute: its goodput.

    python -m benchmarks.chaos [--shards 300] [--nodes 3] [--seconds 2] [--between 60]

Ray nodes on this machine declare a GPU each, which takes `--seconds` for a shard and no processor.
So a few processors suffice for all nodes. The same build runs twice: undisturbed, and while the
oldest node is killed every `--between` seconds. A new node takes its place at once.

`ratio` is the shards per second of the disturbed build by those of the other, each from its first
shard to its last. `twice` is how many shards were begun more than once, as whoever had them died.
Both depend on what else the machine does. `tests/engine/test_kills.py` asserts how much work is
left, by a clock that waits for the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from tests.support import tiny_network as tiny
from tests.support.gpu_nodes import GpuNodes
from tests.support.ray_commands import Small


def goodput(place: Path, shards: int, number: int, seconds: float, between: float) -> Any:
    """Builds once, and returns the rate, the deaths, and the shards that were begun twice.

    Args:
        place: An empty folder.
        shards: How many shards there are, of an image each.
        number: How many nodes with a worker.
        seconds: How long a GPU takes for a shard.
        between: After how many seconds a node dies; infinite if none does.
    """
    small = Small(tiny.install(place), place)
    source, log = place / "source", place / "begun"
    source.mkdir()
    log.touch()
    for at in range(shards):
        (source / f"{at:05d}.png").write_bytes(tiny.Picture("good", at).data)
    environment = small.environment() | {"SHARD_LOG": str(log)}
    options = ["--gpus-per-worker", "1", "--workers", str(number), "--threads", "1"]
    options += ["--decode", "here", "--log-format", "json", "--shard-images", "1", *small.options]
    deaths = 0
    with GpuNodes(seconds, environment) as nodes:
        for _ in range(number):
            nodes.add()
        where = ["-c", str(place / "c"), "--ray-address", nodes.address]
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.build", "photos", str(source), *where, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
            cwd=ROOT,
        )
        lines: list[dict[str, Any]] = []
        reader = threading.Thread(
            target=lambda: lines.extend(map(json.loads, process.stderr or ()))
        )
        reader.start()
        due = time.monotonic() + between
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() >= due:
                    due += between
                    deaths += 1
                    nodes.lose(nodes.alive[0])
                    nodes.add()
        finally:
            process.kill()
            reader.join()
    if process.returncode:
        raise RuntimeError(f"the build ended with {process.returncode}: {lines[-3:]}")
    done = [datetime.fromisoformat(x["time"]) for x in lines if x.get("event") == "StepDone"]
    took = (done[-1] - done[0]).total_seconds()
    begun = len(log.read_text().splitlines())
    return {
        "rate": (len(done) - 1) / took,
        "seconds": took,
        "deaths": deaths,
        "twice": begun - shards,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=300)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--between", type=float, default=60.0)
    given = parser.parse_args()
    found: dict[str, Any] = {"shards": given.shards, "nodes": given.nodes}
    for name, between in (("undisturbed", float("inf")), ("disturbed", given.between)):
        with tempfile.TemporaryDirectory() as folder:
            how = (given.shards, given.nodes, given.seconds, between)
            found[name] = goodput(Path(folder), *how)
    found["ratio"] = found["disturbed"]["rate"] / found["undisturbed"]["rate"]
    print(json.dumps(found, indent=1))
    disturbed = found["disturbed"]
    print(
        f"goodput {found['ratio']:.2f} with {disturbed['deaths']} deaths in "
        f"{disturbed['seconds']:.0f} s; {disturbed['twice']} of {given.shards} shards begun twice",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
