"""Opens DuckDB databases that sort and join in bounded memory."""

from __future__ import annotations

import os
from typing import Any

import duckdb

MEMORY = "256MiB"
"""The memory that DuckDB may use. What does not fit is sorted and joined on disk."""

DUCKDB_THREADS = 2
"""The threads of DuckDB. Each needs memory of its own while it sorts; with four threads, the
limit was too low for six million images."""


def connect(folder: str) -> duckdb.DuckDBPyConnection:
    """Returns a new database in bounded memory.

    Args:
        folder: Where DuckDB puts what does not fit into memory.
    """
    settings: dict[str, Any] = {
        "memory_limit": MEMORY,
        "temp_directory": folder,
        "threads": min(DUCKDB_THREADS, os.cpu_count() or 1),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return duckdb.connect(":memory:", config=settings)


def quoted_column(name: str) -> str:
    """Returns the name of a column, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """Returns a text, quoted for SQL."""
    return "'" + text.replace("'", "''") + "'"
