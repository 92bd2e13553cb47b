"""How far the forecasts of `vdna plan` are from the builds that they forecast.

    python -m benchmarks.forecasts FOLDER... [--threads 2] [--sample 640]

For each folder: the forecast, and then the build that it forecasts, in this process and one after
the other, so that both find the same machine. The ratio is the time of the build over the time
that was forecast for it; and so for bytes. A forecast within 15% has a ratio of 0.85 to 1.15.
"""

from __future__ import annotations

import argparse
import json
import tempfile

from pipeline import api
from pipeline.building import ForecastRequest, Request
from pipeline.catalogue import Catalogue
from pipeline.spec import Resources


def compare(folder: str, resources: Resources, sample: int) -> dict[str, object]:
    """Forecasts a build and runs it."""
    found = api.forecast(ForecastRequest(folder, sample=sample), resources=resources)
    with tempfile.TemporaryDirectory() as place:
        asked = Request("forecast", folder, max_failures=10**9)
        built = api.build(Catalogue(place), asked, resources=resources)
    return {
        "folder": folder,
        "images": found.images,
        "measured": found.speed.images,
        "shard_seconds": found.speed.shard_seconds,
        "merge_seconds": found.speed.merge_seconds,
        "start_seconds": found.speed.start_seconds,
        "images_per_second": 1 / found.speed.seconds_per_image,
        "forecast_seconds": [found.seconds.low, found.seconds.likely, found.seconds.high],
        "seconds": built.seconds,
        "ratio": built.seconds / found.seconds.likely,
        "bytes_ratio": built.read_bytes / found.bytes if found.bytes else None,
        "shards_as_forecast": built.counted_shards == found.shards,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sample", type=int, default=640)
    options = parser.parse_args()
    resources = Resources(workers=0, threads=options.threads)
    found = [compare(folder, resources, options.sample) for folder in options.folders]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
