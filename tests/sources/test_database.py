"""A database that is used again is as a new one: empty, bounded, and with a folder of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from pipeline.sources import database
from pipeline.sources.database import KEPT, connect

SETTINGS = "memory_limit", "temp_directory", "threads", "preserve_insertion_order"
SETTINGS += "autoinstall_known_extensions", "autoload_known_extensions", "async_threads"


@pytest.fixture(autouse=True)
def none_kept() -> Iterator[None]:
    database._close_kept()
    yield
    database._close_kept()


def found_in(connection: duckdb.DuckDBPyConnection) -> list[object]:
    """What a connection sees that a use might leave: tables, databases, and settings."""
    settings = ", ".join(f"current_setting('{name}')" for name in SETTINGS)
    tables = "select database_name, table_name from duckdb_tables() union all "
    tables += "select database_name, view_name from duckdb_views() where not internal"
    databases = "select database_name from duckdb_databases() order by all"
    queries = (tables, databases, f"select {settings}, current_database()")
    return [connection.execute(query).fetchall() for query in queries]


def test_nothing_of_a_use_is_left_for_the_next(tmp_path: Path) -> None:
    with connect(str(tmp_path)) as connection:
        new = found_in(connection)
        connection.execute("create table one as select 1 as x")
        connection.execute("create view two as select * from one")
        connection.execute("create temp table three as select 1 as x")
        connection.register("four", pa.table({"x": [1]}))
        connection.execute("begin")  # as a use that ends without an end of its transaction
        connection.execute("insert into one values (2)")
        assert found_in(connection) != new
    (kept,) = database._kept
    with connect(str(tmp_path)) as connection:
        assert database._kept == []
        assert found_in(connection) == new
        connection.execute("create table one as select 3 as x")
    assert database._kept == [kept]


def test_uses_at_a_time_have_databases_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        with ExitStack() as stack:
            for number in range(KEPT + 2):
                folder = tmp_path / str(number)
                connection = stack.enter_context(connect(str(folder)))
                connection.execute("create table same as select 1 as x")
                told = connection.execute("select current_setting('temp_directory')").fetchall()
                assert told == [(str(folder),)]
        assert len(database._kept) == KEPT


def test_a_database_that_wrote_to_its_folder_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MEMORY", "16MiB")
    with connect(str(tmp_path)) as connection:
        connection.execute("create table x as select md5(i::varchar) as m from range(800000) r(i)")
        assert list(tmp_path.iterdir()) != []
    assert database._kept == []
    assert list(tmp_path.iterdir()) == []


def test_a_database_whose_use_failed_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(duckdb.Error), connect(str(tmp_path)) as connection:
        connection.execute("select * from nothing")
    with pytest.raises(KeyboardInterrupt), connect(str(tmp_path)):
        raise KeyboardInterrupt
    assert database._kept == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_has_no_database_whose_threads_it_lacks(tmp_path: Path) -> None:
    with connect(str(tmp_path)):
        pass
    assert len(database._kept) == 1
    child = os.fork()
    if child == 0:
        threading.Timer(30, os._exit, (2,)).start()  # a database without its threads would wait
        code = 3
        try:
            with connect(str(tmp_path)) as connection:
                connection.execute("create table x as select * from range(100000)")
            code = 0
        finally:
            os._exit(code)
    assert database._kept == []
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
