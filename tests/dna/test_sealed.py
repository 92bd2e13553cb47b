"""Tests the codec of our files: a file gives back what was written, or is refused by its name."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dna import FileKind, SealedFile, SealedWriter, cut_rows, encode_sealed
from pipeline.dna.sealed import corrupt_if_unreadable, open_parquet
from pipeline.errors import CorruptFile
from pipeline.spec import digest_of
from tests.support.builders import with_row_groups

KIND = FileKind("example")
NAME = "s3://bucket/example.parquet"


def tables() -> list[pa.Table]:
    numbers = np.arange(40, dtype=np.int64) ** 3
    return [
        pa.table({"number": numbers[start : start + 10], "name": ["ä"] * 10})
        for start in (0, 10, 20)
    ]


def data() -> bytes:
    return encode_sealed(KIND, {"origin": {"a": [1, 2.5, None]}, "tuple": (1, 2)}, tables())


def test_what_is_read_is_what_was_written() -> None:
    file = SealedFile(data(), KIND, NAME)
    assert file.metadata == {"origin": {"a": [1, 2.5, None]}, "tuple": [1, 2]}
    assert file.read().equals(pa.concat_tables(tables()))
    assert (file.rows, len(file.row_groups)) == (30, 3)


def test_any_parquet_reader_reads_it() -> None:
    assert pq.read_table(pa.BufferReader(data())).equals(pa.concat_tables(tables()))


def test_the_same_input_gives_the_same_bytes_streamed_or_not() -> None:
    sink = io.BytesIO()
    with SealedWriter(sink, KIND, tables()[0].schema) as writer:
        for table in tables():
            writer.write(table)
        writer.seal({"tuple": (1, 2), "origin": {"a": [1, 2.5, None]}})
    assert sink.getvalue() == data() == data()


def test_a_file_is_compressed_and_has_no_schema_of_arrow_beside_that_of_parquet() -> None:
    footer = pq.read_metadata(io.BytesIO(data()))
    assert set(footer.metadata) == {b"vdna"}
    assert footer.row_group(0).column(0).compression == "ZSTD"
    plain = encode_sealed(KIND, {}, tables(), compression="none")
    assert pq.read_metadata(io.BytesIO(plain)).row_group(0).column(0).compression == "UNCOMPRESSED"


def test_a_table_of_any_size_is_one_row_group() -> None:
    large = pa.table({"number": np.zeros(2**20 + 1, np.int8)})
    file = SealedFile(encode_sealed(KIND, {}, [large]), KIND, NAME)
    assert [group.rows for group in file.row_groups] == [2**20 + 1]
    assert file.read().equals(large)
    assert [piece.num_rows for piece in cut_rows(large)] == [2**20, 1]
    assert pa.concat_tables(cut_rows(large)).equals(large)
    assert [piece.num_rows for piece in cut_rows(large.slice(0, 0))] == [0]


def test_a_file_needs_a_table_or_a_schema() -> None:
    with pytest.raises(ValueError, match="a file of the kind 'example' needs a table or a schema"):
        encode_sealed(KIND, {}, [])


def test_a_file_is_opened_by_its_footer_or_from_a_file_object_too() -> None:
    whole = data()
    stop = SealedFile(whole, KIND, NAME).row_groups[-1].stop
    assert SealedFile(whole[stop:], KIND, NAME, start=stop).rows == 30
    assert SealedFile(io.BytesIO(whole), KIND, NAME).rows == 30
    with pytest.raises(CorruptFile, match=r"its rows end at .*, its footer begins at"):
        SealedFile(whole[stop:], KIND, NAME, start=stop + 1)


def test_a_file_without_rows_is_valid() -> None:
    schema = tables()[0].schema
    for empty in ([], [schema.empty_table()]):
        file = SealedFile(encode_sealed(KIND, {}, empty, schema), KIND, NAME)
        assert file.read(schema).equals(schema.empty_table())


def test_a_file_cut_short_anywhere_is_refused() -> None:
    whole = data()
    for stop in range(len(whole)):
        with pytest.raises(CorruptFile, match=NAME):
            SealedFile(whole[:stop], KIND, NAME).read()


def test_no_flipped_bit_changes_what_is_read() -> None:
    whole = data()
    right = SealedFile(whole, KIND, NAME)
    for at in range(len(whole)):
        spoiled = whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :]
        with contextlib.suppress(CorruptFile):
            file = SealedFile(spoiled, KIND, NAME)
            table = file.read(tables()[0].schema)
            assert (file.metadata, file.row_groups) == (right.metadata, right.row_groups)
            assert table.equals(right.read())


def test_other_rows_under_the_same_metadata_are_refused() -> None:
    first, second, third = tables()
    for others in ([first, third, second], [first, second], [second, second, third]):
        with pytest.raises(CorruptFile, match=NAME):
            SealedFile(with_row_groups(data(), others), KIND, NAME).read()


def test_bytes_between_rows_and_footer_are_refused() -> None:
    whole = data()
    stop = SealedFile(whole, KIND, NAME).row_groups[-1].stop
    with pytest.raises(CorruptFile, match=r"its rows end at .*, its footer begins at"):
        SealedFile(whole[:stop] + b"more" + whole[stop:], KIND, NAME)


def test_rows_are_read_only_if_they_have_their_sha256() -> None:
    """Here nothing else could tell."""
    layout = {"compression": "none", "write_page_checksum": False, "use_dictionary": False}
    numbers = pa.table({"number": np.arange(1000, dtype=np.int64)})
    whole = encode_sealed(KIND, {}, [numbers], **layout)
    at = whole.index(np.int64(777).tobytes())
    file = SealedFile(whole[:at] + b"?" + whole[at + 1 :], KIND, NAME)
    assert file.parquet.read() != numbers
    with pytest.raises(CorruptFile, match="row group 0 has sha256"):
        file.read()


def test_every_page_has_a_checksum_that_reading_verifies() -> None:
    numbers = pa.table({"number": np.arange(1000, dtype=np.int64)})
    whole = encode_sealed(KIND, {}, [numbers], compression="none", use_dictionary=False)
    at = whole.index(np.int64(777).tobytes())
    assert open_parquet(whole, NAME).read().equals(numbers)
    with pytest.raises(OSError, match="CRC"):
        open_parquet(whole[:at] + b"?" + whole[at + 1 :], NAME).read()


def test_columns_of_text_are_read_as_dictionaries_if_that_is_asked_for() -> None:
    """Those that are there. Their pages are verified like others."""
    rows = pa.table({"number": [1, 2, 3], "kind": ["a", "b", "a"], "name": ["x", "y", "z"]})
    whole = encode_sealed(KIND, {}, [rows], compression="none", use_dictionary=False)
    found = open_parquet(whole, NAME, ["kind", "missing"]).read()
    assert [pa.types.is_dictionary(found[name].type) for name in rows.column_names] == [
        False,
        True,
        False,
    ]
    assert found["kind"].to_pylist() == ["a", "b", "a"]
    assert open_parquet(whole, NAME, ["missing"]).read().equals(rows)
    at = whole.index(b"y")
    with pytest.raises(OSError, match="CRC checksum"):
        open_parquet(whole[:at] + b"?" + whole[at + 1 :], NAME, ["kind"]).read()


def test_one_row_group_is_checked_without_the_others() -> None:
    whole = data()
    at = SealedFile(whole, KIND, NAME).row_groups[1].start + 30
    file = SealedFile(whole[:at] + b"?" + whole[at + 1 :], KIND, NAME)
    file.check({0: "the first", 2: "the last"})
    with pytest.raises(CorruptFile, match=f"{NAME}: the second has sha256 .*; its footer states"):
        file.check({1: "the second"})


def test_another_kind_and_another_format_are_refused() -> None:
    with pytest.raises(CorruptFile, match=r"a 'example' file where a 'matrix' file should be"):
        SealedFile(data(), FileKind("matrix"), NAME)
    with pytest.raises(CorruptFile, match=r"format 1 of example.*reads format 2"):
        SealedFile(data(), FileKind("example", 2), NAME)


def test_metadata_that_was_changed_is_refused() -> None:
    whole = data()
    stated = json.loads(pq.read_metadata(io.BytesIO(whole)).metadata[b"vdna"])
    for change in ({"tuple": [1, 3]}, {"row_groups": []}, {"checksum": 7}, {"more": 1}):
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, tables()[0].schema, store_schema=False) as writer:
            writer.add_key_value_metadata({"vdna": json.dumps(stated | change)})
        with pytest.raises(CorruptFile, match="its metadata is not what was written"):
            SealedFile(sink.getvalue(), KIND, NAME)


@pytest.mark.parametrize("stated", [{"rows": True}, {"bytes": 1.0}, {"rows": -1}, {"bytes": -1}])
def test_sizes_of_row_groups_that_are_no_sizes_are_refused(stated: dict[str, object]) -> None:
    row_group = {"rows": 1, "bytes": 1, "sha256": "x"} | stated
    metadata = {"kind": KIND.name, "format": KIND.format, "row_groups": [row_group]}
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, tables()[0].schema, store_schema=False) as writer:
        writer.write_table(tables()[0].slice(0, 1))
        sealed = metadata | {"checksum": digest_of(metadata)}
        writer.add_key_value_metadata({"vdna": json.dumps(sealed)})
    with pytest.raises(CorruptFile, match=r"its metadata cannot be read: .*a row group of"):
        SealedFile(sink.getvalue(), KIND, NAME)


@pytest.mark.parametrize(
    "error",
    [pa.ArrowException, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError],
)
def test_whatever_wrong_content_raises_names_the_file(error: type[Exception]) -> None:
    with (
        pytest.raises(CorruptFile, match=f"{NAME}: torn: {error.__name__}"),
        corrupt_if_unreadable(f"{NAME}: torn"),
    ):
        raise error("wrong")


def test_a_file_of_another_program_is_refused() -> None:
    sink = io.BytesIO()
    pq.write_table(tables()[0], sink)
    with pytest.raises(CorruptFile, match=f"{NAME}: not a file of vdna"):
        SealedFile(sink.getvalue(), KIND, NAME)
    with pytest.raises(CorruptFile, match=f"{NAME}: torn, or not a Parquet file"):
        SealedFile(b"no", KIND, NAME)


def test_missing_columns_are_named() -> None:
    schema = pa.schema([("number", pa.int64()), ("weight", pa.float64())])
    with pytest.raises(CorruptFile, match=f"{NAME}: its rows cannot be read"):
        SealedFile(data(), KIND, NAME).read(schema)
