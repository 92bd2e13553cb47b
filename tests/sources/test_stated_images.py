"""Tests that a table whose rows state images is listed together as it is row by row."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import QUERY_VARIABLE, SourceError, UsageError, VdnaError
from pipeline.sources import Rules, list_source, lists_and_tables, plan
from pipeline.sources.lists_and_tables import SourceTable
from pipeline.sources.source_lister import SourceLister
from pipeline.sources.stated_images import stated_images
from pipeline.sources.table_file import TableFile, rows_of
from pipeline.storage import Stored

PLACES = [
    "s3://b/p/",
    "S3://B/p//",
    "s3://b/p/../q/",
    "s3://b/a b%20c/\u00fc/",
    "s3://user:word@b/",
    "s3://b/x?token=abc/",
    "https://h/",
    "https://h/?/",
    "gs://b/day=1/",
    "s3://b/authorization=1/",
    "zip://a.zip!",
    "",
    "sub/",
    "./sub/../other/",
    "../above/",
    "~nobody/",
    "~/",
    "/data/",
    "file:///data/%41/",
    "local://data/",
    "//",
]

REFUSED = (
    *("s3://user:word@b/", "s3://b/authorization=1/", "s3://b/x?token=abc/", "https://h/?/"),
    "local://data/",
)
"""Places of which every image may carry a secret, and the url of a local file without its root."""

ODD = """a.jpg B_1.PNG -a.jpg .a.jpg \u00fc.jpg a.jpg?v=1 a#1.jpg a.tar a.txt a%20.jpg a.jpg/
thumbs.db
README a.parquet a=1.webp a;b.jpg a,token=b.jpg ~.jpg a+b.jpg hf_0123456789abcdefghij.jpg
HF_0123456789abcdefghij.jpg"""

FILES = [*ODD.split(), "a b.jpg", "a.jpg\n"]

NAMES = (
    st.none()
    | st.just("")
    | st.builds("".join, st.tuples(st.sampled_from(PLACES), st.sampled_from(FILES)))
)
NAMES |= st.builds("{}{:03}.jpg".format, st.sampled_from(PLACES), st.integers(0, 30))

SIZES = {
    pa.int64(): st.none() | st.integers(-1, 2**62),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int8(): st.none() | st.integers(-5, 120),
    pa.float64(): st.none() | st.sampled_from([0.0, 7.0, 7.5, float("nan"), 1e300]),
    pa.string(): st.none()
    | st.sampled_from(["", "0", "12", "-1", "1.0", "\u0663", "9" * 19, "9" * 18]),
}

IDENTITIES = {
    pa.string(): st.none() | st.sampled_from(["", "e", "e2"]),
    pa.large_string(): st.sampled_from(["e", "f"]),
    pa.int64(): st.none() | st.integers(0, 3),
}

LABELS = {
    pa.string(): st.none() | st.sampled_from(["", "rain"]),
    pa.float64(): st.none() | st.sampled_from([0.1, 1e16, 3.0]),
    pa.bool_(): st.none() | st.booleans(),
    pa.int64(): st.none() | st.integers(-1, 2),
}


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Tables of images with stated sizes and identities, some of them out of place."""
    rows = draw(st.integers(1, 12))

    def column(kinds: dict[pa.DataType, st.SearchStrategy[Any]]) -> pa.Array:
        kind = draw(st.sampled_from(list(kinds)))
        return pa.array([draw(kinds[kind]) for _ in range(rows)], kind)

    names = pa.array([draw(NAMES) for _ in range(rows)], pa.string())
    columns = {
        "uri": names.dictionary_encode() if draw(st.booleans()) else names,
        "size": column(SIZES),
        "identity": column(IDENTITIES),
        "weather": column(LABELS),
        "video": column(LABELS),
    }
    if draw(st.booleans()):
        columns["member"] = column({pa.string(): st.sampled_from([None, "", "", "m.jpg"])})
    return pa.table(columns)


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says of every object what its name says, and looks into no archive: nothing is asked."""
    real = storage.info

    def info(uri: str) -> Stored:
        return real(uri) if "/table." in uri else Stored(uri, len(uri), f"looked up {uri}", None)

    monkeypatch.setattr(storage, "info", info)
    monkeypatch.setattr(SourceLister, "list_archives", lambda *_: None)


def outcome(path: Path, rules: Rules) -> Any:
    """What a listing has, or the error that it ends with."""
    try:
        found = list_source(path, rules)
    except VdnaError as error:
        return type(error), str(error)
    rows = [row for part in found.parts for row in pq.read_table(part).to_pylist()]
    ignored = dict(found.ignored)
    return sorted(map(repr, rows)), found.labels, ignored, found.filtered, found.duplicates


def one_by_one(path: Path, rules: Rules) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TableFile, "has_batches", False)
        return outcome(path, rules)


RULES = [Rules(), Rules(by="weather", group_by="video"), Rules(group_by="1"), Rules(exclude="*1*")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(tables(), st.sampled_from(RULES), st.sampled_from(["parquet", "csv"]))
def test_rows_are_listed_together_as_they_are_one_by_one(
    table: pa.Table, rules: Rules, kind: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table.{kind}"
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=5)
        else:
            pyarrow.csv.write_csv(table, path)
        found, expected = outcome(path, rules), one_by_one(path, rules)
    if table.num_rows > 1 and isinstance(expected[0], type):  # of several errors, one is told
        assert isinstance(found[0], type)
    else:
        assert found == expected


@pytest.mark.parametrize("place", PLACES)
def test_an_image_of_any_name_is_listed_as_it_is_alone(tmp_path: Path, place: str) -> None:
    path, found = tmp_path / "table.parquet", 0
    for file in FILES:
        row = {"uri": [f"{place}{file}"], "size": [7], "identity": ["e"]}
        pq.write_table(pa.table(row), path)
        expected = one_by_one(path, Rules())
        assert outcome(path, Rules()) == expected, file
        found += not isinstance(expected[0], type)
    assert bool(found) == (place not in REFUSED)


SIZES_OF_PANDAS = [0.0, 7.0, 7.5, -1.0, 2.0**53 - 1, 2.0**53, 2.0**62, 2.0**70, 1e300, float("inf")]


@pytest.mark.parametrize("size", SIZES_OF_PANDAS)
def test_a_size_that_is_no_integer_is_listed_as_it_is_alone(tmp_path: Path, size: float) -> None:
    path = tmp_path / "table.parquet"
    write(path, 2, size=[7.0, size])
    assert outcome(path, Rules()) == one_by_one(path, Rules())


def write(path: Path, rows: int, **columns: Any) -> None:
    names = [f"s3://b/drive{at // 100}/{at:06}.jpg" for at in range(rows)]
    stated = {"uri": names, "size": [7] * rows, "identity": [f"e{at}" for at in range(rows)]}
    pq.write_table(pa.table(stated | columns), path)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked at one by one."""
    names: list[str] = []
    real = SourceTable.name_in

    def name_in(table: SourceTable, row: Any) -> str:
        names.append(real(table, row))
        return names[-1]

    monkeypatch.setattr(SourceTable, "name_in", name_in)
    return names


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_rows_that_state_images_are_not_looked_at(
    tmp_path: Path, looked_at: list[str], kind: str
) -> None:
    path = tmp_path / "table.parquet"
    write(path, 10_000, weather=["rain", "sun"] * 5_000)
    if kind == "csv":
        table, path = pq.read_table(path), tmp_path / "table.csv"
        pyarrow.csv.write_csv(table, path)
    listing = list_source(path, Rules(by="weather"))
    assert looked_at == []
    made = plan(listing, by="weather")
    assert made.candidates == 10_000
    assert {value for head in made.heads for value in head.values} == {"rain", "sun"}


def test_a_row_that_is_out_of_place_is_named_by_its_number(
    tmp_path: Path, looked_at: list[str]
) -> None:
    sizes = [7] * 9_000
    sizes[5_000] = -1
    write(tmp_path / "table.parquet", 9_000, size=sizes)
    with pytest.raises(SourceError, match=r"table\.parquet, row 5001: size is -1"):
        list_source(tmp_path / "table.parquet")
    assert looked_at == ["s3://b/drive50/005000.jpg"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("s3://b/drive0/hf_0123456789abcdefghij.jpg", "carries a user name, a token"),
        ("s3://user:word@b/drive0/000007.jpg", "carries a user name, a token"),
        ("https://h/?/000007.jpg", "has a query or a fragment"),
        ("s3://b/Basic 1/000007.jpg", "carries a user name, a token"),
    ],
)
def test_a_row_that_states_what_must_not_be_kept_is_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    names = [f"s3://b/drive0/{at:06}.jpg" for at in range(300)]
    write(tmp_path / "table.parquet", 300, uri=[*names[:7], name, *names[8:]])
    with pytest.raises(UsageError, match=f"row 8: .*{message}"):
        list_source(tmp_path / "table.parquet")


@pytest.mark.parametrize("column", ["uri", "identity", "weather"])
@pytest.mark.parametrize("row", [7, 5_000])
def test_a_table_of_texts_that_are_not_utf_8_is_refused(
    tmp_path: Path, column: str, row: int
) -> None:
    """Whether its row would be looked at or not."""
    path = tmp_path / "table.parquet"
    write(path, 6_000, weather=["rain"] * 6_000)
    table = pq.read_table(path)
    values = [value.encode() for value in table[column].to_pylist()]
    values[row] = b"s3://b/d\xe9/a.jpg"
    damaged = pa.array(values, pa.binary()).view(pa.string())
    pq.write_table(table.set_column(table.column_names.index(column), column, damaged), path)
    with pytest.raises(SourceError, match=r"table\.parquet cannot be read as a table: .*UTF"):
        list_source(path)


def test_columns_that_arrow_cannot_cut_are_read(tmp_path: Path) -> None:
    write(tmp_path / "table.parquet", 30)
    table = pq.read_table(tmp_path / "table.parquet")
    for kind in (pa.string_view(), pa.run_end_encoded(pa.int32(), pa.string())):
        label = pa.array(["rain"] * 30)
        label = label.cast(kind) if kind == pa.string_view() else pc.run_end_encode(label)
        (batch,) = table.append_column("weather", label).to_batches()
        images, taken = stated_images(batch, "uri", None, ["weather"], str)
        assert images is None
        assert not taken.any()
        assert [row["weather"] for row in rows_of(batch)] == ["rain"] * 30


@pytest.mark.parametrize("size", [7, 7.0, "7"])
def test_sizes_of_any_kind_are_taken(tmp_path: Path, looked_at: list[str], size: Any) -> None:
    """Those of pandas are no integers beside gaps."""
    write(tmp_path / "table.parquet", 30, size=[size] * 29 + [None])
    found = list(list_source(tmp_path / "table.parquet").entries)
    assert looked_at == ["s3://b/drive0/000029.jpg"]
    assert sorted(entry.size for entry in found)[:29] == [7] * 29


@pytest.mark.parametrize("kind", [pa.uint64(), pa.string()])
def test_a_size_beyond_all_objects_is_refused(tmp_path: Path, kind: pa.DataType) -> None:
    sizes = pa.array([7, 2**63 - 1, 2**63], pa.uint64()).cast(kind)
    write(tmp_path / "table.parquet", 3, size=sizes)
    with pytest.raises(SourceError, match=r"row 3: size is '?9223372036854775808'?; it must"):
        list_source(tmp_path / "table.parquet")
    write(tmp_path / "table.parquet", 2, size=sizes.slice(0, 2))
    found = list_source(tmp_path / "table.parquet").entries
    assert sorted(entry.size for entry in found) == [7, 2**63 - 1]


def test_an_image_outside_the_folder_of_groups_is_named(tmp_path: Path) -> None:
    write(tmp_path / "table.parquet", 300)
    with pytest.raises(UsageError, match=r"names s3://b/drive0/000000\.jpg, which does not lie"):
        list_source(tmp_path / "table.parquet", Rules(group_by="1"))


def test_a_name_that_has_the_value_of_a_secret_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{QUERY_VARIABLE}KEY", "000123")
    write(tmp_path / "table.parquet", 300)
    with pytest.raises(UsageError, match=r"row 124: .*carries a user name, a token or a password"):
        list_source(tmp_path / "table.parquet")


def test_other_tables_are_looked_up_by_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists_and_tables, "PAGE_ROWS", 7)
    write(tmp_path / "table.parquet", 100)
    table = pq.read_table(tmp_path / "table.parquet").drop_columns(["identity"])
    pq.write_table(table, tmp_path / "table.parquet")
    found = list(list_source(tmp_path / "table.parquet").entries)
    assert len(found) == 100
    assert all(entry.identity == f"looked up {entry.uri}" for entry in found)
