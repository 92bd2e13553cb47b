"""Logs results to runs of Weights & Biases and of MLflow: numbers, tables and figures.

    >>> log_wandb(compare("dnas"), run)                              # doctest: +SKIP
    >>> log_mlflow(emd(a, b), step=epoch)                            # doctest: +SKIP

Both get the same. A matrix has a row for each pair, with the distances over all neurons; `save`
writes all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from pipeline.comparing import Distance, Matrix
from pipeline.dna import DNA
from pipeline.errors import UsageError
from pipeline.explaining import Explanation, Ranking
from pipeline.notebook import Cells, data_frame

if TYPE_CHECKING:
    import pyarrow as pa
    from matplotlib.figure import Figure

Loggable = DNA | Distance | Matrix | Explanation | Ranking
"""What is logged."""


@dataclass(frozen=True)
class LogParts:
    """What is logged of a result beside its figure.

    Attributes:
        tables: Tables by name.
        numbers: Numbers by name; unknown ones are left out.
    """

    tables: Mapping[str, Cells]
    numbers: Mapping[str, float] = field(default_factory=dict)


def log_wandb(
    result: Loggable, run: Any = None, *, name: str = "vdna", step: int | None = None
) -> None:
    """Logs a result to a run of Weights & Biases.

    Args:
        result: A matrix, an explanation, a ranking, a distance or a DNA.
        run: The run, as `wandb.init` returns it; None for the one that is active.
        name: What the names of all that is logged begin with.
        step: The step of the run; None for the next one.

    Raises:
        UsageError: wandb is not installed, no run is active, or a table has more rows than W&B
            keeps.
    """
    _require_package("wandb")
    import wandb

    run = wandb.run if run is None else run
    if run is None:
        raise UsageError("no run of W&B is active; call wandb.init(), or give `run`")
    parts = _parts_of(result)
    logged: dict[str, Any] = dict(parts.numbers)
    for key, (columns, rows) in parts.tables.items():
        data: list[Any] = [list(row) for row in rows]
        most = wandb.Table.MAX_ARTIFACT_ROWS
        if len(data) > most:
            raise UsageError(
                f"the table {key} has {len(data):,} rows, and W&B keeps {most:,} of them; save the "
                "result to a file, and log that as an artifact"
            )
        logged[key] = wandb.Table(columns=list(columns), data=data)
    with _figure_of(result) as figure:
        logged["plot"] = wandb.Image(figure)
    run.log({f"{name}/{key}": value for key, value in logged.items()}, step=step)


def log_mlflow(
    result: Loggable, run_id: str | None = None, *, name: str = "vdna", step: int | None = None
) -> None:
    """Logs a result to a run of MLflow.

    Numbers are metrics of that step. Tables and the figure are artifacts, in a folder of the step
    if there is one: MLflow would add the rows of a later table to those of an earlier one.

    Args:
        result: A matrix, an explanation, a ranking, a distance or a DNA.
        run_id: The run; None for the one that is active.
        name: The folder of the artifacts, and what the names of metrics begin with.
        step: The step of the run.

    Raises:
        UsageError: mlflow or pandas is not installed, or no run is active.
    """
    _require_package("mlflow")
    import mlflow

    if run_id is None:
        active = mlflow.active_run()
        if active is None:
            raise UsageError(
                "no run of MLflow is active; call mlflow.start_run(), or give `run_id`"
            )
        run_id = active.info.run_id
    client, parts = mlflow.MlflowClient(), _parts_of(result)
    folder = name if step is None else f"{name}/step-{step}"
    for key, (columns, rows) in parts.tables.items():
        table = data_frame(columns, rows).astype(object)
        client.log_table(run_id, table, f"{folder}/{key}.json")
    with _figure_of(result) as figure:
        client.log_figure(run_id, figure, f"{folder}/plot.png")
    for key, number in parts.numbers.items():
        client.log_metric(run_id, f"{name}/{key}", number, step=step)


def _parts_of(result: Loggable) -> LogParts:
    if isinstance(result, Matrix):
        table = result.table
        once = pc.and_(pc.less(table["a"], table["b"]), pc.equal(table["layer"], result.planes[-1]))
        return LogParts({"distances": _cells_of(table.filter(once))})
    if isinstance(result, Explanation):
        tables = {"layers": _cells_of(result.layers), "neurons": _cells_of(result.neurons)}
        return LogParts(tables, {"differing": result.differing})
    if isinstance(result, Ranking):
        numbers = {"ranked": result.ranked, "failed": result.failed}
        return LogParts({"images": result.cells}, numbers)
    if isinstance(result, Distance):
        known: dict[str, float] = {result.measure: float(result), **result.estimates.whole}
        finite = {key: value for key, value in known.items() if math.isfinite(value)}
        return LogParts({"layers": result.cells}, finite)
    if isinstance(result, DNA):
        return LogParts({"layers": result.layer_cells}, {"images": result.images})
    raise UsageError(
        f"a {type(result).__name__} is not logged; give a matrix, an explanation, a ranking, a "
        "distance or a DNA"
    )


def _cells_of(table: pa.Table) -> Cells:
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, list(zip(*columns, strict=True))


@contextmanager
def _figure_of(result: Loggable) -> Iterator[Figure]:
    """Draws a result, and closes the figure afterwards, so that a long run does not gather them."""
    from matplotlib import pyplot

    figure = result.plot().figure
    try:
        yield figure  # type: ignore[misc]  # the axes lie in no other figure
    finally:
        pyplot.close(figure)  # type: ignore[arg-type]  # the same figure


def _require_package(name: str) -> None:
    """Checks that a package is installed.

    Raises:
        UsageError: It is not.
    """
    if find_spec(name) is None:
        raise UsageError(
            f'log_{name} needs {name}, which is not installed: pip install "vdna-pipeline[{name}]"'
        )
