"""Tests that the file of a ranking says what was reported, and is checked when it is read."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import html_page, storage
from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.dna import Lens
from pipeline.engine import InProcess
from pipeline.errors import CorruptFile, NotFound, SourceError
from pipeline.explaining import Ranking, RankRequest, rank, read_ranking
from pipeline.reporting import ranking_lines
from pipeline.spec import Resources, digest_of
from tests.support import tiny_network as tiny
from tests.support.tiny_network import Picture

RESOURCES = Resources(workers=0, threads=2)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def catalogue(place: tiny.Place, tmp_path: Path) -> Catalogue:
    catalogue = Catalogue(str(tmp_path / "catalogue"))
    build(catalogue, tmp_path / "target", 5, 0, place)
    return catalogue


def build(catalogue: Catalogue, folder: Path, count: int, first: int, place: tiny.Place) -> None:
    write(folder, count, first)
    request = Request("target", str(folder), exemplars=0, **place.options)  # type: ignore[arg-type]
    build_datasets(catalogue, [request], InProcess(), RESOURCES)


def write(folder: Path, count: int, first: int) -> None:
    """Writes pictures; those that are there already stay as they are."""
    folder.mkdir(exist_ok=True)
    for seed in range(first, first + count):
        write_once(folder / f"{seed}.png", Picture("good", seed))


def write_once(path: Path, picture: Picture) -> None:
    if not path.exists():
        path.write_bytes(picture.data)


def ranked(
    catalogue: Catalogue,
    tmp_path: Path,
    place: tiny.Place,
    lens: Lens | None = None,
    to: str = "target",
) -> tuple[Ranking, str]:
    source = tmp_path / "source"
    write(source, 6, 50)
    write_once(source / "bad.png", Picture("truncated", 1))
    out = str(tmp_path / "near.parquet")
    request = RankRequest(
        str(source),
        to,
        weights=place.weights,
        layers=["b"],
        top=2,
        out=out,
        max_failures=1,
    )
    return rank(catalogue, request, InProcess(), lens=lens, resources=RESOURCES), out


def test_a_ranking_is_read_as_it_was_reported(
    catalogue: Catalogue, tmp_path: Path, place: tiny.Place
) -> None:
    lens = Lens("some", (("a", 4), ("b", 3)), np.array([1, 0, 2, 0.5, 3, 0, 1]))
    for through in (None, lens):
        made, out = ranked(catalogue, tmp_path, place, through)
        assert len(made.nearest) == len(made.farthest) == 2
        assert len(made.unranked) == 1
        assert read_ranking(catalogue, out) == replace(made, counted_shards=0)


def test_a_ranking_by_an_earlier_version_is_of_the_commit_that_had_it(
    catalogue: Catalogue, tmp_path: Path, place: tiny.Place
) -> None:
    made, out = ranked(catalogue, tmp_path, place)
    build(catalogue, tmp_path / "target", 5, 90, place)
    assert catalogue.find("target").dna != made.version.dna
    found = read_ranking(catalogue, out)
    assert (found.commit, found.version) == (made.commit, made.version)
    again, out = ranked(catalogue, tmp_path, place, to="target@-1")
    assert again == replace(made, name="target@-1", counted_shards=0)
    assert json.loads(pq.read_metadata(out).metadata[b"vdna"])["dataset"] == "target@-1"
    assert ranking_lines(again)[0].startswith("nearest to target@-1, in bins")
    page = html_page(catalogue, again).html
    assert b"by distance to target@-1" in page
    assert b"Nearest to target@-1" in page
    build(catalogue, tmp_path / "target", 5, 120, place)
    assert read_ranking(catalogue, out) == again  # though `target@-1` is another version now
    build(other := Catalogue(str(tmp_path / "other")), tmp_path / "others", 3, 200, place)
    with pytest.raises(
        NotFound, match=rf"near.parquet ranks images by target@-1 of DNA .*{other.root}"
    ):
        read_ranking(other, out)


def edited(path: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Writes the file with other metadata, whose checksum is right."""
    table = pq.ParquetFile(path)
    stated = json.loads(table.metadata.metadata[b"vdna"])
    del stated["checksum"]
    change(stated)
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema_arrow, store_schema=False) as writer:
        for group in range(table.num_row_groups):
            writer.write_table(table.read_row_group(group))
        stated["checksum"] = digest_of(stated)
        writer.add_key_value_metadata({"vdna": json.dumps(stated)})
    Path(path).write_bytes(sink.getvalue())


def test_what_is_no_ranking_is_refused_by_name(
    catalogue: Catalogue, tmp_path: Path, place: tiny.Place
) -> None:
    _, out = ranked(catalogue, tmp_path, place)
    data = Path(out).read_bytes()
    dna = catalogue.find("target")
    for damaged in (
        b"",
        data[: len(data) // 2],
        data.replace(b'"nearest"', b'"nearert"'),
        storage.read(catalogue.uri("dna", dna.spec, "target", dna.dna)),
    ):
        Path(out).write_bytes(damaged)
        with pytest.raises(CorruptFile, match=r"near\.parquet"):
            read_ranking(catalogue, out)
    Path(out).write_bytes(data)
    for strange in (7, [{"rank": 1}], [{"rank": 1, "emd": 2, "layers": [], "entry": {"x": 1}}]):
        edited(out, lambda stated, strange=strange: stated.update(nearest=strange))  # type: ignore[misc]
        with pytest.raises(CorruptFile, match=r"near\.parquet: its metadata is not that of a rank"):
            read_ranking(catalogue, out)
    with pytest.raises(SourceError, match=r"none\.parquet"):
        read_ranking(catalogue, str(tmp_path / "none.parquet"))


def test_a_ranking_in_a_store_makes_this_machine_read_none_of_its_files(
    catalogue: Catalogue, tmp_path: Path, place: tiny.Place
) -> None:
    _, out = ranked(catalogue, tmp_path, place)
    far = "memory://far/near.parquet"
    storage.replace(far, Path(out).read_bytes())
    with pytest.raises(SourceError, match=r"lies in a store, and names .*source"):
        read_ranking(catalogue, far)
