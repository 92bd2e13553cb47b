"""Tests that a catalogue reaches Delta and Iceberg tables, as DuckDB and Polars read them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Barrier
from typing import NoReturn

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from polars.testing import assert_frame_equal
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation
from typer.testing import CliRunner

from jobs.app import app
from pipeline import storage
from pipeline.catalogue import Catalogue, remove
from pipeline.comparing import Effort, compare
from pipeline.errors import Conflict, NotFound, StorageError, UsageError
from pipeline.explaining import drift
from pipeline.interop import export_tables, lake_tables
from pipeline.sources import plan
from tests.golden.handmade import SPEC, commit_dataset, entries, hand_made

FORMATS = ("delta", "iceberg")


def put(place: Catalogue, name: str, count: int, first: int = 0) -> None:
    manifest = plan(entries(name, count, first))
    commit_dataset(place, name, manifest, [hand_made(shard) for shard in manifest.shards])


@dataclass
class Lake:
    """A folder of tables, read by the libraries that users read it with."""

    form: str
    folder: str

    def iceberg(self, name: str) -> Table:
        catalog = SqlCatalog(
            "vdna", uri=f"sqlite:///{self.folder}/catalog.db", warehouse=f"file://{self.folder}"
        )
        try:
            return catalog.load_table(f"vdna.{name}")
        finally:
            catalog.close()

    def delta(self, name: str) -> DeltaTable:
        return DeltaTable(f"{self.folder}/{name}")

    def by_polars(self, name: str) -> pl.DataFrame:
        if self.form == "delta":
            return pl.read_delta(f"{self.folder}/{name}")
        return pl.scan_iceberg(self.iceberg(name)).collect()

    def by_duckdb(self, name: str, sql: str) -> list[tuple]:
        delta = self.form == "delta"
        table = (
            self.delta(name).to_pyarrow_dataset() if delta else self.iceberg(name).scan().to_arrow()
        )
        with duckdb.connect() as connection:
            connection.register(name, table)
            return connection.execute(sql).fetchall()

    def history(self, name: str) -> list[tuple[str, int]]:
        """Lists the exports of a table, the oldest first: the commit, and the number of rows."""
        if self.form == "delta":
            table = self.delta(name)
            found = []
            for past in table.history()[::-1]:
                table.load_as_version(past["version"])
                found.append((past["vdna.commit"], table.to_pyarrow_dataset().count_rows()))
            return found
        table = self.iceberg(name)
        return [
            (
                snapshot.summary.additional_properties["vdna.commit"],
                table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows,
            )
            for snapshot in table.snapshots()
            if snapshot.summary.operation == Operation.APPEND
        ]


@pytest.fixture(autouse=True)
def plan_by_pyiceberg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars warns that a faster planner is not installed."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")


@pytest.fixture(params=FORMATS)
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    return Lake(request.param, str(tmp_path / "lake"))


@pytest.fixture(scope="module")
def place() -> Catalogue:
    """Makes `a` of two versions, `b` that was taken out and came back, `c`, and `gone`."""
    catalogue = Catalogue(f"memory://{uuid.uuid4().hex}")
    put(catalogue, "a", 20)
    put(catalogue, "b", 20, 100)
    put(catalogue, "gone", 4)
    remove(catalogue, ["gone"])
    put(catalogue, "a", 24)
    remove(catalogue, ["b"])
    put(catalogue, "b", 20, 100)
    put(catalogue, "c", 30, 200)
    return catalogue


def test_all_that_the_catalogue_knows_comes_back(place: Catalogue, lake: Lake) -> None:
    done = export_tables(place, lake.folder, lake.form, drift=True)
    assert {of.name: of.rows for of in done.tables} == {
        "datasets": 6,
        "matrix": 9 * (len(SPEC.layers) + 1),
        "drift": 2,
    }
    assert done.commit == place.head().number
    sql = "select name, last_commit, current, images, spec from datasets order by name"
    rows = [("a@1", 4, False, 20), ("a@5", 8, True, 24), ("b@2", 5, False, 20)]
    rows += [("b@7", 8, True, 20), ("c@8", 8, True, 30), ("gone@3", 3, False, 4)]
    assert lake.by_duckdb("datasets", sql) == [(*row, SPEC.digest) for row in rows]
    keys = ["a", "b", "layer"]
    assert_frame_equal(lake.by_polars("matrix").sort(keys), compare(place).to_polars().sort(keys))
    sql = "select a, b, layer, emd, se from matrix order by a, b, layer"
    rows = compare(place).to_polars().sort(keys).select("a", "b", "layer", "emd", "se").rows()
    assert lake.by_duckdb("matrix", sql) == rows
    sql = "select dataset, commit, reference from drift order by commit"
    assert lake.by_duckdb("drift", sql) == [("a", 1, "a@1"), ("a", 5, "a@1")]
    drifted = lake.by_polars("drift").sort("commit")
    assert drifted["dataset"].to_list() == ["a", "a"]
    assert drifted["reference"].to_list() == ["a@1", "a@1"]
    assert_frame_equal(drifted.drop("dataset", "reference"), drift(place, "a").to_polars())


NATIVE = "1.5.5"
"""The newest DuckDB whose extensions are on PyPI. It lies beside the one that is installed here."""

READ_NATIVELY = """
import duckdb, glob, importlib, json, os, sys
folder, home = sys.argv[1:]
found = {}
with duckdb.connect(config={"extension_directory": home}) as here:
    for name in ("avro", "iceberg", "delta"):
        (place,) = importlib.import_module(f"duckdb_extension_{name}").__path__
        (file,) = glob.glob(f"{place}/extensions/*/{name}.duckdb_extension")
        here.execute(f"install '{file}'")
        here.execute(f"load {name}")
    for name in ("datasets", "matrix", "drift"):
        newest = max(glob.glob(f"{folder}/iceberg/vdna/{name}/metadata/*.metadata.json"))
        for scan in (f"delta_scan('{folder}/delta/{name}')", f"iceberg_scan('{newest}')"):
            rows = here.execute(f"select * from {scan} order by all").fetchall()
            found.setdefault(name, []).append(rows)
print(json.dumps([duckdb.__version__, found]))
"""


@pytest.mark.soak  # it takes 230 MB from the package index
def test_duckdb_reads_tables_by_its_own_extensions(place: Catalogue, tmp_path: Path) -> None:
    """Without deltalake and pyiceberg, which have written them."""
    packages = [f"duckdb=={NATIVE}"]
    packages += [f"duckdb-extension-{name}=={NATIVE}" for name in ("avro", "delta", "iceberg")]
    target = str(tmp_path / "packages")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", target, *packages]
    subprocess.run(pip, check=True)
    for form in FORMATS:
        for at in (2, 8):
            export_tables(place, f"{tmp_path}/{form}", form, drift=True, at=at)
    done = subprocess.run(
        [sys.executable, "-c", READ_NATIVELY, str(tmp_path), str(tmp_path / "home")],
        env={**os.environ, "PYTHONPATH": target},
        check=True,
        capture_output=True,
        text=True,
    )
    version, found = json.loads(done.stdout.splitlines()[-1])  # after a bar
    assert version == NATIVE
    for name in ("datasets", "matrix", "drift"):
        truth = Lake("delta", f"{tmp_path}/delta").by_duckdb(
            name, f"select * from {name} order by all"
        )
        expected = json.loads(json.dumps(truth))
        assert expected
        delta, iceberg = found[name]
        assert str(delta) == str(iceberg) == str(expected), name  # as texts, as nan is not nan


def test_what_is_said_of_a_version_is_what_the_catalogue_says(place: Catalogue, lake: Lake) -> None:
    export_tables(place, lake.folder, lake.form)
    (row,) = lake.by_polars("datasets").filter(pl.col("name") == "c@8").to_dicts()
    version = place.find("c")
    plain = set(row) - {"dataset", "name", "commit", "last_commit", "time", "current", "products"}
    assert {name: row[name] for name in plain} == {name: getattr(version, name) for name in plain}
    assert tuple(row["products"]) == version.products
    assert (row["dataset"], row["commit"], row["time"]) == ("c", 8, place.head().time)


def test_a_later_export_takes_the_place_of_the_earlier_one_which_stays_in_the_history(
    place: Catalogue, lake: Lake
) -> None:
    for at in (2, 8, 8):
        export_tables(place, lake.folder, lake.form, at=at)
    planes = len(SPEC.layers) + 1
    assert lake.history("datasets") == [("2", 2), ("8", 6), ("8", 6)]
    assert lake.history("matrix") == [("2", 4 * planes), ("8", 9 * planes), ("8", 9 * planes)]
    assert lake.by_polars("datasets").height == 6


def test_one_dataset_of_one_version_gives_empty_tables_with_all_columns(
    place: Catalogue, lake: Lake
) -> None:
    done = export_tables(place, lake.folder, lake.form, at=1, drift=True)
    assert [of.rows for of in done.tables] == [1, 0, 0]
    empty = {name: lake.by_polars(name).schema for name in ("matrix", "drift")}
    export_tables(place, lake.folder, lake.form, drift=True)
    assert {name: lake.by_polars(name).schema for name in empty} == empty
    assert lake.by_polars("drift").height == 2


def test_a_folder_may_have_spaces_and_letters_of_any_script(
    place: Catalogue, lake: Lake, tmp_path: Path
) -> None:
    odd = Lake(lake.form, str(tmp_path / "my Säe"))
    for at in (2, 8):
        export_tables(place, odd.folder, odd.form, at=at)
    assert [path.name for path in tmp_path.iterdir()] == ["my Säe"]
    assert odd.by_duckdb("datasets", "select count(*) from datasets") == [(6,)]
    assert [commit for commit, _ in odd.history("datasets")] == ["2", "8"]


def test_an_earlier_drift_stays_if_none_is_asked_for(place: Catalogue, lake: Lake) -> None:
    export_tables(place, lake.folder, lake.form, drift=True)
    export_tables(place, lake.folder, lake.form)
    assert lake.history("drift") == [("8", 2)]


def test_columns_that_an_earlier_export_lacks_are_added(
    place: Catalogue, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fewer = pa.schema(list(lake_tables.DATASETS_SCHEMA)[:-2])
        patched.setattr(lake_tables, "DATASETS_SCHEMA", fewer)
        export_tables(place, lake.folder, lake.form)
    assert "value" not in lake.by_polars("datasets").columns
    export_tables(place, lake.folder, lake.form)
    assert lake.by_polars("datasets").columns == lake_tables.DATASETS_SCHEMA.names


def test_a_table_of_someone_else_is_left_alone(place: Catalogue, lake: Lake) -> None:
    theirs = pa.table({"x": [1]})
    if lake.form == "delta":
        write_deltalake(f"{lake.folder}/matrix", theirs)
    else:
        Path(lake.folder).mkdir()
        url = f"sqlite:///{lake.folder}/catalog.db"
        catalog = SqlCatalog("vdna", uri=url, warehouse=f"file://{lake.folder}")
        catalog.create_namespace("vdna")
        catalog.create_table("vdna.matrix", theirs.schema).append(theirs)
        catalog.close()
    with pytest.raises(UsageError, match="matrix is a table that vdna did not write"):
        export_tables(place, lake.folder, lake.form)
    assert lake.by_polars("matrix")["x"].to_list() == [1]
    if lake.form == "delta":
        assert not DeltaTable.is_deltatable(f"{lake.folder}/datasets")
    else:
        assert lake.history("datasets") == []


def at_once(place: Catalogue, form: str, folder: str) -> int:
    """Starts three exports at the same time; returns how many of them succeed."""
    barrier = Barrier(3)

    def export() -> bool:
        barrier.wait()
        try:
            export_tables(place, folder, form)
        except (Conflict, StorageError):
            return False
        return True

    with ThreadPoolExecutor(3) as pool:
        return sum(of.result() for of in [pool.submit(export) for _ in range(3)])


@pytest.mark.parametrize("form", FORMATS)
def test_of_exports_at_once_none_adds_its_rows_to_those_of_another(
    place: Catalogue, tmp_path: Path, form: str
) -> None:
    export_tables(place, str(tmp_path / "warm"), form)  # the matrix is kept from here on
    for folder in ("one", "two"):
        lake, least = Lake(form, str(tmp_path / folder)), 0
        for _ in range(2):  # the tables are not there yet, and then they are
            least += at_once(place, lake.form, lake.folder)
            history = lake.history("datasets")
            assert history == [("8", 6)] * len(history)
            assert len(history) >= least


@pytest.mark.parametrize("own", ["", "http://of-s3:80", "https://of-s3"])
@pytest.mark.parametrize("of_all", ["", "http://of-all:80", "https://of-all"])
def test_delta_tables_are_written_to_the_endpoint_of_our_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, of_all: str
) -> None:
    asked: list[dict[str, str]] = []

    def found(uri: str, settings: dict[str, str]) -> NoReturn:
        asked.append(settings)
        raise DeltaError("the store is away")

    monkeypatch.setattr(DeltaTable, "is_deltatable", found)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", own)
    monkeypatch.setenv("AWS_ENDPOINT_URL", of_all)
    place = Catalogue(str(tmp_path / "c"))
    put(place, "a", 5)
    with pytest.raises(StorageError, match="the store is away"):
        export_tables(place, "s3://bucket/lake", "delta")
    endpoint = own or of_all
    [settings] = asked
    assert settings.get("AWS_ENDPOINT_URL", "") == endpoint
    assert settings.get("allow_http") == ("true" if endpoint.startswith("http:") else None)


def test_of_first_exports_at_once_to_an_object_store_one_stays(place: Catalogue, root: str) -> None:
    at_once(place, "delta", root)
    table = DeltaTable(f"{root}/datasets", storage_options={"allow_http": "true"})
    assert table.to_pyarrow_dataset().count_rows() == 6


def test_an_export_between_reading_and_writing_is_a_conflict(
    place: Catalogue, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_tables(place, lake.folder, lake.form)
    require_own, raced = lake_tables._require_own, []

    def other_first(*words: str) -> None:
        if not raced:
            raced.append(words)
            export_tables(place, lake.folder, lake.form, at=2)
        require_own(*words)

    monkeypatch.setattr(lake_tables, "_require_own", other_first)
    with pytest.raises(Conflict, match=r"another job wrote a table of .*; export again"):
        export_tables(place, lake.folder, lake.form)
    assert lake.history("datasets") == [("8", 6), ("2", 2)]
    assert lake.by_polars("datasets").height == 2


def failing(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_folder_that_cannot_be_written_is_named(place: Catalogue, lake: Lake) -> None:
    Path(lake.folder).write_text("a file")
    with pytest.raises(StorageError, match=r"the tables of file:///.*lake could not be"):
        export_tables(place, lake.folder, lake.form)


@pytest.mark.parametrize(
    ("form", "package"),
    [("delta", "deltalake"), ("iceberg", "pyiceberg"), ("iceberg", "sqlalchemy")],
)
def test_a_missing_package_is_named_with_its_extra_before_anything_is_computed(
    place: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    find_spec = lake_tables.find_spec
    monkeypatch.setattr(
        lake_tables, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    monkeypatch.setattr(lake_tables, "compare", failing(AssertionError()))
    told = rf'need the package {package}, .*: pip install "vdna-pipeline\[{form}\]"'
    with pytest.raises(UsageError, match=told):
        export_tables(place, str(tmp_path), form)


@pytest.mark.parametrize(
    ("form", "folder", "told"),
    [
        ("iceberg", "s3://bucket/lake", "Iceberg tables need a local folder"),
        *(("delta", f"{web}://host/lake", "takes no files") for web in ("http", "HTTPS")),
        *((form, "/tmp/50%20", "misread the % in it") for form in FORMATS),
        ("iceberg", "/tmp/what?", r"misread the \? in it"),
        *((form, "{root}/lake", "which lies in the catalogue") for form in FORMATS),
    ],
)
def test_folders_that_are_not_allowed_are_refused(
    tmp_path: Path, form: str, folder: str, told: str
) -> None:
    place = Catalogue(str(tmp_path))
    put(place, "a", 4)
    with pytest.raises(UsageError, match=told):
        export_tables(place, folder.format(root=tmp_path), form)
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize(
    ("form", "root", "table"),
    [
        ("delta", "datasets", "datasets"),
        ("delta", "matrix/dnas", "matrix"),
        ("delta", "drift", "drift"),
        ("iceberg", "vdna", "vdna/datasets"),
        ("iceberg", "vdna/matrix", "vdna/matrix"),
    ],
)
def test_no_table_is_written_into_the_catalogue_or_around_it(
    tmp_path: Path, form: str, root: str, table: str
) -> None:
    place = Catalogue(str(tmp_path / root))
    put(place, "a", 4)
    (tmp_path / "link").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for folder in (tmp_path, tmp_path / "link"):
        told = f"the folder is {folder}, of which {folder}/{table} .* {tmp_path}/{root}; choose"
        with pytest.raises(UsageError, match=told):
            export_tables(place, str(folder), form, drift=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("form", "root"), [("delta", "drift"), ("iceberg", "vdna/dnas")])
def test_tables_may_be_beside_the_catalogue(tmp_path: Path, form: str, root: str) -> None:
    place = Catalogue(str(tmp_path / root))
    put(place, "a", 4)
    done = export_tables(place, str(tmp_path), form)
    below = {"delta": "", "iceberg": "vdna/"}[form]
    assert [of.uri for of in done.tables] == [
        f"file://{tmp_path}/{below}{name}" for name in ("datasets", "matrix")
    ]


def test_a_failed_comparison_leaves_the_tables_as_they_were(
    place: Catalogue, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_tables(place, lake.folder, lake.form)
    monkeypatch.setattr(lake_tables, "drift_paths", failing(NotFound("made so")))
    with pytest.raises(NotFound):
        export_tables(place, lake.folder, lake.form, drift=True)
    assert len(lake.history("datasets")) == len(lake.history("matrix")) == 1


def test_delta_tables_reach_an_object_store(place: Catalogue, root: str) -> None:
    for at in (2, 8):
        done = export_tables(place, f"{root}/lake", "delta", at=at)
    uris = {of.name: of.uri for of in done.tables}
    assert uris == {name: f"{root}/lake/{name}" for name in ("datasets", "matrix")}
    table = DeltaTable(uris["datasets"], storage_options={"allow_http": "true"})
    assert [past["vdna.commit"] for past in table.history()] == ["8", "2"]
    assert table.to_pyarrow_table().num_rows == 6
    parts = [uri for uri, _ in ((of.uri, of) for of in storage.walk(f"{root}/lake"))]
    assert all("/lake/datasets/" in uri or "/lake/matrix/" in uri for uri in parts)


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    place = Catalogue(str(tmp_path / "catalogue"))
    put(place, "a", 20)
    put(place, "b", 20, 100)
    words = ["export-tables", str(tmp_path / "lake"), "-c", place.root, "--to", "iceberg"]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    first, *lines = told.stdout.splitlines()
    assert first == "commit 2 as iceberg tables:"
    assert lines[0].startswith("  datasets: 2 rows in file://")
    done = CliRunner().invoke(app, [*words, "--drift", "--json"])
    found = json.loads(done.stdout)
    assert (found["format"], found["commit"]) == ("iceberg", 2)
    assert [(of["name"], of["rows"]) for of in found["tables"]] == [
        ("datasets", 2),
        ("matrix", 4 * (len(SPEC.layers) + 1)),
        ("drift", 0),
    ]


def test_the_effort_is_that_of_the_comparisons(place: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no-such-device"):
        export_tables(place, str(tmp_path), "delta", effort=Effort(device="no-such-device"))
