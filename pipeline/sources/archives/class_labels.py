"""Reads labels that lie beside images in tables: as text, and classes by their names.

Hugging Face's `datasets` writes the number of a class. The names are in the schema's metadata.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.errors import SourceError, first_rows, printable

SHOWN_ROWS = 3
"""Rows that an error shows of a table."""


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Finds the names of classes that a schema states.

    Args:
        schema: The schema of a table that Hugging Face's `datasets` may have written.

    Returns:
        For each column of classes the name of each number.
    """
    try:
        stated = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = stated["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # others may write what they like there


def label_text(value: object, names: Sequence[str] | None) -> str | None:
    """Returns a label as text.

    Args:
        value: The value in the table.
        names: The name of each number, if it is a class.

    Returns:
        The name of a class, or the value as text. None for a missing value, and for the number -1
        of a class, which stands for none.
    """
    if value is None:
        return None
    if names is not None and isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None if value == -1 else str(value)
    return utf8_text(value)


def utf8_text(value: object) -> str:
    """Returns a value as text that can be stored. JSON may hold half of a pair of surrogates."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def label_arrays(table: pa.RecordBatch | pa.Table, labels: Sequence[str]) -> list[pa.Array]:
    """Takes labels of the rows of a table.

    Args:
        table: Rows, with a column of each label.
        labels: The names of the labels.

    Returns:
        The text of each label in each row.

    Raises:
        pa.ArrowException: A column is damaged, or has texts that are not UTF-8.
        OverflowError: A time is outside of the years 1 to 9999.
    """
    known = class_names(table.schema)

    def texts(name: str) -> pa.Array:
        column = table[name]
        column.validate(full=True)
        if pa.types.is_string(column.type):  # no class has texts
            return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return pa.array([label_text(v, known.get(name)) for v in column.to_pylist()], pa.string())

    return list(map(texts, labels))


@contextlib.contextmanager
def label_defects(uri: str, labels: Sequence[str]) -> Iterator[None]:
    """Turns an error of labels that cannot be read into one that names the table.

    An image without its label would count in the wrong part, so the listing ends.

    Args:
        uri: The table.
        labels: The labels that the block reads.

    Yields:
        Nothing.

    Raises:
        SourceError: The block has raised what `label_arrays` raises.
    """
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
        shown = ", ".join(map(repr, labels))
        raise SourceError(
            f"{uri}: the values of {shown} cannot be read as labels: {error}; mend them, or leave "
            "the file out by --exclude"
        ) from error


def require_columns(
    labels: Sequence[str], schema: pa.Schema, uri: str, rows: Sequence[dict[str, object]] = ()
) -> None:
    """Checks that a table has the labels that are asked for.

    Args:
        labels: The names of the labels.
        schema: The schema of the table.
        uri: The table, for the error.
        rows: Its first rows, for the error.

    Raises:
        SourceError: A label is missing, and the message shows the columns and rows; or several
            columns have its name.
    """
    for label in labels:
        if schema.names.count(label) > 1:
            raise SourceError(f"{uri} has several columns {label!r}; give them different names")
        if label not in schema.names:
            raise SourceError(
                f"{uri} has no column {label!r}; it has: {', '.join(map(printable, schema.names))}"
                f"{first_rows(rows)}"
            )
