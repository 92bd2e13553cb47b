"""Tests of the model of whole builds: its laws, and that it is the product that it models."""

from __future__ import annotations

import json
import random
from collections import Counter, OrderedDict
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3fs import S3FileSystem

from benchmarks.collecting import DictStore
from benchmarks.s3_requests import BUCKET, Counting, per_unit
from benchmarks.scale import __main__ as command
from benchmarks.scale import checking
from benchmarks.scale import model as modelling
from benchmarks.scale.case import Case, Parts, Prices
from benchmarks.scale.checking import check
from benchmarks.scale.model import Model, predict
from benchmarks.scale.shape import (
    by_logarithm,
    footers_read,
    interpolated,
    passed_images,
    passed_of_a_shard,
    shards_of_folds,
    sums_of,
)
from pipeline import storage
from pipeline.building import Request, build_datasets
from pipeline.building.counted_way import MOST_HASHED
from pipeline.catalogue import Catalogue, verify
from pipeline.counting import leases, plan_folds
from pipeline.counting.micro_batch import MICRO_BATCH
from pipeline.counting.reduction import HASHED_IN_MEMORY
from pipeline.dna import HASH_ROW
from pipeline.engine import InProcess
from pipeline.sources import entries_file, plan
from pipeline.sources.blocks import BLOCK_IMAGES, MANY, even_pieces
from pipeline.sources.cell_cuts import new_cells
from pipeline.sources.shard_sizes import default_shard_images
from pipeline.sources.stretches import REPORT_PART_ENTRIES
from pipeline.spec import FOLDS, PRODUCTS
from pipeline.storage import Stored, objects
from tests.golden.handmade import entries
from tests.support import tiny_network
from tests.support.chaos import answers

PARTS = command.kept_parts()
DOCUMENT = Path(__file__).parents[2] / "docs" / "scale.md"


def on_gpus(images: int, gpus: int, **stated: Any) -> Case:
    return Case(images, gpus=gpus, **{"gpu_images_per_second": 2000.0} | stated)


WORSE = {
    "image_bytes": 4.0,
    "megapixels": 4.0,
    "request_seconds": 4.0,
    "page_seconds": 4.0,
    "deaths_per_node_hour": 4.0,
    "replace_seconds": 4.0,
    "gpu_images_per_second": 0.25,
    "node_bytes_per_second": 0.25,
    "store_requests_per_second": 0.25,
}
"""What makes a build no faster, by how much it is multiplied."""

IMAGES = st.integers(1, 10**9)
GPUS = st.integers(1, 600)


@settings(max_examples=60, deadline=None)
@given(images=IMAGES, gpus=GPUS, name=st.sampled_from(sorted(WORSE)))
def test_what_is_worse_never_makes_a_build_faster(images: int, gpus: int, name: str) -> None:
    """The shards are the same: those of larger images would be smaller, and end more evenly."""
    case = on_gpus(images, gpus, shard_images=default_shard_images(images))
    worse = replace(case, **{name: getattr(case, name) * WORSE[name]})
    assert predict(PARTS, worse).total_seconds >= predict(PARTS, case).total_seconds


@settings(max_examples=60, deadline=None)
@given(images=IMAGES, gpus=GPUS, more=st.integers(1, 600))
def test_more_gpus_never_count_slower(images: int, gpus: int, more: int) -> None:
    few, many = (predict(PARTS, on_gpus(images, n)) for n in (gpus, gpus + more))
    assert many.seconds["counting"] <= few.seconds["counting"] * (1 + 1e-9)
    assert many.shards == few.shards


@settings(max_examples=60, deadline=None)
@given(images=IMAGES, gpus=GPUS, more=st.integers(1, 10**9))
def test_more_images_take_more_of_all_that_is_counted_for_each(
    images: int, gpus: int, more: int
) -> None:
    """Shards of one size: the planner's are larger for more images, so that there may be fewer.

    One process plans all of them: many tasks plan more images in less time.
    """
    few, many = (
        predict(PARTS, on_gpus(n, gpus, shard_images=4096, driver_plans=True))
        for n in (images, images + more)
    )
    for stage in ("listing", "planning", "counting"):
        assert many.seconds[stage] >= few.seconds[stage]
    for kind, number in few.requests["build"].items():
        assert many.requests["build"][kind] >= number - 1e-6, kind
    assert many.read_bytes > few.read_bytes
    assert many.kept_bytes > few.kept_bytes
    # A shard more may end the build earlier: its tail is that of smaller shards.
    assert many.dollars > few.dollars * (1 - 1e-3)


@settings(max_examples=60, deadline=None)
@given(images=IMAGES, gpus=GPUS)
def test_a_prediction_adds_up(images: int, gpus: int) -> None:
    found = predict(PARTS, on_gpus(images, gpus))
    assert found.total_seconds == pytest.approx(sum(found.seconds.values()))
    assert found.dollars <= found.dollars_held
    assert found.read_bytes >= images * found.case.image_bytes
    assert found.requests["build"]["GET"] >= images + found.shards
    at_best = images / (gpus * 2000)
    assert found.seconds["counting"] >= at_best * (1 - 1e-9)


def test_all_that_a_gpu_takes_is_what_a_large_build_takes_if_nothing_else_limits_it() -> None:
    """The GPU takes the empty images, too, that fill the last micro-batches of shards."""
    fast = replace(PARTS, dispatch_seconds=0.0, list_seconds=0.0, plan_seconds=0.0)
    case = on_gpus(10**9, 1, cores_per_gpu=1000, deaths_per_node_hour=0)
    found = predict(fast, case)
    assert found.limit == "GPU"
    passed = Model(fast, case).passed
    assert 10**9 < passed < 1.03 * 10**9
    assert found.seconds["counting"] == pytest.approx(passed / 2000, rel=1e-3)


@pytest.mark.parametrize(
    ("limit", "images", "gpus", "stated"),
    [
        ("GPU", 10**8, 8, {"gpu_images_per_second": 100.0}),
        ("cores", 10**8, 8, {"cores_per_gpu": 1}),
        ("encoding", 10**8, 8, {"gpu_images_per_second": 1e5, "node_bytes_per_second": 1e11}),
        ("store", 10**8, 8, {"store_requests_per_second": 10.0}),
        ("network", 10**8, 8, {"node_bytes_per_second": 1e6}),
        ("latency", 10**8, 8, {"request_seconds": 5.0}),
        ("few shards", 10**6, 512, {"gpu_images_per_second": 5.0}),
        ("driver", 10**7, 512, {"shard_images": 16}),
        ("listing", 10**9, 512, {"page_seconds": 30.0}),
        ("start", 1000, 8, {}),
    ],
)
def test_what_limits_a_build_is_named(
    limit: str, images: int, gpus: int, stated: dict[str, Any]
) -> None:
    """Whatever else ran on the machine where the parts were measured."""
    parts = replace(PARTS, get_seconds=0.001, compose_seconds=1.0)
    assert predict(parts, on_gpus(images, gpus, **stated)).limit == limit


def test_nodes_that_die_cost_their_shards_and_the_time_without_them() -> None:
    case = on_gpus(10**8, 64, deaths_per_node_hour=0.0)
    calm = Model(PARTS, case)
    often = Model(PARTS, replace(case, deaths_per_node_hour=0.1))
    hours = often.counting / 3600
    lost = 0.1 * hours * (calm.longest + case.replace_seconds)  # of each node's seconds
    assert often.counting == pytest.approx(calm.counting + lost)
    with pytest.raises(ValueError, match=r"deaths_per_node_hour is 1000\b.*never gets on"):
        predict(PARTS, replace(case, deaths_per_node_hour=1000.0))


# What tasks plan


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(MANY, 10**9), gpus=GPUS, more=st.integers(0, 600), inventory=st.booleans()
)
def test_more_tasks_never_list_or_plan_slower(
    images: int, gpus: int, more: int, inventory: bool
) -> None:
    few, many = (
        predict(PARTS, on_gpus(images, n, inventory=inventory)) for n in (gpus, gpus + more)
    )
    for stage in ("listing", "planning"):
        assert many.seconds[stage] <= few.seconds[stage]


@pytest.mark.parametrize("inventory", [False, True])
def test_tasks_plan_large_sources_and_the_driver_all_others(inventory: bool) -> None:
    """The driver's disk has the hashes of images alone, if tasks plan."""
    cases = [
        on_gpus(MANY - 1, 64, inventory=inventory),
        on_gpus(MANY, 64, inventory=inventory, driver_plans=True),
        on_gpus(MANY, 64, inventory=inventory),
    ]
    small, alone, tasks = (predict(PARTS, case) for case in cases)
    for found in (small, alone):
        images = found.case.images
        assert found.seconds["planning"] == images * PARTS.plan_seconds
        assert found.disk_bytes == images * PARTS.disk_bytes
        assert not inventory or found.seconds["listing"] == images * PARTS.inventory_seconds
    assert tasks.seconds["planning"] < alone.seconds["planning"]
    assert tasks.disk_bytes == MANY * 2 * HASH_ROW.itemsize
    assert tasks.driver_bytes["planning"] < alone.driver_bytes["planning"]


def test_no_more_tasks_list_and_plan_than_the_product_starts() -> None:
    some, many = (predict(PARTS, on_gpus(10**9, n)) for n in (8, 512))
    assert many.seconds["planning"] == some.seconds["planning"]
    assert many.seconds["listing"] == some.seconds["listing"]


def test_tasks_read_more_of_a_report_than_of_a_prefix() -> None:
    """The parts of a report have names of all blocks; decisions/0017 states 2.5 times as many."""
    prefix, report = (Model(PARTS, on_gpus(10**8, 8, inventory=i)) for i in (False, True))
    assert 1 < prefix.reads_of_a_block < 1.1
    assert report.reads_of_a_block == pytest.approx(2.5, rel=0.05)
    parts = 10**8 / REPORT_PART_ENTRIES
    assert report.requests["build"]["PUT"] - report.shards * 3 > parts
    assert report.requests["build"]["GET"] - 10**8 - report.shards * 2 > 2 * parts


# Empty images, and hashes


def test_a_shard_of_one_image_costs_a_micro_batch() -> None:
    alone = Model(PARTS, Case(112, gpus=0, shard_images=1))
    whole = Model(PARTS, Case(112, gpus=0, shard_images=8))
    size = MICRO_BATCH["cpu"]
    assert (alone.micro_batch, alone.shards, alone.passed) == (size, 112, 112 * size)
    full = Model(replace(PARTS, forward_seconds=0.0), alone.case)
    more = alone.work_of_a_shard(1)["cores"] - full.work_of_a_shard(1)["cores"]
    assert more == pytest.approx((size - 1) * PARTS.forward_seconds)
    assert whole.passed_of(size) == size
    on_gpu = Model(PARTS, on_gpus(112, 1, shard_images=1, gpu_images_per_second=100.0))
    assert on_gpu.work_of_a_shard(1)["GPU"] == on_gpu.micro_batch / 100


def test_a_gpu_s_memory_chooses_the_micro_batch() -> None:
    sizes = [Model(PARTS, on_gpus(10**6, 1, gpu_bytes=b)).micro_batch for b in (2e9, 8e9, 80e9)]
    assert sizes == [16, 64, 128]


@given(
    images=st.integers(1, 5000), cell=st.sampled_from([128, 256, 4096]), size=st.integers(1, 128)
)
def test_each_cell_of_a_shard_ends_a_micro_batch(images: int, cell: int, size: int) -> None:
    passed = passed_of_a_shard(images, cell, size)
    cells = new_cells(np.zeros(images, np.int32), cell) or (images,)
    assert passed % size == 0
    assert images <= passed < images + size * len(cells)
    assert passed <= passed_of_a_shard(images + 1, cell, size)


@pytest.mark.parametrize(("images", "size"), [(112, 1), (5000, 64), (100_000, 24)])
def test_a_network_sees_as_many_images_as_the_planned_shards_make(images: int, size: int) -> None:
    manifest = plan(entries("a", images), shard_images=size)
    seen = sum(passed_of_a_shard(head.candidates, 128, 8) for head in manifest.heads)
    assert passed_images(images, size, 128, 8) == pytest.approx(seen, rel=0.02)


def test_blocks_of_a_large_source_are_padded_as_their_shards() -> None:
    """A block has folds of any size, cut into shards of nearly one size."""
    rng = np.random.default_rng(0)
    seen = total = 0
    for fold in np.ceil(rng.exponential(BLOCK_IMAGES / FOLDS, 2000)).astype(int).tolist():
        pieces = even_pieces(pa.table({"": pa.nulls(fold)}), 4096)
        seen += sum(passed_of_a_shard(piece.num_rows, 128, 128) for piece in pieces)
        total += fold
    assert passed_images(10**8, 4096, 128, 128) / 10**8 == pytest.approx(seen / total, rel=2e-3)


def test_hashes_of_images_are_kept_up_to_the_product_s_limit() -> None:
    kept, left = (Model(PARTS, on_gpus(n, 8)) for n in (MOST_HASHED, MOST_HASHED + 1))
    assert kept.hash_bytes == MOST_HASHED * HASH_ROW.itemsize
    assert kept.version_bytes - left.version_bytes == pytest.approx(kept.hash_bytes, rel=1e-3)
    assert kept.size_of(4096) - left.size_of(4096) == 4096 * HASH_ROW.itemsize
    assert left.hash_bytes == left.disk_bytes == 0
    assert kept.disk_bytes > 2 * kept.hash_bytes
    assert not Model(PARTS, on_gpus(HASHED_IN_MEMORY, 8)).summed_on_disk


# The product's own plan


@pytest.mark.parametrize(("images", "size"), [(1, 1), (15, 4), (100, 3), (1100, 1), (5000, 64)])
def test_shards_and_sums_are_those_of_the_planner_and_the_tree(images: int, size: int) -> None:
    """Folds of less than 128 images are of one size; larger ones are so in the model alone."""
    manifest = plan(entries("a", images), shard_images=size)
    of_folds = [len(heads) for heads in manifest.folds().values()]
    few = images < 128
    if few:
        assert sorted(shards_of_folds(images, size)) == sorted(of_folds)
    assert sum(of_folds) == pytest.approx(sum(shards_of_folds(images, size)), abs=FOLDS / 2)
    levels, folds = plan_folds(manifest, "work", "0" * 32, PRODUCTS)
    sums, left = sums_of(of_folds)
    assert sums == tuple(map(len, levels))
    assert left == sum(len(fold.parts) for fold in folds)
    model = Model(PARTS, on_gpus(images, 1, shard_images=size))
    assert model.shards == pytest.approx(len(manifest.heads), abs=FOLDS / 2)
    if few:
        assert model.tree == (sums, left)


@given(images=IMAGES)
def test_the_planner_chooses_the_size_of_shards(images: int) -> None:
    assert predict(PARTS, on_gpus(images, 8)).shard_images == default_shard_images(images)


def test_shards_of_large_images_are_bounded_by_bytes() -> None:
    assert predict(PARTS, on_gpus(10**8, 8, image_bytes=4e6)).shard_images == 128


def test_a_network_that_is_known_to_be_slow_gets_shards_of_a_minute() -> None:
    slow = on_gpus(10**8, 8, gpu_images_per_second=20.0, speed_known=True)
    model = Model(PARTS, slow)
    assert model.shard_images < default_shard_images(10**8)
    assert 2 * max(model.work_of_a_shard(model.shard_images).values()) == pytest.approx(60, rel=0.1)


def test_entries_files_are_as_many_as_the_writer_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (entries_file, modelling):
        monkeypatch.setattr(module, "FILE_ROWS", 100)
    for images, size in ((800, 8), (800, 40), (801, 7), (50, 4)):
        manifest = plan(entries("a", images), shard_images=size)
        files = Model(PARTS, on_gpus(images, 1, shard_images=size)).files
        assert files == pytest.approx(len(manifest.files), abs=1)  # folds differ a little in size


@pytest.mark.parametrize(("shards", "workers", "files"), [(4000, 4, 20), (4000, 4, 80), (60, 9, 6)])
def test_footers_are_read_as_often_as_by_workers_that_keep_some(
    shards: int, workers: int, files: int
) -> None:
    rng = random.Random(0)
    places = [number * files // shards for number in range(shards)]
    rng.shuffle(places)
    kept: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(workers)]
    read = 0
    for number, place in enumerate(places):
        mine = kept[number % workers]
        read += place not in mine
        mine.pop(place, None)
        mine[place] = None
        while len(mine) > entries_file.FOOTERS_KEPT:
            mine.popitem(last=False)
    assert footers_read(shards, workers, files) == pytest.approx(read, rel=0.05)


class AsS3(DictStore):
    """Lists a name that is no object, as s3fs does: it may be a folder."""

    def info(self, uri: str) -> Stored:
        try:
            return super().info(uri)
        except FileNotFoundError:
            self.requests["LIST"] += 1
            raise


def test_requests_of_a_build_with_sums_are_those_that_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three builds without a tree of sums predict one that has it, to the last request."""
    place = tiny_network.install(tmp_path)
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(80):
        data = tiny_network.Picture("good", seed).data
        (images / f"{seed:03d}.png").write_bytes(data)
    store = AsS3()
    monkeypatch.setitem(objects._STORES, "s3", store)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)  # a busy machine would renew some

    def counted(number: int, count: int, size: int) -> tuple[dict[str, dict[str, int]], int]:
        catalogue = Catalogue(f"s3://stand-in/dnas-{number}")
        request = Request("a", str(images), limit=count, shard_images=size, **place.options)
        found: dict[str, Counter[str]] = {}
        store.requests.clear()
        with InProcess() as engine:
            (result,) = build_datasets(catalogue, [request], engine)
        found["build"] = Counter(store.requests)
        store.requests.clear()
        assert all(finding.ok for finding in verify(catalogue))
        found["verify"] = Counter(store.requests)
        return {job: dict(kinds) for job, kinds in found.items()}, result.counted_shards

    builds = [counted(0, 16, 1), counted(1, 32, 2), counted(2, 32, 1)]
    sizes = [(16, 16), (32, 16), (32, 32)]
    assert [shards for _, shards in builds] == [shards for _, shards in sizes]
    per_job = {
        job: per_unit([found[job] for found, _ in builds], sizes) for job in ("build", "verify")
    }
    parts = replace(PARTS, requests={**per_job, "gc": {"build": {}, "shard": {}, "image": {}}})
    found, shards = counted(3, 80, 1)
    case = Case(80, gpus=0, shard_images=1)
    prediction = predict(parts, case)
    assert prediction.shards == shards == 80
    assert prediction.sums == (16,)
    for job in ("build", "verify"):
        expected = {kind: n for kind, n in prediction.requests[job].items() if round(n)}
        assert {kind: round(n, 6) for kind, n in expected.items()} == found[job], job


# The command


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    command.main(arguments)
    told = capsys.readouterr()
    return json.loads(told.out), told.err


def test_json_and_table_have_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    result, told = run(capsys, "--gpu-images-per-second", "2000")
    cases = [(each["case"]["images"], each["case"]["gpus"]) for each in result["predictions"]]
    assert cases == [(images, gpus) for images in command.IMAGES for gpus in command.GPUS]
    for each in result["predictions"]:
        stages = sum(each["seconds"].values())
        assert each["total_seconds"] == pytest.approx(stages)
        assert set(each["requests"]) == {"build", "verify", "gc"}
    assert Parts.of(result["parts"]) == Parts.of(json.loads(json.dumps(asdict(PARTS))))
    assert result["prices"] == asdict(Prices())
    assert "gpu_images_per_second 2000" in told
    lines = [line for line in told.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(cases)
    assert {line.count("|") for line in lines} == {1 + len(command.HEADINGS)}


def test_what_is_stated_is_what_is_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    stated = ["--images", "3e6", "--gpus", "4", "--gpu-images-per-second", "500"]
    stated += ["--request-seconds", "0", "--shard-images", "512", "--gpu-hour", "2"]
    result, _ = run(capsys, *stated, "--speed-known")
    (found,) = result["predictions"]
    case = on_gpus(
        3 * 10**6, 4, gpu_images_per_second=500.0, request_seconds=0.0, shard_images=512,
        speed_known=True,
    )  # fmt: skip
    expected = predict(PARTS, case, Prices(gpu_hour=2.0))
    assert found == json.loads(json.dumps(command.as_json(expected)))
    assert expected.dollars < predict(PARTS, case).dollars


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "gpu_images_per_second is not given"),
        (["--gpu-images-per-second", "0"], "gpu_images_per_second is 0.0; it must be more than 0"),
        (["--gpu-images-per-second", "9", "--images", "0"], "images is 0; it must be more than 0"),
        (["--gpus", "-1"], "gpus is -1; it must be 0 or more"),
        (["--gpus", "0", "--request-seconds", "nan"], "request_seconds is nan"),
        (["--gpus", "0", "--parts", "no/such.json"], "no/such.json"),
    ],
)
def test_wrong_arguments_are_told(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_parts_that_lack_something_are_refused(tmp_path: Path) -> None:
    stated = asdict(PARTS)
    del stated["add_seconds"]
    kept = tmp_path / "parts.json"
    kept.write_text(json.dumps({"parts": stated | {"speed": 1}}))
    with pytest.raises(ValueError, match="missing: add_seconds; unknown: speed; measure them"):
        command.kept_parts(kept)


def test_every_part_matters() -> None:
    """A part that changes nothing would be measured for nothing."""
    stated = asdict(PARTS)
    slow = {"cores_per_gpu": 1.0, "shard_images": 64}
    cases = [
        on_gpus(10**8, 64),
        on_gpus(10**8, 512, **slow, inventory=True),
        on_gpus(10**6, 64, inventory=True),
        Case(10**6, gpus=0),
        Case(112, gpus=0, shard_images=1),
    ]
    expected = [predict(PARTS, case) for case in cases]
    for each in fields(Parts):
        value = stated[each.name]
        if each.name == "requests":
            more: Any = {job: value["verify"] for job in value}
        elif isinstance(value, float | int):
            more = value * 2 + 1
        else:
            more = [(at, number * 2 + 1) for at, number in value]
        changed = replace(PARTS, **{each.name: more})
        assert [predict(changed, case) for case in cases] != expected, each.name


def test_a_report_of_the_inventory_takes_the_place_of_pages() -> None:
    listed, reported = (
        predict(PARTS, on_gpus(10**8, 8, inventory=i, driver_plans=True)) for i in (False, True)
    )
    assert reported.seconds["listing"] == 10**8 * PARTS.inventory_seconds
    pages = listed.requests["build"]["LIST"] - reported.requests["build"]["LIST"]
    assert pages >= 10**8 / 1000
    few = (predict(PARTS, on_gpus(200_000, 8, inventory=i)) for i in (False, True))
    listed, reported = few
    assert reported.requests["build"]["GET"] > listed.requests["build"]["GET"]


def test_tasks_store_and_read_what_they_list() -> None:
    alone, tasks = (predict(PARTS, on_gpus(n, 8, shard_images=4096)) for n in (262_144, 524_288))
    for kind in ("PUT", "GET"):
        more = tasks.requests["build"][kind] - alone.requests["build"][kind]
        images = 262_144 if kind == "GET" else 0
        assert more - images > 16, kind


def test_values_between_measured_points_lie_on_lines() -> None:
    points = [(1, 10), (3, 30), (5, 10)]
    assert [interpolated(points, at) for at in (1, 2, 3, 4, 5)] == [10, 20, 30, 20, 10]
    assert interpolated(points, 7) == 0  # nothing is negative
    assert by_logarithm([(1, 0), (4, 2), (16, 4)], 64) == 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (80, "80 s"), (120, "2.0 min"), (9000, "2.5 h"), (1e6, "11.6 d")],
)
def test_durations_are_told_in_the_unit_that_suits(seconds: float, text: str) -> None:
    assert command.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (7, "7"), (1234, "1.23 k"), (999_700, "1 M"), (2.5e9, "2.5 G")]
)
def test_amounts_have_three_digits(number: float, text: str) -> None:
    assert command.amount(number) == text


def test_the_documented_table_is_that_of_the_kept_parts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, told = run(capsys, "--gpu-images-per-second", "2000")
    documented = DOCUMENT.read_text(encoding="utf-8")
    for line in told.splitlines():
        if line.startswith("|"):
            assert line in documented


def test_a_check_states_the_largest_error_of_each_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        ("build: GET", 101, 100),
        ("gc: LIST", 70, 100),
        ("verify: LIST", 3, 0),
        ("bytes read", 150, 100),
        ("driver, bytes", 90, 100),
        ("seconds of CPU", 80, 100),
        ("seconds", 100, 400),
        ("shards", 80, 80),
    ]
    made = [checking.row("a build", *each) for each in rows]
    monkeypatch.setattr(checking, "check", lambda parts: made)
    result, told = run(capsys, "--check")
    assert result["errors"] == pytest.approx(
        {
            "requests": -0.3,
            "bytes": 0.5,
            "CPU time": -0.2,
            "seconds of whole builds": -0.75,
            "shards and files": 0,
        }
    )
    assert "| a build | gc: LIST | 70 | 100 | -30.0% |" in told
    assert "| a build | verify: LIST | 3 | 0 |  |" in told
    assert "Largest errors: requests -30.0%, bytes +50.0%, CPU time -20.0%, " in told


@pytest.mark.soak  # it builds on Ray, and counts hundreds of images
def test_all_parts_can_be_measured(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHMARK_SHARE", "0.02")
    place = tmp_path / "parts.json"
    run(capsys, "--measure", "--parts", str(place))
    found = asdict(command.kept_parts(place))
    assert found["requests"]["build"]["image"] == {"GET": 1}
    sizes = [size for _, size in found["partial_bytes"]]
    assert sizes == sorted(sizes)
    # Differences of measurements may be zero on a busy machine; all else takes something.
    differences = {"shard_seconds", "compose_bytes", "dispatch_bytes", "plan_bytes"}
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    assert differences <= found.keys()
    assert {name for name, value in numbers.items() if value <= 0} <= differences
    assert min(numbers.values()) >= 0


def test_a_renewed_lease_is_no_counted_request(s3_server: str) -> None:
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    with Counting(s3_server) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        S3FileSystem.clear_instance_cache()

        def hold() -> None:
            lease = leases.claim(f"s3://{BUCKET}/dnas/_work/a", "shard", "job")
            assert isinstance(lease, leases.Lease)
            lease.renew(1)
            lease.renew(2)

        assert proxy.of(hold) == {"catalogue PUT": 1}
    S3FileSystem.clear_instance_cache()


def test_a_request_that_the_server_fails_is_counted_once(
    s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    uri = f"s3://{BUCKET}/images/one.jpg"
    storage.create(uri, b"x")
    with Counting(s3_server) as proxy:
        proxy.on(answers(503, "SlowDown"), "GET", "one.jpg", times=2)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        S3FileSystem.clear_instance_cache()
        assert proxy.of(lambda: storage.read(uri)) == {"images GET": 1}
    S3FileSystem.clear_instance_cache()
    assert proxy.injected == 2


@pytest.mark.soak  # it builds 112 shards through a server of S3
def test_requests_of_a_real_build_are_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a build in this process are predicted above, to the last."""
    monkeypatch.setenv("BENCHMARK_SHARE", "0.05")  # fewer bins: as many requests of fewer bytes
    rows = [row for row in check(PARTS, ("on Ray",)) if ": " in row["what"]]
    assert len(rows) > 10
    for row in rows:
        assert row["predicted"] == pytest.approx(row["measured"], abs=5), row
