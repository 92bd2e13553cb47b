"""Tests labels in columns of tables that cannot be read, or whose name is not theirs alone."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from pipeline.sources import Rules, list_source, plan
from pipeline.sources.archives import arrow
from tests.support.builders import jpeg

IMAGES = [jpeg(seed, 8, 8) for seed in range(3)]
FAR_AWAY = pa.array([0, 1 << 60, 1], pa.timestamp("ms"))
"""The second time is in a year that Python has no date for."""
NOT_UTF8 = pa.StringArray.from_buffers(
    3, pa.array([0, 1, 3, 4], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xfeb")
)


def written(path: Path, *columns: tuple[str, pa.Array]) -> Path:
    """Writes columns as Parquet or Arrow, by the path; Arrow in batches of a row."""
    table = pa.Table.from_arrays([c for _, c in columns], names=[name for name, _ in columns])
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=1)
    return path


@pytest.mark.parametrize("option", ["by", "group_by"])
@pytest.mark.parametrize("values", [NOT_UTF8, FAR_AWAY], ids=["not UTF-8", "no date"])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_labels_that_cannot_be_read_end_the_listing_with_the_name_of_the_file(
    name: str, values: pa.Array, option: str, tmp_path: Path
) -> None:
    path = written(tmp_path / name, ("image", pa.array(IMAGES)), ("taken", values))
    expected = rf"{path.as_uri()}: the values of 'taken' cannot be read as labels: .+; mend them"
    with pytest.raises(SourceError, match=expected):
        list_source(path, Rules(**{option: "taken"}))
    assert len(list(list_source(path).entries)) == 3


def test_a_table_that_names_images_with_a_time_that_is_no_date_is_refused(tmp_path: Path) -> None:
    for number, data in enumerate(IMAGES):
        (tmp_path / f"{number}.jpg").write_bytes(data)
    names = pa.array([f"{number}.jpg" for number in range(3)])
    path = written(tmp_path / "table.parquet", ("uri", names), ("taken", FAR_AWAY))
    with pytest.raises(SourceError, match=rf"{path.as_uri()} cannot be read as a table: "):
        list_source(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_label_that_several_columns_have_is_refused(name: str, tmp_path: Path) -> None:
    text = pa.array(["x", "y", "z"])
    path = written(tmp_path / name, ("image", pa.array(IMAGES)), ("at", text), ("at", text))
    with pytest.raises(SourceError, match=r"has several columns 'at'; give them different names"):
        list_source(path, Rules(by="at"))
    assert len(list(list_source(path).entries)) == 3


def test_a_batch_that_cannot_be_read_fails_its_images_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [IMAGES[0], IMAGES[1].ljust(100_000, b"\0"), IMAGES[2]]
    text = pa.array(["x", "y", "z"])
    path = written(tmp_path / "a.arrow", ("image", pa.array(large)), ("at", text))
    monkeypatch.setattr(arrow, "MAX_BATCH_BYTES", 50_000)
    listing = list_source(path, Rules(by="at"))
    rows = [row for _, table in plan(listing).tables() for row in table.to_pylist()]
    found = sorted((row["member"], row["at"]) for row in rows)
    assert found == [("0", "x"), ("1", None), ("2", "z")]
