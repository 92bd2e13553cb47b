"""Tests that results reach the files of offline runs of W&B and of MLflow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot
from PIL import Image

from pipeline import (
    RankRequest,
    Request,
    build,
    compare,
    emd,
    explain,
    log_mlflow,
    log_wandb,
    make_dna,
    rank,
)
from pipeline.dna import HeldFolds
from pipeline.errors import UsageError
from pipeline.interop import run_logs
from tests.support import tiny_network
from tests.support.builders import write_photos


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One result of each kind."""
    folder = tmp_path_factory.mktemp("logs")
    place = tiny_network.install(tmp_path_factory.mktemp("network"))
    options: dict[str, Any] = dict(place.options)
    root = str(folder / "catalogue")
    for seed, name in enumerate(("a", "b", "c")):
        write_photos(folder / name, 20, first_seed=100 * seed)
        build(root, Request(name, str(folder / name), **options))
    made = [make_dna(folder / name, **options) for name in ("a", "b")]
    return {
        "matrix": compare(root),
        "explanation": explain(root, "a", "b"),
        "ranking": rank(root, RankRequest(str(folder / "b"), "a", weights=place.weights, top=3)),
        "distance": emd(*made),
        "dna": made[0],
    }


TABLES = {
    "matrix": {"distances": 3},
    "explanation": {"layers": 3, "neurons": 7},
    "ranking": {"images": 6},
    "distance": {"layers": 2},
    "dna": {"layers": 2},
}
"""Rows of the tables of each result."""

NUMBERS = {
    "ranking": {"ranked": 20, "failed": 0},
    "dna": {"images": 20},
}


@pytest.fixture(autouse=True)
def close_figures() -> None:
    """Closes the figures that other tests have left open."""
    pyplot.close("all")


class Recorded:
    """A run that keeps what is logged."""

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}
        self.steps: list[int | None] = []

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        self.logged |= data
        self.steps.append(step)


def test_wandb_gets_a_table_for_each_part_a_figure_and_numbers(results: dict[str, Any]) -> None:
    wandb = pytest.importorskip("wandb")
    run = Recorded()
    for step, (name, result) in enumerate(results.items()):
        log_wandb(result, run, name=name, step=step)
    assert run.steps == [0, 1, 2, 3, 4]
    for name, tables in TABLES.items():
        assert {key: len(run.logged[f"{name}/{key}"].data) for key in tables} == tables
        assert isinstance(run.logged[f"{name}/plot"], wandb.Image)
    for name, numbers in NUMBERS.items():
        assert {key: run.logged[f"{name}/{key}"] for key in numbers} == numbers
    assert run.logged["distance/high"] == results["distance"].high
    table = run.logged["ranking/images"]
    assert [row[table.columns.index("rank")] for row in table.data] == [1, 2, 3, 18, 19, 20]
    assert not pyplot.get_fignums()


@pytest.mark.soak  # a run starts a process, which takes seconds
def test_a_run_of_wandb_has_tables_figures_and_numbers(
    results: dict[str, Any], tmp_path: Path
) -> None:
    wandb = pytest.importorskip("wandb")
    quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True)
    with wandb.init(mode="offline", dir=str(tmp_path), project="tests", settings=quiet) as run:
        for name, result in results.items():
            log_wandb(result, run, name=name)
        log_wandb(results["distance"], step=run.step + 4)
        assert run.step >= 9
        run.log({"end": 1}, commit=True)  # what went before is in the summary then
        logged = dict(run.summary)
    media = Path(run.dir) / "media"
    for name, tables in TABLES.items():
        for key, rows in tables.items():
            (path,) = (media / "table" / name).glob(f"{key}_*.table.json")
            table = json.loads(path.read_text())
            assert (len(table["data"]), logged[f"{name}/{key}"]["nrows"]) == (rows, rows)
        (picture,) = (media / "images" / name).glob("plot_*.png")
        with Image.open(picture) as drawn:
            assert drawn.width > 100
    for name, numbers in NUMBERS.items():
        assert {key: logged[f"{name}/{key}"] for key in numbers} == numbers
    distance = results["distance"]
    assert logged["vdna/emd"] == pytest.approx(float(distance))
    assert logged["vdna/low"] == pytest.approx(distance.low)
    (path,) = (media / "table" / "matrix").glob("*.json")
    table = json.loads(path.read_text())
    pairs = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(pair["a"], pair["b"]) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    matrix = results["matrix"]
    assert pairs[1]["high"] == pytest.approx(matrix.of("all", "high")[0, 2])
    assert not pyplot.get_fignums()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of MLflow in files, whose client needs no database."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())  # which it makes
    yield tmp_path / "store"
    mlflow.set_tracking_uri(before)


def test_a_run_of_mlflow_has_tables_figures_and_numbers(
    results: dict[str, Any], store: Path
) -> None:
    import mlflow

    with mlflow.start_run() as run:
        for name, result in results.items():
            log_mlflow(result, name=name)
    client = mlflow.MlflowClient()
    for step in (1, 2):
        log_mlflow(results["distance"], run.info.run_id, step=step)
    (artifacts,) = store.rglob(f"{run.info.run_id}/artifacts")
    for name, tables in TABLES.items():
        for key, rows in tables.items():
            assert len(json.loads((artifacts / name / f"{key}.json").read_text())["data"]) == rows
        assert (artifacts / name / "plot.png").stat().st_size > 1000
    assert len(json.loads((artifacts / "vdna/step-2/layers.json").read_text())["data"]) == 2
    metrics = client.get_run(run.info.run_id).data.metrics
    for name, numbers in NUMBERS.items():
        assert {key: metrics[f"{name}/{key}"] for key in numbers} == numbers
    history = client.get_metric_history(run.info.run_id, "vdna/high")
    assert [(entry.step, entry.value) for entry in history] == [
        (1, results["distance"].high),
        (2, results["distance"].high),
    ]
    assert not pyplot.get_fignums()


def test_without_a_run_or_a_package_the_logger_says_what_to_do(
    results: dict[str, Any], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    with pytest.raises(UsageError, match=r"call wandb\.init\(\), or give `run`"):
        log_wandb(results["dna"])
    with pytest.raises(UsageError, match=r"call mlflow\.start_run\(\), or give `run_id`"):
        log_mlflow(results["dna"])
    with pytest.raises(UsageError, match="a str is not logged"):
        log_wandb("matrix", object())  # type: ignore[arg-type]  # what a user may do
    monkeypatch.setattr(run_logs, "find_spec", lambda name: None)
    for log, name in ((log_wandb, "wandb"), (log_mlflow, "mlflow")):
        with pytest.raises(UsageError, match=rf'pip install "vdna-pipeline\[{name}\]"'):
            log(results["dna"])


def test_a_table_that_wandb_would_cut_is_refused(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb.Table, "MAX_ARTIFACT_ROWS", 2)
    with pytest.raises(UsageError, match="the table distances has 3 rows, and W&B keeps 2"):
        log_wandb(results["matrix"], object())


def test_what_is_not_known_is_no_number(results: dict[str, Any]) -> None:
    plain = replace(results["dna"], folds=None)
    assert run_logs._parts_of(emd(plain, plain)).numbers == {"emd": 0}
    single = replace(plain, folds=HeldFolds.of([(0, plain)]))
    assert math.isnan(emd(single, single).high)
    assert run_logs._parts_of(emd(single, single)).numbers == {"emd": 0}
