"""Listing a table that states images with sizes and identities, beside a listing row by row.

    python -m benchmarks.tables [--rows 200000]

The images lie in folders of a thousand, in S3 as far as the names say: nothing is asked of a store.
Row by row is how rows with other names are listed. Both lists have to be equal.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from pipeline.sources import Rules, list_source, plan
from pipeline.sources.table_file import TableFile


def write_table(path: Path, rows: int) -> None:
    """Writes a table with a label."""
    numbers = range(rows)
    columns = {
        "uri": [f"s3://bucket/drives/drive-{at // 1000:06}/frame-{at:09}.jpg" for at in numbers],
        "size": [100_000 + at % 1000 for at in numbers],
        "identity": [hashlib.md5(str(at).encode()).hexdigest() for at in numbers],
        "weather": [("rain", "sun", "fog")[at % 3] for at in numbers],
    }
    pq.write_table(pa.table(columns), path)


def measured(path: Path, rows: int) -> tuple[float, str]:
    """Lists a table; returns how many rows a second of a core's time, and the plan's digest."""
    started = time.process_time()
    listing = list_source(path, Rules(by="weather"))
    return rows / (time.process_time() - started), plan(listing, by="weather").digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory(prefix="vdna-tables-") as folder:
        path = Path(folder) / "table.parquet"
        write_table(path, rows)
        together, digest = measured(path, rows)
        TableFile.has_batches = False  # type: ignore[assignment,method-assign]  # row by row
        alone, other = measured(path, rows)
    if digest != other:
        raise ValueError("the two ways list different images")
    result = {
        "rows": rows,
        "rows_per_cpu_second": {"together": round(together), "one by one": round(alone)},
        "ratio": round(together / alone, 1),
    }
    measure.emit(
        result,
        f"a core lists {together:,.0f} rows/s together, and {alone:,.0f} one by one: "
        f"{together / alone:.0f} times as many",
    )


if __name__ == "__main__":
    main()
