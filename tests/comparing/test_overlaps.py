"""Tests how many images datasets are said to have in common, against counting them one by one."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import pipeline
from jobs.app import app
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.comparing import Matrix
from pipeline.comparing.matrix import MATRIX_SCHEMA
from pipeline.comparing.overlaps import Overlaps, _shared
from pipeline.engine import InProcess
from pipeline.errors import UsageError
from pipeline.reporting import overlap_lines, overlap_words
from pipeline.spec import Resources
from tests.support import tiny_network as tiny


@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=5))
def test_shared_images_are_those_whose_content_the_other_has(datasets: list[list[int]]) -> None:
    found = [np.unique(np.array(of, np.uint64), return_counts=True) for of in datasets]
    expected = [[sum(image in other for image in one) for other in datasets] for one in datasets]
    assert _shared(found).tolist() == expected


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Builds `a` of images 0 to 5 with 0 twice, `b` of 4 to 7 and 0, `c` of others; `bare`."""
    home = tmp_path_factory.mktemp("overlaps")
    seeds = {"a": [0, 0, 1, 2, 3, 4, 5], "b": [4, 5, 6, 7, 0], "c": [20, 21], "bare": [0, 1]}
    options: dict[str, Any] = {"exemplars": 0, "max_failures": 9, **tiny.install(home).options}
    requests = []
    for name, of in seeds.items():
        (home / name).mkdir()
        for at, seed in enumerate(of):
            (home / name / f"{at}.png").write_bytes(tiny.Picture("good", seed).data)
        (home / name / "bad.png").write_bytes(b"no image")
        hashes = {"image_hashes": False} if name == "bare" else {}
        requests.append(Request(name, str(home / name), **options, **hashes))
    catalogue = Catalogue(str(home / "dnas"))
    build_datasets(catalogue, requests, InProcess(), Resources(workers=0, threads=2))
    return catalogue


def test_datasets_say_what_they_have_in_common(
    place: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = pipeline.find_overlaps(place.root)
    assert (found.names, found.unknown) == (("a", "b", "c"), ("bare",))
    assert found.images.tolist() == [7, 5, 2]
    assert found.shared.tolist() == [[7, 4, 0], [3, 5, 0], [0, 0, 2]]
    assert found.pairs() == [("b", "a")]
    assert found.of("a", "b") == (4, 4 / 7)
    rows = {(row["a"], row["b"]): row for row in found.table.to_pylist()}
    assert Counter(a for a, _ in rows) == {"a": 2, "b": 2, "c": 2}
    assert (rows["b", "a"]["shared"], rows["b", "a"]["share"]) == (3, 3 / 5)
    assert overlap_lines(found) == [
        "3 of 5 images of b are in a, too (60.00%), and 4 of 7 of a in b (57.14%)",
        "it is not known which images bare shares with others: build it with `image_hashes=True`, "
        "which counts its images again",
    ]
    assert overlap_lines(pipeline.find_overlaps(place, ["a", "c"])) == [
        "a and c have no image in common"
    ]
    three = Overlaps(tuple("xyz"), np.ones(3, int), np.eye(3, dtype=int), ())
    assert overlap_lines(three) == ["x, y and z: no image is in two of these datasets"]
    monkeypatch.setattr(overlap_words, "LISTED_OVERLAPS", 0)
    assert overlap_lines(found)[0] == "… and 1 more pair of datasets with images in common"
    empty = Overlaps(tuple("xy"), np.array([0, 2]), np.diag([0, 2]), ())
    assert (empty.table["share"].to_pylist(), empty.of("x", "y")) == ([0.0, 0.0], (0, 0.0))
    nothing = Overlaps((), np.array([]), np.zeros((0, 0), int), ("x", "y"))
    assert overlap_lines(replace(nothing, unknown=())) == []
    unknown = {"a_in_b": [None] * 4, "b_in_a": [None] * 4}
    assert nothing.in_matrix(["x", "y"]).to_pydict() == unknown  # though no dataset is known
    assert found.in_matrix(["b", "bare", "a"])["a_in_b"].to_pylist() == [
        *(5, None, 3),
        *(None, None, None),
        *(4, None, 7),
    ]
    with pytest.raises(UsageError, match="two"):
        pipeline.find_overlaps(place, ["a"])


def test_compare_counts_them_if_asked(place: Catalogue, tmp_path: Path) -> None:
    def told(*words: str) -> str:
        result = CliRunner().invoke(app, ["compare", *words, "-c", place.root, "--workers", "0"])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "3 of 5 images of b are in a, too" in told("--overlaps")
    assert "images of b are in a" not in told()
    rows = {(row["a"], row["b"]): row for row in json.loads(told("--overlaps", "--json"))}
    assert (rows["a", "b"]["a_in_b"], rows["a", "b"]["b_in_a"]) == (4, 3)
    assert [row["a_in_b"] for pair, row in rows.items() if "bare" in pair] == [None] * 3
    assert "a_in_b" not in json.loads(told("--json"))[0]
    table, page = tmp_path / "matrix.parquet", tmp_path / "page.html"
    told("--overlaps", "--out", str(table), "--html", str(page))
    written = {(row["a"], row["b"]): row for row in pq.read_table(table).to_pylist()}
    assert [written["a", b]["a_in_b"] for b in "abc"] == [7, 4, 0]
    assert [written["a", b]["b_in_a"] for b in "abc"] == [7, 3, 0]
    assert {row["b_in_a"] for pair, row in written.items() if "bare" in pair} == {None}
    assert "3 of 5 images of b are in a, too (60.00%), and 4 of 7 of a in b" in page.read_text()
    again = Matrix.decode(table.read_bytes(), "again")
    assert (again.names, again.overlaps) == (("a", "b", "bare", "c"), None)
    assert again.table.column_names == MATRIX_SCHEMA.names
    result = CliRunner().invoke(app, ["compare", "--overlaps", "--top", "1", "-c", place.root])
    assert result.exit_code == 2
    assert "--overlaps" in result.stderr
