"""Opens DuckDB databases that sort and join in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import duckdb

MEMORY = "256MiB"
"""The memory that DuckDB may use. What does not fit is sorted and joined on disk."""

DUCKDB_THREADS = 2
"""The threads of DuckDB. Each needs memory of its own while it sorts; with four threads, the
limit was too low for six million images."""


KEPT = 2
"""How many databases stay open for later use. To open one takes longer than to plan a small
dataset, since DuckDB then enters all its functions into the catalogue."""

_kept: list[duckdb.DuckDBPyConnection] = []
"""Databases that nothing uses. They are empty."""


@contextmanager
def connect(folder: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens an empty database in bounded memory, which nothing else uses at the time.

    Args:
        folder: Where DuckDB puts what does not fit into memory.

    Yields:
        A connection to it. All its tables go as the context ends.
    """
    database = _opened(folder)
    try:
        with database.cursor() as cursor:
            cursor.execute("attach ':memory:' as work")
            cursor.execute("use work")
            yield cursor
    except BaseException:
        database.close()
        raise
    _keep(database)


def _opened(folder: str) -> duckdb.DuckDBPyConnection:
    """Returns one of the databases that are kept, or a new one."""
    with suppress(IndexError):
        database = _kept.pop()
        database.execute(f"set temp_directory = {quoted_text(folder)}")
        return database
    settings: dict[str, Any] = {
        "memory_limit": MEMORY,
        "temp_directory": folder,
        "threads": min(DUCKDB_THREADS, os.cpu_count() or 1),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    return duckdb.connect(":memory:", config=settings)


def _keep(database: duckdb.DuckDBPyConnection) -> None:
    """Empties a database and keeps it. It is closed if there are enough, or its folder was used."""
    try:
        database.execute("detach work")
        database.execute("set temp_directory = ''")  # refused once something was put there
        if len(_kept) < KEPT:
            _kept.append(database)
            return
    except duckdb.Error:
        pass
    database.close()


def _close_kept() -> None:
    """Closes the databases that are kept, for a fork would copy them without their threads."""
    with suppress(IndexError):
        while True:
            _kept.pop().close()


os.register_at_fork(before=_close_kept)


def quoted_column(name: str) -> str:
    """Returns the name of a column, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """Returns a text, quoted for SQL."""
    return "'" + text.replace("'", "''") + "'"
