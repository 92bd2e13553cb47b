"""Tests tables and archives of labels that hold odd values, or end too early."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.errors import BadImage, SourceError
from pipeline.sources import Members, list_source, plan
from pipeline.sources.archives import archive_file, arrow
from pipeline.sources.archives.sample_labels import MOST_SEEN
from pipeline.sources.lists_and_tables import SourceTable, member_in
from pipeline.sources.rules import Rules
from pipeline.sources.table_file import LONGEST_ROW, TableFile
from tests.support.archives import tar_bytes, zip_bytes
from tests.support.builders import all_shards, jpeg

IMAGE = jpeg(1, 8, 8)


def listed(path: Path, rules: Rules | None = None) -> dict[str, dict[str, Any]]:
    """Lists a source, and returns its rows by their members."""
    found = list_source(str(path), rules or Rules())
    rows = [row for part in found.parts for row in pq.read_table(part).to_pylist()]
    return {row["member"]: row for row in rows}


def text_of_half_a_pair() -> str:
    return '"half of a pair: \\ud83d"'


# Members.


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        *((missing, "") for missing in (None, "", float("nan"))),
        *((0, "0"), (5, "5"), (3.0, "3"), (0.0, "0"), ("0", "0"), ("a.png", "a.png"), (2.5, "2.5")),
    ],
)
def test_a_member_is_named_by_text_or_by_a_number(member: object, expected: str) -> None:
    assert member_in({"member": member}) == expected
    assert member_in({}) == ""


@pytest.mark.parametrize("form", ["parquet", "floats", "jsonl", "csv"])
def test_row_0_of_an_archive_is_one_image_and_not_all_of_them(tmp_path: Path, form: str) -> None:
    pq.write_table(pa.table({"image": [IMAGE] * 6}), tmp_path / "data.parquet")
    rows = pa.table({"uri": ["data.parquet"] * 2, "member": [0, 5], "label": ["x", "y"]})
    path = tmp_path / f"table.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    elif form == "csv":
        path.write_text("uri,member,label\ndata.parquet,0,x\ndata.parquet,5,y\n")
    else:
        path = tmp_path / "table.parquet"
        if form == "floats":
            rows = rows.set_column(1, "member", rows["member"].cast(pa.float64()))
        pq.write_table(rows, path)
    found = listed(path)
    assert {member: row["label_0"] for member, row in found.items()} == {"0": "x", "5": "y"}


# Columns that are no labels.


def test_images_that_a_table_holds_beside_their_names_are_no_labels(tmp_path: Path) -> None:
    """Each would be written into the plan."""
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    table = pa.table({"uri": ["a.jpg"], "image": [IMAGE], "label": ["x"]})
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    assert list_source(str(path)).labels == ("label",)
    (row,) = listed(path).values()
    assert row["label_0"] == "x"
    assert "label_1" not in row
    found = SourceTable.open(storage.canonical(str(path)), Rules())
    assert found is not None
    (batch,) = found.file.batches()
    assert batch.schema.names == ["uri", "label"]


def test_classes_of_a_column_that_is_gone_are_of_no_use(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"uri": ["a.jpg"], "label": [1]})
    told = {"huggingface": json.dumps({"info": {"features": features}})}
    path = tmp_path / "t.parquet"
    pq.write_table(table.replace_schema_metadata(told), path)
    assert [row["label_0"] for row in listed(path).values()] == ["dog"]
    pq.write_table(table.replace_schema_metadata(told).drop_columns(["label"]), path)
    assert list(listed(path)) == [""]


# Texts.


def test_cells_of_a_csv_may_have_several_lines_however_many_there_are(tmp_path: Path) -> None:
    """More than Arrow reads at once."""
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    caption = "first line\n" * 200
    count = LONGEST_ROW // len(caption) + 100
    with (tmp_path / "t.csv").open("w") as file:
        file.write("uri,caption\n")
        for _ in range(count):
            file.write(f'a.jpg,"{caption}"\n')
    found = TableFile.open(storage.canonical(str(tmp_path / "t.csv")))
    assert found is not None
    captions = [row["caption"] for row in found.rows()]
    assert (len(captions), set(captions)) == (count, {caption})


def test_half_a_pair_of_surrogates_is_written_as_its_number(tmp_path: Path) -> None:
    """JSON may hold it, where a text was cut within an emoji. UTF-8 cannot."""
    (tmp_path / "a.jpg").write_bytes(IMAGE)
    path, half = tmp_path / "t.jsonl", text_of_half_a_pair()
    path.write_text(f'{{"uri": "a.jpg", "label": {half}, "size": 3, "identity": {half}}}\n')
    (row,) = listed(path).values()
    written = "half of a pair: \\ud83d"
    assert (row["label_0"], row["identity"]) == (written, written)
    (row,) = listed(path, Rules(group_by="label")).values()
    assert row["group"] == written
    path.write_text(f'{{"uri": "a.jpg"}}\n{{"uri": "a.jpg", {half}: 1}}\n')
    with pytest.raises(SourceError, match=r"line 2 has the column .*ud83d, whose name is no text"):
        list_source(str(path))
    tar = tmp_path / "t.tar"
    tar.write_bytes(tar_bytes([("0.jpg", IMAGE), ("0.json", f'{{"say": {half}}}'.encode())]))
    assert listed(tar, Rules(by="say"))["0.jpg"]["label_0"] == written


# Archives that end too early, or too late.


def samples(ending: str, label: bytes, count: int = 3) -> list[tuple[str, bytes]]:
    return [
        pair for at in range(count) for pair in ((f"{at}.jpg", IMAGE), (f"{at}.{ending}", label))
    ]


@pytest.mark.parametrize(
    ("ending", "label", "by"),
    [
        ("json", json.dumps({"weather": "rain", "rest": "x" * 900}).encode(), "weather"),
        ("cls", b"person-walking", "cls"),
    ],
)
def test_a_tar_that_was_cut_within_a_label_has_the_samples_before_it(
    tmp_path: Path, ending: str, label: bytes, by: str
) -> None:
    whole = tar_bytes(samples(ending, label))
    path = tmp_path / "t.tar"
    path.write_bytes(whole[: whole.rindex(label) + 6])
    found = listed(path, Rules(by=by))
    value = "rain" if by == "weather" else "person-walking"
    assert {name: row["label_0"] for name, row in found.items()} == {
        "0.jpg": value,
        "1.jpg": value,
        "2.jpg": None,
        "": None,
    }
    assert found[""]["access"].startswith("broken truncated")


def test_a_tar_that_was_cut_before_its_first_label_ends_no_listing(tmp_path: Path) -> None:
    label = b"cat"
    (tmp_path / "a").mkdir()
    whole = tar_bytes(samples("cls", label))
    (tmp_path / "a" / "0.tar").write_bytes(whole)
    (tmp_path / "a" / "1.tar").write_bytes(whole[: whole.index(label) - 300])
    found = list_source(str(tmp_path / "a"), Rules(by="cls"))
    rows = [row for part in found.parts for row in pq.read_table(part).to_pylist()]
    labels = [(row["uri"][-5:], row["member"], row["label_0"]) for row in rows]
    assert labels == [
        *(("0.tar", f"{at}.jpg", "cat") for at in range(3)),
        ("1.tar", "0.jpg", None),
        ("1.tar", "", None),
    ]


def test_the_checksum_of_a_packed_tar_counts_though_another_tar_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.sources.archives.tar.CHUNK_BYTES", 4096)
    one, other = tar_bytes([("a.jpg", IMAGE)]), tar_bytes([("b.jpg", IMAGE * 40)])
    path = tmp_path / "t.tar.gz"
    path.write_bytes(gzip.compress(one + other, compresslevel=0))
    sound = listed(path)
    assert sound["a.jpg"]["access"] == "tar gz"
    assert sound[""]["access"].startswith("broken unsupported")
    data = bytearray(path.read_bytes())
    data[data.index(IMAGE) + 30] ^= 0xFF
    path.write_bytes(data)
    damaged = listed(path)
    assert damaged["a.jpg"]["access"].startswith("broken corrupt")
    assert damaged[""]["access"].startswith("broken corrupt")


def test_a_folder_in_a_zip_of_windows_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    path.write_bytes(zip_bytes([("day\\", b""), ("day\\a.jpg", IMAGE), ("empty.jpg", b"")]))
    assert sorted(listed(path)) == ["day\\a.jpg", "empty.jpg"]


def test_few_names_of_labels_are_kept_for_a_message(tmp_path: Path) -> None:
    """Where members have numbers for endings, there are as many as members."""
    path = tmp_path / "t.tar"
    path.write_bytes(tar_bytes([("a.jpg", IMAGE), *((f"frame.{at:06d}", b"") for at in range(99))]))
    with pytest.raises(SourceError, match=r"has no label 'cls'.*, …$") as caught:
        list_source(str(path), Rules(by="cls"))
    assert str(caught.value).count(", ") == MOST_SEEN


def test_a_record_batch_that_is_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.arrow"
    table = pa.table({"image": [IMAGE * 200] * 20})
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)
    manifest = plan(list_source(str(path)))
    (entry, *_) = [entry for shard in all_shards(manifest) for entry in shard.members]
    asked: list[int] = []
    real = archive_file.ArchiveFile.read

    def read(self: Any, length: int = -1) -> bytes:
        asked.append(length)
        return real(self, length)

    monkeypatch.setattr(archive_file.ArchiveFile, "read", read)
    monkeypatch.setattr(arrow, "MAX_BATCH_BYTES", 10_000)
    with pytest.raises(BadImage, match="a record batch of"):
        Members([entry], 2**28, 8).fetch(entry)
    assert sum(asked) < 10_000
