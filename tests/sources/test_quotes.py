"""A quote that is not closed takes no rows into one value without an error."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow.csv
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import SourceError
from pipeline.sources import list_source
from pipeline.sources.quotes import CheckedQuotes
from pipeline.sources.table_file import TableFile
from tests.support.builders import jpeg


def read_in_pieces(text: bytes, sizes: list[int], delimiter: str = ",") -> bytes:
    file = CheckedQuotes(io.BytesIO(text), "t.csv", delimiter)
    read = [file.read(size) for size in sizes]
    while piece := file.read(4):
        read.append(piece)
    return b"".join(read)


def rows_of(path: Path, text: str) -> list[tuple[object, ...]]:
    path.write_text(text, newline="")
    found = TableFile.open(storage.canonical(str(path)))
    assert found is not None
    return [tuple(row.values()) for row in found.rows()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('uri,label\na.jpg,"dog\nb.jpg,cat\n', "line 2 is never closed"),
        ('uri,label\na.jpg,"x\ny"\nb.jpg,"dog ""\nc.jpg,cat', "line 4 is never closed"),
        ('uri,label\na.jpg,dog\n"b.jpg,cat\n"', None),  # Arrow says so: it has one column
        ('uri,label\na.jpg,"', "line 2 is never closed"),
        ('uri,label\na.jpg,"""', "line 2 is never closed"),
        ('uri,label\na.jpg,"dog\nb.jpg,"cat"\n', "line 2 is closed in the middle of a value"),
        ('uri,label\r\na.jpg,"big" dog\r\n', "line 2 is closed in the middle of a value"),
        ('"uri,label\na.jpg,dog\n', "Empty CSV file"),  # so does it of the names of columns
    ],
)
def test_a_quote_that_takes_in_other_rows_is_refused(
    tmp_path: Path, text: str, message: str | None
) -> None:
    (tmp_path / "t.csv").write_text(text, newline="")
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(1, 8, 8))
    with pytest.raises(SourceError, match=message) as found:
        list_source(str(tmp_path / "t.csv"))
    assert "t.csv" in str(found.value)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ('12" pizza', '12" pizza'),
        ('"a ""b"", c"', 'a "b", c'),
        ('"two\nlines"', "two\nlines"),
        ('""', ""),
        ('""""', '"'),
        ('say "', 'say "'),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_quotes_as_they_are_meant_are_read(tmp_path: Path, value: str, read: str, end: str) -> None:
    assert rows_of(tmp_path / "t.csv", f"uri,label\na.jpg,{value}{end}") == [("a.jpg", read)]
    assert rows_of(tmp_path / "t.tsv", f"uri\tlabel\na.jpg\t{value}{end}") == [("a.jpg", read)]


@given(
    st.lists(st.lists(st.text('a",\n', max_size=4), min_size=2, max_size=2), min_size=1),
    st.lists(st.integers(1, 7)),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_a_library_writes_is_passed_on_as_it_is(
    rows: list[list[str]], sizes: list[int], quoting: int
) -> None:
    written = io.StringIO()
    csv.writer(written, quoting=quoting).writerows(rows)  # type: ignore[arg-type]
    text = written.getvalue().encode()
    assert read_in_pieces(text, sizes) == text


def test_a_mark_of_the_byte_order_is_passed_over(tmp_path: Path) -> None:
    text = '\ufeff"uri,""of""",label\na.jpg,dog\n'
    assert rows_of(tmp_path / "t.csv", text) == [("a.jpg", "dog")]


@given(
    st.lists(st.sampled_from([b"a", b'"', b",", b"\n"])).map(b"".join), st.lists(st.integers(1, 7))
)
@example(b'a,""""', [3])
def test_pieces_of_any_size_are_judged_as_the_whole(text: bytes, sizes: list[int]) -> None:
    def outcome(pieces: list[int]) -> str:
        try:
            read_in_pieces(text, pieces)
        except SourceError as error:
            return str(error)
        return "passed"

    assert outcome(sizes) == outcome([len(text) + 1]) == _by_its_characters(text.decode())


def _by_its_characters(text: str) -> str:
    """Walks a text as RFC 4180 tells, one character at a time."""
    where, opened, line = "begin", 0, 1
    said = "t.csv: the quote that begins a value in line {} {}; close it"
    for letter in text:
        if where == "begin" and letter == '"':
            where, opened = "inside", line
        elif where == "inside":
            where = "quote" if letter == '"' else where
        elif where == "quote" and letter == '"':
            where = "inside"
        elif where == "quote" and letter == "a":
            return _whole(said.format(opened, "is closed in the middle of a value"))
        else:
            where = "begin" if letter in ",\n" else "in"
        line += letter == "\n"
    return _whole(said.format(opened, "is never closed")) if where == "inside" else "passed"


def _whole(message: str) -> str:
    return message + ", or write the value in quotes and each quote in it twice"


def test_an_error_in_a_later_block_is_told_as_it_is(tmp_path: Path) -> None:
    """Arrow reads ahead in a thread of its own."""
    head = b"uri,label\n"
    text = head + b"a.jpg,dog\n" * 300_000 + b'b.jpg,"cat\n' + b"c.jpg,cow\n" * 10
    file = CheckedQuotes(io.BytesIO(text), "t.csv", ",")
    options = pyarrow.csv.ReadOptions(block_size=1 << 16)
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with pytest.raises(SourceError, match="line 300002 is never closed"):
        pyarrow.csv.open_csv(file, read_options=options, parse_options=parsing).read_all()
