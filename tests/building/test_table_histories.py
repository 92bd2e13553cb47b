"""A dataset of a table follows every change of its rows: it is what a build from nothing makes.

Images are added, removed, changed and renamed, and get other labels and groups, in random orders.
Small shards are put together, and small cells joined, in many of the histories.
"""

from __future__ import annotations

import csv
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.building import Request, build_datasets
from pipeline.catalogue import Catalogue
from pipeline.engine import InProcess
from pipeline.sources import shard_merging
from pipeline.spec import Resources
from tests.support import tiny_network as tiny
from tests.support.repeated_tests import chosen
from tests.support.tiny_network import Oracle, Picture

KINDS = ("add", "remove", "change", "rename", "relabel", "regroup")
LABELS = ("rain", "sun")
GROUPS = 3
"""So few that shards have several images."""

JOINING = {"by": "weather", "group_by": "video", "shard_images": 32, "cell_images": 8}
"""Options of a build in which cells are joined, if many images of one group go."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def oracle(network: tiny.Place) -> Oracle:
    return Oracle(network)


@pytest.fixture(scope="module")
def engine() -> Iterator[InProcess]:
    with InProcess() as engine:
        yield engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("histories")


@dataclass(frozen=True)
class Row:
    picture: Picture
    label: str
    group: str


class Table:
    """A table of images with labels and groups, and the files that it names."""

    def __init__(self, folder: Path, chance: random.Random, images: int, groups: int) -> None:
        folder.mkdir()
        self.path = folder / "images.csv"
        self.rows: dict[str, Row] = {}
        self._folder, self._chance, self._made = folder, chance, 0
        self._groups = groups
        for _ in range(images):
            self.add()

    def add(self) -> None:
        row = Row(self._picture(), self._chance.choice(LABELS), self._group())
        self.write(self._new_name(), row)

    def remove(self) -> None:
        if len(self.rows) > 1:
            name = self._any()
            del self.rows[name]
            (self._folder / name).unlink()

    def change(self) -> None:
        name = self._any()
        self.write(name, replace(self.rows[name], picture=self._picture()))

    def rename(self) -> None:
        """Gives a file another name. Its time stays, and so what tells its content."""
        name, new = self._any(), self._new_name()
        self.rows[new] = self.rows.pop(name)
        os.rename(self._folder / name, self._folder / new)

    def relabel(self) -> None:
        name = self._any()
        self.rows[name] = replace(self.rows[name], label=self._chance.choice(LABELS))

    def regroup(self) -> None:
        name = self._any()
        self.rows[name] = replace(self.rows[name], group=self._group())

    def store(self) -> None:
        with self.path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("path", "weather", "video"))
            writer.writerows((name, row.label, row.group) for name, row in self.rows.items())

    def pictures(self, label: str = "") -> dict[str, Picture]:
        """Returns all pictures, or those of a label, by uri."""
        return {
            (self._folder / name).as_uri(): row.picture
            for name, row in self.rows.items()
            if label in ("", row.label)
        }

    def _picture(self) -> Picture:
        return Picture(self._chance.choice(["good"] * 5 + ["empty"]), self._chance.randrange(12))

    def _group(self) -> str:
        return f"v{self._chance.randrange(self._groups)}"

    def _any(self) -> str:
        return self._chance.choice(sorted(self.rows))

    def _new_name(self) -> str:
        return f"{self._chance.randrange(1000):03}-{self._made}.png"

    def write(self, name: str, row: Row) -> None:
        self._made += 1
        path = self._folder / name
        path.write_bytes(row.picture.data)
        os.utime(path, ns=(0, 1_700_000_000_000_000_000 + self._made))
        self.rows[name] = row


def follow(
    base: Path, network: tiny.Place, oracle: Oracle, engine: InProcess, chance: random.Random
) -> bool:
    """Builds after each step, and compares with what is added up image by image.

    Returns:
        Whether cells were joined.
    """
    joined, joining = False, chance.random() < 0.5
    images, groups = (40, 1) if joining else (chance.randint(8, 16), GROUPS)
    table = Table(base / f"{len(list(base.iterdir()))}", chance, images, groups)
    place = Catalogue(str(table.path.parent / "catalogue"))
    options: dict[str, Any] = {
        "by": chance.choice(["weather", ""]),
        "group_by": chance.choice(["video", "video", None]),
        "shard_images": chance.choice([1, 2, 4]),
        "cell_images": chance.choice([1, 2, None]),
    }
    kinds, changes = KINDS, 2
    if joining:
        options, kinds, changes = JOINING, KINDS + ("remove",) * len(KINDS), 5
    for step in range(4):
        for kind in chance.choices(kinds, k=changes * step):
            getattr(table, kind)()
        if not any(row.picture.kind == "good" for row in table.rows.values()):
            table.write("good.png", Row(Picture("good", 1), "sun", "v0"))
        table.store()
        request = Request(
            "x", str(table.path), max_failures=99, replace=True, **network.options, **options
        )
        (result,) = build_datasets(place, [request], engine, Resources(workers=0, threads=2))
        for name, version in ({"x": result.version} | result.parts).items():
            truth = oracle.truth(table.pictures(version.value))
            read = place.load_version(name, version), place.failures(name, version)
            assert not truth.differences(*read, place.exemplars(name, version)), name
        good = {row.label for row in table.rows.values() if row.picture.kind == "good"}
        wanted = good if options["by"] else set()
        assert {part.value for part in result.parts.values()} == wanted
        folds: dict[str, set[int]] = {}
        for head, members in place.manifest("x", result.version).tables():
            joined = joined or bool(head.runs)
            for group in members["group"].to_pylist():
                folds.setdefault(group, set()).add(head.fold)
        if options["group_by"]:
            assert folds.keys() == {row.group for row in table.rows.values()}
            assert all(len(of) == 1 for of in folds.values()), "a group is in two folds"
    return joined


JOINED = {
    *(1, 2, 7, 11, 12, 24, 28, 32, 44, 47, 56, 63, 76, 99, 102, 112, 117, 121, 137, 145, 149),
    *(169, 173, 180, 182, 184, 186),
}
"""Histories in which cells are joined."""

MANY = [pytest.param(seed, marks=pytest.mark.soak) for seed in chosen(range(200)) if seed != 2]


@pytest.mark.parametrize("seed", [2, *MANY])
def test_each_version_is_a_build_from_nothing(
    base: Path,
    network: tiny.Place,
    oracle: Oracle,
    engine: InProcess,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_merging, "TOGETHER", 2)
    joined = follow(base, network, oracle, engine, random.Random(seed))
    assert joined == (seed in JOINED)
