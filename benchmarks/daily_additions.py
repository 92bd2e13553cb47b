"""How many shards and entries files a dataset has that grows a little every day.

    python -m benchmarks.daily_additions [--days 365] [--images 32]

Plans alone are made, without images. They are compared with plans that never put small shards
together. `verify` reads a partial of each shard, and each plan reads all entries files.
"""

from __future__ import annotations

import argparse

from pipeline.sources import Entries, Entry, Manifest, plan, shard_merging


def grown(days: int, images: int, together: int) -> Manifest:
    """Returns the plan of a dataset after so many days."""
    shard_merging.TOGETHER = together
    found: list[Entry] = []
    entries, before = Entries(), None
    for day in range(days + 1):
        found += [Entry(f"s3://b/day={day:04}/{at:04}.jpg", "", 10**5, "1") for at in range(images)]
        before = plan(found, previous=before, entries=entries)
    assert before is not None
    return before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--images", type=int, default=32)
    asked = parser.parse_args()
    for together in (shard_merging.TOGETHER, 10**9):
        made = grown(asked.days, asked.images, together)
        how = "never" if together > asked.days else f"{together} at a time"
        print(
            f"{asked.days} additions of {asked.images} images, put together {how}: "
            f"{len(made.heads):,} shards, {len(made.files):,} entries files",
            flush=True,
        )


if __name__ == "__main__":
    main()
