"""Where the seconds of a small build go, from the shell's command to its end.

    python -m benchmarks.start_up FOLDER [--limit 60] [--rounds 3]

Each round builds the first images of the folder twice into an empty catalogue, on Ray and in one
process (`--workers 0`), and reads the times that the command's own log states. `ratio` is how many
times as long the build on Ray took. The least of each over all rounds is reported, as whatever runs
beside it only adds to a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from typing import Any

ENGINES = {"in one process": ("--workers", "0"), "on Ray": ()}


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


def main() -> None:
    """Prints the result as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", help="a folder of images")
    parser.add_argument("--limit", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    print(json.dumps(start_up(given.folder, given.limit, given.rounds), indent=2))


if __name__ == "__main__":
    main()
