"""A forecast is made of a listing, of a measured speed and of prices, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import api, storage
from pipeline.building import Forecast, ForecastRequest, Request, build_datasets, forecast
from pipeline.building.speed import _rounds_of, _seconds_of_each
from pipeline.catalogue import Catalogue
from pipeline.counting import ShardReceipt
from pipeline.engine import InProcess
from pipeline.errors import SourceError, SpecMismatch, UsageError, VdnaError
from pipeline.events import Event, StepDone
from pipeline.reporting import forecast_json, forecast_lines
from pipeline.spec import FOLDS, Resources
from tests.support import tiny_network as tiny
from tests.support.tiny_network import Picture

IMAGES = 40
BAD = 3
RECEIPT = ShardReceipt("manifest", 0)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny.install(tmp_path_factory.mktemp("tiny")).options


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(IMAGES):
        kind = "good" if seed >= BAD else "not_an_image"
        (folder / f"{seed:02}.png").write_bytes(Picture(kind, seed).data)
    return folder


@pytest.fixture(scope="module")
def found(source: Path, options: dict[str, Any]) -> Forecast:
    return forecast(ForecastRequest(str(source), **options), Resources(threads=1))


@pytest.fixture
def known(found: Forecast, tmp_path: Path) -> Callable[..., str]:
    """Returns a function that writes what `vdna plan --json` printed, with another speed."""

    def write(**changes: Any) -> str:
        path = tmp_path / "known.json"
        path.write_text(
            json.dumps(forecast_json(replace(found, speed=replace(found.speed, **changes))))
        )
        return str(path)

    return write


def priced(folder: Path, text: str) -> str:
    (folder / "prices.yaml").write_text(text)
    return str(folder / "prices.yaml")


def test_all_images_are_counted_to_measure_a_small_source(found: Forecast, source: Path) -> None:
    size = sum(path.stat().st_size for path in source.iterdir())
    assert (found.images, found.requests) == (IMAGES, 0)
    assert found.bytes == pytest.approx(size, rel=0.2)  # that of half of the shards, twice
    assert found.speed.images == IMAGES - IMAGES // 5  # the first round loads the network
    assert (found.speed.rounds, found.speed.failures <= BAD) == (4, True)
    good = [path.stat().st_size for path in sorted(source.iterdir())[BAD:]]
    assert found.speed.bytes_per_image == sum(good) / len(good)
    assert 0 < found.speed.fastest <= found.speed.seconds_per_image <= found.speed.slowest
    assert 0 < found.speed.decode_seconds < 1
    assert (found.gpus, found.gpu_hours.likely, found.cost, found.currency) == (0, 0, None, "")


def test_the_lines_tell_of_unreadable_images_and_of_small_amounts(found: Forecast) -> None:
    speed = replace(found.speed, failures=2, seconds_per_image=0.5, fastest=0.4, slowest=1.0)
    speed = replace(speed, memory_bytes=2 * 10**9)
    hours = replace(found.worker_hours, likely=0.00312)
    lines = forecast_lines(replace(found, speed=speed, worker_hours=hours))
    measured = f"32 images in 4 rounds, 2 of them unreadable; {speed.machine}"
    assert lines[1] == f"speed: about 2.0 images/s (1.0 to 2.5) a worker, by {measured}"
    assert lines[4] == "workers: 0.0031 hours together; 1 core and 2.0 GB of memory each"


def test_the_shards_are_those_of_a_build(
    source: Path, options: dict[str, Any], found: Forecast, tmp_path: Path
) -> None:
    asked = Request("a", str(source), max_failures=BAD, **options)
    with InProcess() as engine:
        (built,) = build_datasets(Catalogue(str(tmp_path)), [asked], engine, Resources(threads=1))
    assert built.counted_shards == found.shards
    assert built.version.images + built.version.failed == found.images


def test_nothing_is_left_behind_and_each_round_is_told(
    source: Path, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told: list[Event] = []
    asked = ForecastRequest(str(source), sample=20, **options)
    found = api.forecast(asked, resources=Resources(threads=1), progress=told.append)
    steps = [event for event in told if isinstance(event, StepDone)]
    assert [step.units for step in steps] == [4] * 5
    assert (found.speed.images, found.images) == (16, IMAGES)
    assert not list(tmp_path.glob("vdna-plan-*"))


def test_time_is_what_images_take_shared_by_workers_after_the_start(
    source: Path, options: dict[str, Any], known: Callable[..., str]
) -> None:
    speeds = {"seconds_per_image": 90.0, "fastest": 45.0, "slowest": 180.0, "start_seconds": 4.0}
    speeds |= {"shard_seconds": 12.0, "merge_seconds": 3.0}
    asked = ForecastRequest(str(source), measured=known(**speeds), **options)
    for workers in (1, 4):
        found = forecast(asked, Resources(workers=workers))
        each, once = 3600.0 / workers, 12.0 * found.shards / workers + 7
        seconds = [found.seconds.low, found.seconds.likely, found.seconds.high]
        assert seconds == [each / 2 + once, each + once, each * 2 + once]
        assert found.worker_hours.likely == pytest.approx((each + once) * workers / 3600)
        assert found.workers == workers
    told: list[Any] = []
    many = Resources(workers=1000, threads=3, decode="here")
    assert forecast(replace(asked, sample=9), many, told.append).workers == found.shards
    assert [of.message.partition(" nothing here: the speed is")[0] for of in told] == [
        "`sample=9`, `threads=3` and `decode='here'` change",
        f"listing {source}",
    ]


def test_gpus_are_counted_by_the_speed_of_a_gpu(
    source: Path, options: dict[str, Any], known: Callable[..., str]
) -> None:
    speeds: dict[str, Any] = {"seconds_per_image": 0.5, "decode_seconds": 2.6, "start_seconds": 0.0}
    gpu = known(device="cuda", memory_bytes=3 * 10**9, **speeds)
    asked = ForecastRequest(str(source), measured=gpu, gpus=2, **options)
    found = forecast(asked)
    assert (found.workers, found.gpus, found.decode_cores, found.worker_cores) == (2, 2, 6, 7)
    assert found.gpu_hours == found.worker_hours
    shared = forecast(asked, Resources(gpus_per_worker=0.5))
    assert (shared.workers, shared.gpus) == (4, 2)
    assert shared.gpu_hours.likely == shared.worker_hours.likely / 2
    said = "GPU-hours; 7 cores and 3.0 GB of memory each, 6 of them to decode"
    assert said in forecast_lines(found)[4]
    assert forecast(asked, Resources(workers=1)).workers == 1
    assert forecast(replace(asked, gpus=None), Resources(gpus_per_worker=1, workers=2)).gpus == 2
    with pytest.raises(UsageError, match="gpus is 1, and one worker is to have 2 of them"):
        forecast(replace(asked, gpus=1), Resources(gpus_per_worker=2))
    with pytest.raises(UsageError, match=r"was measured on a GPU, .*`gpus_per_worker=1`"):
        forecast(replace(asked, gpus=None))
    asked = replace(asked, measured=known())
    with pytest.raises(UsageError, match=r"gpus is 2, and .*known\.json was measured on .*none"):
        forecast(asked)
    with pytest.raises(UsageError, match=r"are to have GPUs, and .*known\.json was .*none"):
        forecast(replace(asked, gpus=None), Resources(gpus_per_worker=1))
    with pytest.raises(UsageError, match="gpus is 2, and the sample would be counted by CPUs"):
        forecast(replace(asked, measured=None))


def test_the_cost_is_of_workers_requests_and_bytes(
    options: dict[str, Any], known: Callable[..., str], tmp_path: Path
) -> None:
    place = "memory://forecast"
    size = 0
    for seed in range(IMAGES):
        data = Picture("good", seed).data
        storage.replace(f"{place}/{seed}.png", data)
        size += len(data)
    prices = priced(tmp_path, "{worker_hour: 2.0, thousand_requests: 500.0, gigabyte: 1000000}")
    speeds = {"seconds_per_image": 90.0, "fastest": 45.0, "slowest": 180.0, "start_seconds": 0.0}
    speeds |= {"shard_seconds": 0.0, "merge_seconds": 0.0}
    asked = ForecastRequest(place, measured=known(**speeds), price=prices, **options)
    found = forecast(asked)
    assert found.requests == IMAGES + 6 * found.shards
    assert found.bytes == pytest.approx(size, rel=0.2)
    store = found.requests * 0.5 + (found.bytes or 0) / 1000
    assert found.cost is not None
    assert found.cost.likely == pytest.approx(2.0 + store)
    assert (found.cost.low, found.cost.high) == pytest.approx((1.0 + store, 4.0 + store))
    assert forecast_lines(found)[-1].startswith(f"cost: about {found.cost.likely:,.2f} USD (")


def test_small_rounds_follow_the_large_ones_of_a_sample_that_has_enough(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    for seed in range(97):
        (tmp_path / f"{seed:02}.png").write_bytes(Picture("good", seed).data)
    told: list[Event] = []
    asked = ForecastRequest(str(tmp_path), **options)
    speed = forecast(asked, Resources(threads=1), told.append).speed
    steps = [event.units for event in told if isinstance(event, StepDone)]
    assert (steps[0], sorted(steps[1:5]), steps[5:]) == (17, [17, 17, 17, 18], [1] * 11)
    assert (speed.images, speed.rounds) == (80, 15)
    assert speed.merge_seconds > 0


@given(st.floats(0.001, 9), st.floats(0, 9), st.integers(16, 500), st.integers(1, 4))
def test_what_an_image_and_a_shard_take_is_found_from_rounds_of_two_sizes(
    image: float, shard: float, images: int, rounds: int
) -> None:
    shard = min(shard, image * images)  # the images of a large round take at least half of it

    def measured(count: int, each: int) -> tuple[list[ShardReceipt], float]:
        receipts = [replace(RECEIPT, images=each - 1, failures=1) for _ in range(count)]
        return receipts, count * (each * image + shard)

    found = _seconds_of_each(measured(rounds, images), measured(11, max(1, images // 16)))
    assert found == pytest.approx((image, shard), rel=1e-6, abs=1e-6)
    assert _seconds_of_each(measured(rounds, images), ([], 0.0))[1] == 0
    busy = measured(11, 1)[0], 1e6
    assert _seconds_of_each(measured(rounds, images), busy)[0] > 0


@given(st.integers(1, 5000))
def test_the_rounds_are_the_whole_sample(images: int) -> None:
    large, small = _rounds_of(images)
    assert sum(large) + sum(small) == images
    assert min(large) >= 16 * max(small, default=0)
    assert len(large) + len(small) == FOLDS if images >= 91 else not small


@pytest.mark.parametrize(
    "other", [{"bins": 9}, {"resize": "fast"}, {"precision": "bf16"}, {"image_hashes": False}]
)
def test_a_speed_that_was_measured_in_another_way_is_refused(
    source: Path, options: dict[str, Any], known: Callable[..., str], other: dict[str, Any]
) -> None:
    asked = ForecastRequest(str(source), measured=known(), **(options | other))
    with pytest.raises(SpecMismatch, match=r"known\.json was measured with other options"):
        forecast(asked)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "{worker_hour: -1}",
            "worker_hour is -1: it must be at least 0; give a file of prices, with",
        ),
        ("{worker_hour: .nan}", "worker_hour is nan: it must be finite"),
        ("{hour: 1}", "worker_hour is missing"),
        ("{worker_hour: 1, hour: 2}", "hour is 2: there is no such field"),
        ("[1]", "the whole is [1]: it must have fields with names; give a file of prices, with"),
        ("[", "is not YAML"),
        ("x" * 70_000, "is larger than 65,536 bytes"),
    ],
)
def test_a_wrong_price_is_named(
    source: Path, options: dict[str, Any], tmp_path: Path, text: str, says: str
) -> None:
    path = priced(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        forecast(ForecastRequest(str(source), price=path, **options))
    assert path in str(caught.value)
    assert says in str(caught.value)
    gone = str(tmp_path / "gone.yaml")
    with pytest.raises(
        UsageError, match=r"gone\.yaml does not exist.*; give a file of prices, with"
    ):
        forecast(ForecastRequest(str(source), price=gone, **options))


def test_what_is_no_speed_is_named(
    source: Path, options: dict[str, Any], known: Callable[..., str], tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"other\.json: speed is missing .*vdna plan --json"):
        forecast(ForecastRequest(str(source), measured=str(path), **options))
    for field in ("seconds_per_image", "slowest"):
        asked = ForecastRequest(str(source), measured=known(**{field: 0.0}), **options)
        with pytest.raises(UsageError, match=rf"speed\.{field} is 0\.0: it must be more than 0"):
            forecast(asked)


def test_a_sample_that_cannot_be_counted_ends_the_forecast(
    source: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: object, entry: object) -> bytes:
        raise SourceError("changed since it was listed")

    monkeypatch.setattr("pipeline.sources.archives.members.Members.fetch", gone)
    with pytest.raises(VdnaError, match=r"the sample could not be counted: .*changed since"):
        forecast(ForecastRequest(str(source), **options))
