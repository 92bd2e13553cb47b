"""A source of Parquet files has cells: a file that comes or goes has few other images read again.

A row has the identity of its file. So all rows of a file that is replaced are read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.building import (
    Request,
    Result,
    build_datasets,
    make_dna,
    preview_erasure,
    shard_time,
)
from pipeline.catalogue import Catalogue, verify
from pipeline.engine import InProcess
from pipeline.sources import shard_sizes
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.builders import all_shards, same_counts_and_failures
from tests.support.tiny_network import Picture

ROWS = 60
CELL = 4
SHARD = 24


@pytest.fixture(scope="module")
def tiny_of_tables(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


def pictures_of(first: int, bad: int = 0) -> list[Picture]:
    return [Picture("not_an_image" if at < bad else "good", first + at) for at in range(ROWS)]


def write_rows(path: Path, pictures: list[Picture]) -> None:
    column = pa.array([picture.data for picture in pictures], pa.binary())
    pq.write_table(pa.table({"image": column}), path)


class Tables:
    """A dataset of a folder of Parquet files."""

    def __init__(self, folder: Path, place: tiny.Place) -> None:
        self.folder = folder / "tables"
        self.folder.mkdir()
        self.catalogue = Catalogue(str(folder / "catalogue"))
        self._options = place.options
        for name, first in (("a", 0), ("b", 100), ("c", 200), ("d", 300)):
            write_rows(self.folder / f"{name}.parquet", pictures_of(first))

    def build(self) -> Result:
        request = Request(
            "rows",
            str(self.folder),
            shard_images=SHARD,
            max_failures=99,
            **self._options,  # type: ignore[arg-type]  # fields by name
        )
        resources = Resources(workers=0, threads=2)
        (result,) = build_datasets(self.catalogue, [request], InProcess(), resources)
        return result

    def cells(self) -> list[list[str]]:
        """Returns the names of the images of each cell."""
        manifest = self.catalogue.manifest("rows", self.catalogue.find("rows"))
        return [
            [f"{Path(each.uri).stem}/{each.member}" for each in cell.members]
            for shard in all_shards(manifest)
            for cell in shard.cell_runs()
        ]

    def beside(self, name: str) -> int:
        """Returns how many images of other files share a cell with images of one."""
        shared = [cell for cell in self.cells() if any(each.startswith(name) for each in cell)]
        return sum(not each.startswith(name) for cell in shared for each in cell)

    def holds(self) -> bool:
        """Compares the dataset with one clean pass over its images, and verifies its files."""
        dna = self.catalogue.load("rows")
        clean = make_dna(self.folder, **self._options)  # type: ignore[arg-type]
        np.testing.assert_allclose(dna.mean, clean.mean, rtol=1e-9, atol=1e-12)
        sound = all(finding.ok for finding in verify(self.catalogue))
        return sound and same_counts_and_failures(dna, clean)


@pytest.fixture
def tables(tmp_path: Path, tiny_of_tables: tiny.Place, monkeypatch: pytest.MonkeyPatch) -> Tables:
    monkeypatch.setattr(shard_sizes, "USUAL_CELL_IMAGES", CELL)
    return Tables(tmp_path, tiny_of_tables)


def deleted(tables: Tables) -> int:
    around = tables.beside("b/")
    (tables.folder / "b.parquet").unlink()
    return around


def replaced(tables: Tables) -> int:
    around = tables.beside("b/")
    changed = pictures_of(100)
    changed[7:9] = [Picture("good", 900), Picture("good", 901)]
    write_rows(tables.folder / "b.parquet", changed)
    return ROWS + around


def added(tables: Tables) -> int:
    write_rows(tables.folder / "bb.parquet", pictures_of(700))
    return ROWS


@pytest.mark.parametrize("change", [deleted, replaced, added])
def test_only_cells_with_rows_of_a_file_that_changed_are_read_again(
    tables: Tables, change: Callable[[Tables], int]
) -> None:
    first = tables.build()
    assert first.read == 4 * ROWS
    sizes = {len(cell) for cell in tables.cells()}
    assert CELL in sizes
    assert max(sizes) <= CELL + CELL // 4, "rows of tables have cells"
    expected = change(tables)
    assert tables.build().read == expected
    assert expected < ROWS + SHARD
    assert tables.holds()


def test_an_erased_row_has_few_others_read_again(tables: Tables) -> None:
    tables.build()
    name = f"{(tables.folder / 'b.parquet').as_uri()}::7"
    (cell,) = [cell for cell in tables.cells() if "b/7" in cell]
    found = preview_erasure(tables.catalogue, [name])
    assert (found.images, found.cost.images) == (1, len(cell) - 1)


def test_a_speed_is_noted_with_the_bytes_that_were_read(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows have no listed size, and files beside them must not stand for all of them."""
    monkeypatch.setattr(shard_time, "MEASURED_IMAGES", 20)
    (tables.folder / "large.png").write_bytes(Picture("good", 999).data + bytes(100_000))
    write_rows(tables.folder / "d.parquet", pictures_of(300, bad=9))
    spec = tables.build().version.spec
    noted = json.loads(storage.read(tables.catalogue.speed_uri(spec, "cpu")))
    rows = [*pictures_of(0), *pictures_of(100), *pictures_of(200), *pictures_of(300)[9:]]
    size = sum(len(picture.data) for picture in rows) + len(Picture("good", 999).data) + 100_000
    assert noted["images"] == len(rows) + 1
    assert noted["bytes_per_image"] == pytest.approx(size / (len(rows) + 1))
