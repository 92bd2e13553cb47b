"""A night of many datasets in which nothing is new, or one dataset is broken.

    python -m benchmarks.nightly [--datasets 1000] [--images 2]

Ceph's gateway runs here, from Debian's packages, with a folder of images for each dataset. The
command `vdna refresh` runs as its user runs it: first it builds all datasets; then nothing is new;
then the images of one dataset are damaged. Each run is a process of its own, so imports count. What
it took is its own account, of which the requests were once compared with those that Ceph logged.
"""

from __future__ import annotations

import argparse
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


def write_config(folder: Path, datasets: int, bins: int) -> Path:
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
        "defaults": {"bins": bins, "max_failures": 0},
        "datasets": [
            dict(zip(("name", "source"), of, strict=True))
            for of in zip(names, sources, strict=True)
        ],
        "gate": gate,
    }
    file.write_text(yaml.safe_dump(content))
    return file


def refresh(config: Path, *options: str) -> dict[str, Any]:
    """Runs the command; returns its exit code, its seconds, and those of CPU of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.refresh", "--config", str(config), *options],
        capture_output=True,
        text=True,
        cwd=measure.ROOT,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(getattr(after, kind) - getattr(before, kind) for kind in ("ru_utime", "ru_stime"))
    print(done.stderr[-3000:], file=sys.stderr)
    return {
        "exit": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_mb": round(after.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=int, default=1000)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--bins", type=int, default=50)
    arguments = parser.parse_args()
    with ceph.started() as server, tempfile.TemporaryDirectory() as folder:
        os.environ |= server
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        put_images(client, arguments.datasets, arguments.images)
        config = write_config(Path(folder), arguments.datasets, arguments.bins)
        print("images put", file=sys.stderr)
        result = {"datasets": arguments.datasets, "images": arguments.images}
        result["first"] = refresh(config)
        print(result, file=sys.stderr)
        result["nothing new"] = refresh(config)
        if os.environ.get("HOLD"):
            print(server, config, file=sys.stderr, flush=True)
            time.sleep(100000)
    measure.emit(result, str(result))


if __name__ == "__main__":
    main()
