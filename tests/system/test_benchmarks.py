"""Tests that the benchmarks run, on little data; their times say nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import suite
from benchmarks.collecting import DictStore, made
from pipeline.catalogue import Catalogue, verify
from pipeline.counting import load_partial, partial_uri
from pipeline.storage import objects
from tests.golden.handmade import SPEC, commit_dataset
from tests.support.builders import write_photos


def result_of(*command: str) -> Any:
    """Returns what a benchmark prints."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_ratios_are_found_wherever_they_stand_in_a_result() -> None:
    result = {
        "rows": {"made": {"ratio": {"reference": 5.0}, "seconds": 3}},
        "sizes": [{"dnas": 40, "share_of_floor": 1.1}],
        "every_seconds": [0.5, 0.6],
        "ratio": 2.0,
    }
    assert dict(suite.ratios("x", result)) == {
        "x rows made reference": 5.0,
        "x sizes 40": 1.1,
        "x": 2.0,
    }


def test_what_moved_is_new_or_is_gone_is_told() -> None:
    kept = {"same": 2.0, "slower": 4.0, "gone": 1.0}
    lines = suite.compared({"same": 2.2, "slower": 3.0, "new": 1.0}, kept)
    assert [line.split()[:2] for line in lines] == [
        ["gone", "gone:"],
        ["new", "new:"],
        ["moved", "slower:"],
    ]


def test_each_benchmark_of_the_suite_exists_and_a_slow_one_has_few_images(tmp_path: Path) -> None:
    photos, few = tmp_path / "photos", tmp_path / "few"
    photos.mkdir()
    few.mkdir()
    write_photos(photos, 3)
    assert suite.first_of(photos, str(few)) == str(few)
    assert [path.name for path in sorted(few.iterdir())] == sorted(p.name for p in photos.iterdir())
    for module, *_ in suite.runs(str(photos), str(few)).values():
        assert (Path(suite.__file__).parent / f"{module}.py").exists()


def test_ratios_of_benchmarks_that_did_not_run_stay() -> None:
    kept = {"one a": 1.0, "two": 2.0, "two b": 2.0, "twofold c": 3.0}
    left = suite.not_of(["two"], kept)
    assert left == {"one a": 1.0, "twofold c": 3.0}
    assert suite.compared(left | {"two": 2.0}, kept) == ["gone   two b: was 2.0"]


@pytest.mark.soak
@pytest.mark.essential
def test_the_benchmark_of_gpus_runs_dry_and_finds_equal_counts() -> None:
    result = result_of("benchmarks.gpu", "--dry-run")
    assert result["agreement"]["activations"] > 0
    assert result["agreement"]["wrong"] == 0
    assert [row["network"] for row in result["rates"]] == ["efficientnet_lite0"]
    assert all(row["with_counting"] > 0 for row in result["rates"])
    assert all(row["with_feeding"] > 0 for row in result["rates"])
    assert 0 < result["feeding"]["worst_grey_levels"] < 1e-4
    assert result["feeding"]["500x400"] > 0
    assert [row["waits"] for row in result["rates"]] == [0]
    assert set(result["rates"][0]["milliseconds"]) == {"forward", "counting", "feeding"}
    assert set(result["build"]["milliseconds"]) == {"fetch", "decode", "network"}
    assert (result["build"]["images"], result["build"]["counts_that_differ"]) == (32, 0)
    assert all(rate > 0 for size in result["decoding"].values() for rate in size.values())


@pytest.mark.soak
def test_the_benchmark_of_libraries_finds_equal_and_different_counts(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    write_photos(photos, 3)
    files = [tmp_path / name for name in ("one", "again", "fewer")]
    for file, images in zip(files, ("3", "3", "2"), strict=True):
        command = ["benchmarks.libraries", "count", str(photos), str(file), "--images", images]
        subprocess.run([sys.executable, "-m", *command], check=True)
    same, other = result_of("benchmarks.libraries", "compare", *map(str, files))
    assert (same["equal"], same["another_bin"], same["emd_bins"]) == (True, 0, 0)
    assert (other["equal"], other["images"]) == (False, [3, 2])
    assert same["differing"] == other["differing"] == {}


@pytest.mark.soak  # it loads a network three times
def test_the_benchmark_of_backends_finds_that_openvino_moves_little(tmp_path: Path) -> None:
    write_photos(tmp_path, 12)
    command = ["benchmarks.backends", str(tmp_path), "--networks", "efficientnet_lite0"]
    row = result_of(*command)["efficientnet_lite0"]
    assert row["images"] == 12
    assert 0 < row["moved"] < 1e-4
    assert row["farthest"] == 1
    assert 0 < row["emd"] < 1e-3 < row["halves"]


@pytest.mark.soak  # tasks plan from a million images on
def test_the_benchmark_of_listing_by_tasks_plans_every_image() -> None:
    images = 2**20 + 5
    result = result_of("benchmarks.listing", "--entries", str(images), "--only", "tasks")["tasks"]
    assert result["entries"] == images
    assert result["shards"] >= images / 4096
    assert result["rounds"] > 1
    assert result["plan_rows_per_cpu_second"] > result["rows_per_cpu_second"] > 0
    folders, scattered = (result["later"][changed] for changed in ("folders", "scattered"))
    assert 0 < folders["changed_shards"] < scattered["changed_shards"] <= result["shards"]
    assert folders["plan_rows_per_cpu_second"] > 0


@pytest.mark.soak  # it starts six processes
def test_the_benchmark_of_memory_counts_every_image() -> None:
    result = result_of("benchmarks.memory", "--images", "20", "40", "--planned", "30", "60")
    for which, images in (("make_dna", [20, 40]), ("build", [20, 40]), ("plan", [30, 60])):
        assert [row["images"] for row in result[which]] == images
        assert all(row["peak_mb"] > 50 for row in result[which])


@pytest.mark.soak
def test_the_product_and_the_reference_agree_in_the_benchmark_of_a_build(tmp_path: Path) -> None:
    write_photos(tmp_path, 4)
    result = result_of("benchmarks.end_to_end", str(tmp_path), "--seconds", "0.5")
    assert result["build"]["images"] == result["make_dna"]["images"] == 4
    assert dict(suite.ratios("end_to_end", result))
    assert result["agreement"]["moved"] < 1e-3


@pytest.mark.soak
def test_the_benchmark_of_forecasts_builds_what_it_forecasts(tmp_path: Path) -> None:
    write_photos(tmp_path, 20)
    (result,) = result_of("benchmarks.forecasts", str(tmp_path), "--sample", "10")
    assert (result["images"], result["measured"]) == (20, 8)
    assert result["shards_as_forecast"]
    low, likely, high = result["forecast_seconds"]
    assert 0 < low <= likely <= high
    assert result["ratio"] == pytest.approx(result["seconds"] / likely)


@pytest.mark.soak  # it starts Ray
def test_the_benchmark_of_the_start_accounts_for_all_seconds(tmp_path: Path) -> None:
    write_photos(tmp_path, 4)
    few = ("--limit", "2", "4", "--rounds", "1")
    results = result_of("benchmarks.start_up", str(tmp_path), *few)
    assert [result["images"] for result in results] == [2, 4]
    for result in results:
        assert result["ratio"] > 0
        for engine, seconds in result["seconds"].items():
            stages = sum(value for name, value in seconds.items() if name != "whole")
            assert stages == pytest.approx(seconds["whole"], abs=0.1)
            assert min(seconds.values()) >= 0
            for stage, parts in result["parts"][engine].items():
                assert sum(parts.values()) == pytest.approx(seconds[stage], abs=0.1)
                assert min(parts.values()) >= 0


@pytest.mark.soak  # it starts Ray twice
def test_the_benchmark_of_the_start_has_a_bare_ray_beside_the_first_image(tmp_path: Path) -> None:
    write_photos(tmp_path, 1)
    spent = result_of("benchmarks.start_up", str(tmp_path), "--timeline")
    assert [*spent["first image"]][:4] == ["command", "Ray", "worker", "pipeline"]
    assert [*spent["bare Ray"]] == ["command", "Ray", "worker", "end"]
    assert all(min(seconds.values()) > 0 for seconds in spent.values())


@pytest.mark.soak  # it starts two clusters
def test_the_benchmark_of_dying_nodes_counts_every_shard_once_if_none_dies() -> None:
    few = ("--shards", "4", "--nodes", "2", "--seconds", "0.2", "--between", "900")
    result = result_of("benchmarks.chaos", *few)
    for build in (result["undisturbed"], result["disturbed"]):
        assert (build["deaths"], build["twice"]) == (0, 0)
        assert build["rate"] > 0


@pytest.mark.soak
def test_the_benchmark_of_commits_finds_that_changes_are_smaller_than_all() -> None:
    result = result_of("benchmarks.commit_log", "--datasets", "40")
    assert result["ratio"] > 2
    assert result["nights"][0]["PUT"] == 2
    assert result["search"]["GET"] > 0
    assert result["reader"]["first"]["GET"] == 5
    assert result["reader"]["again"]["GET"] == 3


@pytest.mark.soak
def test_the_benchmark_of_the_kept_matrix_reads_what_was_written() -> None:
    result = result_of("benchmarks.kept_matrix", "--datasets", "12", "--layers", "3")
    numbers = 8 * 4 * 12 * 12 * 10  # at least: bytes, planes, pairs, columns
    assert result["write"]["mb"] > numbers / 1e6
    assert result["read"]["cpu_seconds"] > 0
    assert result["ratio"] > 0


@pytest.mark.soak
def test_a_catalogue_of_many_shards_is_made_as_a_build_makes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = DictStore()
    monkeypatch.setitem(objects._STORES, "s3", store)
    place, other = made("s3://many/dnas", 300), Catalogue("s3://built/dnas")
    version = place.head().datasets["fleet"][SPEC.digest]
    manifest = place.manifest("fleet", version)
    work = place.work_uri("fleet", SPEC.digest)
    uris = [partial_uri(work, key) for key in manifest.keys(SPEC.digest)]
    partials = [load_partial(uri) for uri in uris]
    assert commit_dataset(other, "fleet", manifest, partials) == version
    built = {u: data for u, data in store.objects.items() if u.startswith(f"{other.root}/_work/")}
    assert len(built) > 300 + 16
    assert all(store.objects[place.root + u.removeprefix(other.root)] == built[u] for u in built)
    assert all(finding.ok for finding in verify(place))
    wrong = replace(partials[1], shards=partials[0].shards)
    store.objects[uris[0]] = wrong.encode()
    assert [finding.check for finding in verify(place) if not finding.ok] == ["partials"]


@pytest.mark.soak
def test_the_benchmark_of_collecting_removes_a_thousand_objects_a_request() -> None:
    result = result_of("benchmarks.collecting", "--shards", "1100", "--names", "20000")
    assert result["verify"]["requests_a_shard"] < 1.1
    assert result["gc"]["requests"]["DELETE of 1,000"] == 2


@pytest.mark.soak
def test_the_benchmarks_of_many_dnas_compare_what_they_say() -> None:
    few = ("--dnas", "9", "--folds", "2")
    result = result_of("benchmarks.all_pairs", "catalogue", *few, "--network", "three_layers")
    assert (result["third"]["pairs"], result["whole"]["pairs"]) == (3, 36)
    assert result["neurons"] == 160
    result = result_of("benchmarks.nearest", *few, "--neurons", "40", "--groups", "2", "--top", "3")
    assert (result["pairs"], result["graph_pairs"]) == (8, 36)


@pytest.mark.soak
def test_the_benchmark_of_a_night_counts_what_each_night_did() -> None:
    found = result_of("benchmarks.nightly", "--datasets", "3", "--layers", "2")
    nights = [night for night in found.values() if isinstance(night, dict)]
    told = [night["summary"]["datasets"] for night in nights]
    counts = [(night["refreshed"], night["unchanged"], night["failed"]) for night in told]
    assert counts == [(2, 0, 1), (1, 2, 0), (0, 3, 0), (1, 1, 1)]
    assert [night["exit"] for night in nights] == [1, 0, 0, 1]
    assert found["matrix_mb"] > 0
