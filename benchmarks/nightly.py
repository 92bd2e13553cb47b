"""A night of many datasets: one is broken, nothing is new, or one has changed.

    python -m benchmarks.nightly [--datasets 1000] [--images 1] [--layers 18]

Ceph's gateway runs here, from Debian's packages, with a folder of images for each dataset. The
command `vdna refresh` runs as its user runs it, each time in a process of its own, so that imports
count. First it builds all datasets but one, whose images are damaged; then that one, as they are
replaced. The network has many small layers: what a dataset without news takes does not depend on
it. The kept matrix of all pairs, which each night reads, grows with the layers: its numbers are
replaced by random ones, error bars too, so that it is as large as one of datasets with many images.
Then nothing is new; then one dataset has another image, and the images of another are damaged. What
each night took is its own account, with the requests that it sent.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import yaml

from benchmarks import measure
from benchmarks.deep_network import LAYERS, register, write_network
from benchmarks.kept_matrix import fill
from tests.support import ceph
from tests.support.builders import jpeg

BUCKET = "nightly"

BOUNDS = 100
"""Datasets that the gate bounds: their images, and how far they moved."""

AT_ONCE = 16
"""Images that are put at the same time."""


def put_images(client: Any, datasets: int, images: int) -> None:
    """Puts the images of all datasets, each of which has other ones."""

    def put(number: int) -> None:
        at, image = divmod(number, images)
        key = f"images/{at:05d}/photo-{image:04d}.jpg"
        client.put_object(Bucket=BUCKET, Key=key, Body=jpeg(number))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(put, range(datasets * images)))


def damage_images(client: Any, dataset: int, images: int) -> None:
    """Replaces the images of a dataset by what is none."""
    for image in range(images):
        key = f"images/{dataset:05d}/photo-{image:04d}.jpg"
        client.put_object(Bucket=BUCKET, Key=key, Body=b"no image")


def write_config(folder: Path, datasets: int) -> Path:
    """Writes the file of the datasets and the gate."""
    names = [f"fleet/drive-{at:05d}" for at in range(datasets)]
    sources = [f"s3://{BUCKET}/images/{at:05d}" for at in range(datasets)]
    gate: list[dict[str, Any]] = []
    for name in names[:BOUNDS]:
        gate.append({"dataset": name, "min_images": 1})
        gate.append({"dataset": name, "against": "@-1", "max_move": 50})
    file = folder / "datasets.yaml"
    content = {
        "catalogue": f"s3://{BUCKET}/dnas",
        "defaults": {**write_network(folder), "max_failures": 0},
        "datasets": [
            dict(zip(("name", "source"), of, strict=True))
            for of in zip(names, sources, strict=True)
        ],
        "gate": gate,
    }
    file.write_text(yaml.safe_dump(content))
    return file


def refresh(config: Path, page: Path) -> dict[str, Any]:
    """Runs the command in a process of its own; returns what it took and what it says it did."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    options = ["--config", config, "--workers", 0, "--summary", page, "--summary", f"{page}.md"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.nightly", "--child", *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=measure.ROOT,
    )
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    told = json.loads(Path(f"{page}.json").read_text())
    datasets = told["datasets"]["asked"]
    return {
        "exit": done.returncode,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(after.ru_maxrss / 1024),
        "requests_a_dataset": round(told["cost"]["requests"] / datasets, 2),
        "summary": told,
    }


def child(options: list[str]) -> None:
    """Runs the command with the benchmark's network, and writes what it found beside the page."""
    from jobs import shell
    from jobs.refresh import refresh as command
    from pipeline.refreshing import Refreshed

    register()
    page = options[options.index("--summary") + 1]
    real = vars(Refreshed)["outcome"].fget

    def outcome(done: Refreshed) -> dict[str, Any]:
        found: dict[str, Any] = real(done)
        Path(f"{page}.json").write_text(json.dumps(found["summary"]))
        return found

    Refreshed.outcome = property(outcome)  # type: ignore[method-assign]  # to read it
    sys.argv = ["refresh", *options]
    shell.run_alone(command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--layers", type=int, default=18)
    arguments = parser.parse_args()
    os.environ[LAYERS] = str(arguments.layers)
    with ceph.started() as server, tempfile.TemporaryDirectory() as folder:
        os.environ |= server
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        put_images(client, arguments.datasets, arguments.images)
        damage_images(client, 1, arguments.images)
        config = write_config(Path(folder), arguments.datasets)
        result: dict[str, Any] = {"server": f"Ceph {ceph.version()}", **vars(arguments)}
        for night in ("first, one broken", "mended", "nothing new", "one changed, one broken"):
            if night == "mended":
                put_images(client, arguments.datasets, arguments.images)
            elif night.startswith("one"):
                client.put_object(Bucket=BUCKET, Key="images/00000/more.jpg", Body=jpeg(0))
                damage_images(client, 1, arguments.images)
            result[night] = refresh(config, Path(folder) / "night.html")
            print(json.dumps({night: result[night]}), file=sys.stderr, flush=True)
            if night == "mended":
                result["matrix_mb"] = fill(f"s3://{BUCKET}/dnas")
    first, told = result["first, one broken"]["summary"]["datasets"], result["nothing new"]
    measure.emit(
        result,
        f"{arguments.datasets:,} datasets, one broken: {first['refreshed']:,} committed, "
        f"{first['failed']:,} failed; nothing new: {told['seconds']:g} s, "
        f"{told['requests_a_dataset']:g} requests for each dataset, "
        f"a kept matrix of {result['matrix_mb']:,.0f} MB",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
