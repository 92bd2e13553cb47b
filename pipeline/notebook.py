"""What results show of themselves in a notebook: tables in HTML, pandas and Polars, bar charts.

>>> html_table("two", ("name", "n"), [("<a>", 1)])[-42:]
'<td>&lt;a&gt;</td><td>1</td></tr></tbody></table>'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

from pipeline.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from matplotlib.axes import Axes


Cells = tuple[Sequence[str], Iterable[Sequence[object]]]
"""A table: names of its columns, and the cells of each row."""


def data_frame(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> pd.DataFrame:
    """Makes a table of pandas.

    Args:
        columns: Names of the columns.
        rows: Cells of each row.

    Returns:
        The table.
    """
    _require("pandas", "to_pandas", "notebook")
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(columns))


def polars_frame(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> pl.DataFrame:
    """Makes a table of Polars.

    Args:
        columns: Names of the columns.
        rows: Cells of each row.

    Returns:
        The table.
    """
    _require("polars", "to_polars", "polars")
    import polars as pl

    cells = [tuple(row) for row in rows]
    # All rows decide the type of a column: the first may have none, or whole numbers.
    return pl.DataFrame(cells, list(columns), orient="row", infer_schema_length=None)


def arrow_data_frame(table: pa.Table) -> pd.DataFrame:
    """Copies an Arrow table to pandas.

    Args:
        table: The table.

    Returns:
        The copy.
    """
    _require("pandas", "to_pandas", "notebook")
    return cast("pd.DataFrame", table.to_pandas())


def arrow_polars(table: pa.Table) -> pl.DataFrame:
    """Copies an Arrow table to Polars.

    Args:
        table: The table.

    Returns:
        The copy.
    """
    _require("polars", "to_polars", "polars")
    import polars as pl

    return cast("pl.DataFrame", pl.from_arrow(table))


def _require(package: str, method: str, extra: str) -> None:
    """Checks that a package is there, which only its method needs.

    Raises:
        UsageError: It is not installed.
    """
    if find_spec(package) is None:
        raise UsageError(
            f"{method} needs the package {package}, which is not installed: "
            f'pip install "vdna-pipeline[{extra}]"'
        )


def bar_chart(
    labels: Sequence[str], values: Sequence[float], unit: str, ax: Axes | None = None
) -> Axes:
    """Draws a horizontal bar for each value, the first at the top.

    Args:
        labels: Names of the bars.
        values: Lengths of the bars.
        unit: Label of the axis.
        ax: Axes to draw on. None makes a new figure.

    Returns:
        The axes that were drawn on.
    """
    if ax is None:
        ax = new_axes(6, 1 + 0.25 * len(labels))
    ax.barh(labels, values)
    ax.invert_yaxis()
    ax.set_xlabel(unit)
    return ax


def new_axes(width: float, height: float) -> Axes:
    """Makes a figure of pyplot, which a notebook shows and `pyplot.show` opens.

    Args:
        width: Width of the figure in inches.
        height: Height of the figure in inches.

    Returns:
        The axes that fill the figure.
    """
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def html_table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Makes an HTML table, with all text escaped.

    Args:
        caption: Text above the table.
        columns: Names of the columns.
        rows: Cells of each row.

    Returns:
        The element as HTML.
    """
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return (
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
