"""Tests that calibration finds the extremes and quantiles of numpy, and survives interruptions."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import images, storage
from pipeline.building import CalibrationRequest, calibrate
from pipeline.building.calibration import SCRATCH_NAME
from pipeline.building.quantile_search import extremes, quantiles
from pipeline.counting import Extractor, LayerCounts, ShardJob, ShardReceipt, partial_uri
from pipeline.dna import DNA, Failure, Floats, Partial, Ranges
from pipeline.engine import InProcess
from pipeline.errors import (
    ConservationError,
    GateError,
    SourceError,
    TransientError,
    UsageError,
)
from pipeline.events import Event, Said
from pipeline.mapper import SerialMapper
from pipeline.networks import (
    Network,
    decode_ranges,
    describe,
    find_ranges,
    load_model,
    widen_ranges,
)
from pipeline.sources import Entry, Shard
from pipeline.spec import Preprocess, Spec, Tap
from tests.golden.handmade import read_shard
from tests.jobs.test_cli import refused, vdna, vdna_json
from tests.support import tiny_network as tiny
from tests.support.builders import NUMERICS, RULE, random_dna, tiny_spec, write_photos
from tests.support.ray_commands import SLOW, Small, small

__all__ = ["small"]  # a fixture

REPOSITORY = Path(__file__).parents[2]
Array = NDArray[np.float32]


class Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Said):
            self.lines.append(event.message)


# Quantiles of given activations


def counting(x: Array) -> Callable[[Ranges, int], DNA]:
    """Returns a function that counts activations of shape (positions, neurons)."""

    def count(ranges: Ranges, bins: int) -> DNA:
        tap = Tap("x", x.shape[1], x.shape[0])
        spec = Spec("tiny", "ab" * 32, (tap,), RULE, ranges.digest, bins)
        return dna_of(spec, ranges, [x])

    return count


def dna_of(spec: Spec, ranges: Ranges, layers: Sequence[Array], failed: int = 0) -> DNA:
    """Makes the DNA of one image, or of none if there are no layers."""
    empty = DNA.empty(spec, ranges)
    if not layers:
        return replace(empty, failed=failed)
    tables, least, greatest, start = [], [], [], 0
    for x in layers:
        stop = start + x.shape[1]
        counts = LayerCounts(ranges.low[start:stop], ranges.high[start:stop], spec.bins)
        counts.add(np.ascontiguousarray(x)[None])
        tables.append(counts.table)
        least.append(counts.minimum)
        greatest.append(counts.maximum)
        start = stop
    table = np.concatenate(tables)
    return replace(
        empty,
        images=1,
        counts=table[:, : spec.bins].copy(),
        underflow=table[:, -3].copy(),
        overflow=table[:, -2].copy(),
        nonfinite=table[:, -1].copy(),
        min=np.concatenate(least) + np.float32(0),
        max=np.concatenate(greatest) + np.float32(0),
        numerics=((NUMERICS, 1),),
    )


def by_numpy(x: Array, q: float) -> tuple[Floats, Floats]:
    """Returns the activations at rank ceil(q n) from below and from above."""
    lower, upper = [], []
    for column in x.T.astype(np.float64):
        finite = column[np.isfinite(column)]
        lower.append(np.quantile(finite, q, method="inverted_cdf"))
        upper.append(-np.quantile(-finite, q, method="inverted_cdf"))
    return np.array(lower), np.array(upper)


def whole(x: Array) -> tuple[Ranges, NDArray[np.int64]]:
    finite = np.isfinite(x)
    low = np.where(finite, x, np.inf).min(axis=0).astype(np.float64)
    high = np.where(finite, x, -np.inf).max(axis=0).astype(np.float64)
    return Ranges((("x", x.shape[1]),), low, high), finite.sum(axis=0)


def neurons(seed: int, n: int = 20_000) -> dict[str, Array]:
    """Makes activations of every kind that is hard for histograms."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(2, 1, n)
    one_far, both_far, many_orders = normal.copy(), normal.copy(), normal.copy()
    one_far[7] = 1000 * abs(normal).max()
    both_far[7], both_far[8] = 1e6, -1e6
    many_orders[:6] = [1e3, 1e4, 1e5, 1e6, 1e7, 1e8]
    relu = np.maximum(rng.normal(-5, 1.5, n), 0)
    rare = np.where(rng.random(n) < 2e-4, rng.exponential(5, n), 0)
    columns = {
        "normal": normal,
        "one value 1000 times the rest": one_far,
        "far at both ends": both_far,
        "far by many orders": many_orders,
        "cauchy": rng.standard_cauchy(n),
        "log-normal": rng.lognormal(0, 4, n),
        "two modes": np.where(rng.random(n) < 0.5, rng.normal(-9, 0.1, n), rng.normal(9, 0.1, n)),
        "mostly zero": relu,
        "all but zero": rare,
        "all but zero, and negative": -rare,
        "relu6": np.clip(rng.normal(3, 9, n), 0, 6),
        "dead": np.full(n, 0.3),
        "dead at zero": np.zeros(n),
        "two floats": np.where(rng.random(n) < 0.5, 1.0, np.nextafter(np.float32(1), 2)),
        "three floats": 1 + rng.integers(0, 3, n) * 2.0**-23,
        "integers": rng.integers(-3, 4, n),
        "denormal": rng.normal(0, 1e-42, n),
        "huge": rng.normal(0, 5e37, n).clip(-3e38, 3e38),
        "an offset": rng.normal(1e6, 1, n),
    }
    found = {name: column.astype(np.float32) for name, column in columns.items()}
    found["non-finite"] = found["normal"].copy()
    found["non-finite"][::50] = [np.nan, np.inf, -np.inf, np.nan] * (n // 200)
    return found


@pytest.mark.parametrize("bins", [4096, 1024])
@pytest.mark.parametrize("q", [0.001, 0.01, 0.25, 0.499, 1e-6])
def test_quantiles_equal_those_of_numpy(q: float, bins: int) -> None:
    kinds = neurons(seed=1)
    x = np.stack(list(kinds.values()), axis=1)
    measured, finite = whole(x)
    found = quantiles(measured, finite, q, counting(x), bins)
    lower, upper = by_numpy(x, q)
    low, high = found.ranges.low, found.ranges.high
    assert found.passes <= 4
    assert 0 <= found.resolution <= 0.01
    if q != 0.499:  # there, little lies between the two
        assert found.unresolved == 0
    for i, kind in enumerate(kinds):
        allowed = found.resolution * (upper[i] - lower[i])
        if found.unresolved:
            allowed = max(allowed, found.coarsest * (measured.high - measured.low)[i])
        assert 0 <= lower[i] - low[i] <= allowed, kind
        assert 0 <= high[i] - upper[i] <= allowed, kind
    for kind in ("dead", "dead at zero"):
        at = list(kinds).index(kind)
        assert low[at] == high[at] == x[0, at]
    if q == 0.001:
        at = list(kinds).index("all but zero")
        assert (low[at], high[at]) == (0, 0)
    if q == 0.01:  # enough activations that numpy's other methods agree
        linear = np.quantile(kinds["normal"].astype(np.float64), [q, 1 - q])
        np.testing.assert_allclose((low[0], high[0]), linear, atol=0.03)


def test_most_neurons_need_one_more_pass() -> None:
    x = np.stack([neurons(seed)["normal"] for seed in range(5)], axis=1)
    assert quantiles(*whole(x), 0.001, counting(x)).passes == 1
    far = x.copy()
    far[3] = 1000 * x[3]
    assert quantiles(*whole(far), 0.001, counting(far)).passes == 2
    dead = np.full((9, 3), 0.1, np.float32)
    assert quantiles(*whole(dead), 0.1, counting(dead)).passes == 0


def test_ranks_are_exact() -> None:
    """In floats 0.07 x 100 is 7.000000000000001, but the seventh value is meant."""
    x = np.random.default_rng(0).permutation(100).astype(np.float32)[:, None]
    for percent in range(1, 50):
        found = quantiles(*whole(x), percent / 100, counting(x)).ranges
        assert (found.low.round(), found.high.round()) == (percent - 1, 100 - percent)


def test_quantiles_of_few_activations_are_right() -> None:
    for n in range(1, 8):
        x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
        for q in (0.001, 0.3, 0.499):
            found = quantiles(*whole(x), q, counting(x))
            lower, upper = by_numpy(x, q)
            assert (found.ranges.low <= lower).all()
            assert (found.ranges.high >= upper).all()
            np.testing.assert_allclose(found.ranges.low, lower, atol=0.01 * np.ptp(x))
            np.testing.assert_allclose(found.ranges.high, upper, atol=0.01 * np.ptp(x))


def test_quantiles_that_four_passes_cannot_resolve_are_reported() -> None:
    """Almost all activations are 0, which four passes cannot distinguish from 1e-30."""
    x = np.zeros((10_000, 1), np.float32)
    x[:5, 0], x[5:9, 0] = 1.0, -1.0
    found = quantiles(*whole(x), 0.001, counting(x), 256)
    assert (found.unresolved, found.passes, found.resolution) == (1, 4, 0.0)
    assert found.ranges.low[0] <= 0 <= found.ranges.high[0]
    assert found.ranges.high[0] - found.ranges.low[0] <= 2 * 2 * found.coarsest < 1e-6


# Whole calibrations, of activations made up for every image

TAPS = (Tap("stem", 5, 64), Tap("head", 2, 1))
HALF = (0.5, 0.5, 0.5)
TINY = Network("tiny", "ab" * 32, TAPS, 8, 8, HALF, HALF)
OTHER = replace(TINY, weights_sha256="cd" * 32, weights_uri="file:///other.pt")


def made_up(spec: Spec, entry: Entry) -> list[Array]:
    text = f"{spec.weights_sha256}{spec.preprocess.resize}{entry.uri.rpartition('/')[2]}"
    rng = np.random.default_rng(zlib.crc32(text.encode()))
    layers = [rng.normal(1, 2, (tap.positions, tap.neurons)).astype(np.float32) for tap in TAPS]
    layers[0][:, 1] = np.maximum(layers[0][:, 1] - 3, 0)
    layers[0][:, 2] = 0.25
    layers[0][3, 3] *= 1000
    if "odd" in entry.uri:
        layers[0][:40, 0] = [np.nan, np.inf, -np.inf, np.nan] * 10
    return layers


class EngineWithoutNetwork(SerialMapper):
    """An engine without a network; it dies after `stop_after` shards, where given."""

    shard_workers = 1

    def __init__(self, stop_after: int | None = None) -> None:
        self.left = stop_after
        self.counted = 0

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        for job, index in work:
            if self.left == self.counted:
                raise InterruptedError("the engine died")
            self.counted += 1
            shard = read_shard(job, index)
            partial = self.count(job, shard)
            uri = partial_uri(job.work_uri, partial.shards[0])
            storage.create(uri, partial.encode())
            yield ShardReceipt(job.manifest_uri, index, partial.dna.images, len(partial.failures))

    def count(self, job: ShardJob, shard: Shard) -> Partial:
        spec = job.recipe.spec
        ranges, _ = decode_ranges(storage.read(job.recipe.ranges_uri), job.recipe.ranges_uri)
        total = Partial.empty(spec, ranges)
        for i, entry in enumerate(shard.members):
            failures, layers = [], made_up(spec, entry)
            if "bad" in entry.uri:
                failures, layers = [Failure(entry.uri, "", "truncated", "too short")], []
            dna = dna_of(spec, ranges, layers, len(failures))
            total += Partial(dna, (f"{i}",), tuple(failures))
        return replace(total, shards=(shard.key(spec.digest),))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes folders of file names: the engine of these tests looks at nothing else."""
    for module in ("pipeline.building.shared_lookups", "pipeline.building.calibration"):
        monkeypatch.setattr(
            f"{module}.describe", lambda name, weights, taps: OTHER if weights else TINY
        )
    monkeypatch.setattr("pipeline.building.shared_lookups.require_loadable", lambda network: None)
    for folder, names in {
        "a": [f"{i:03d}" for i in range(10)],
        "b": [f"{i:03d}" for i in range(100, 104)],
        "spoilt": ["200", "201-bad", "202-odd", "203"],
        "hopeless": ["bad-1", "bad-2"],
    }.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / f"{name}.jpg").write_text(name)
    return tmp_path


def truth_of(made: Path, *folders: str, **changes: Any) -> list[Array]:
    """Returns every activation of each layer, as (all positions, neurons)."""
    rule = Preprocess(8, 8, HALF, HALF, resize=changes.get("resize", "clean"))
    weights = OTHER.weights_sha256 if changes.get("weights") else TINY.weights_sha256
    spec = Spec("tiny", weights, TAPS, rule, "00")
    paths = sorted(path for folder in folders for path in (made / folder).iterdir())
    found = [
        made_up(spec, Entry(path.as_uri(), "", 0, "")) for path in paths if "bad" not in path.name
    ]
    return [np.concatenate([layers[i] for layers in found]) for i in range(len(TAPS))]


def measure(
    made: Path, *sources: str, engine: EngineWithoutNetwork | None = None, **options: Any
) -> bytes:
    out = made / options.pop("out", "ranges.parquet")
    progress = options.pop("progress", None)
    request = CalibrationRequest([str(made / s) for s in sources], str(out), **options)
    calibrate(request, engine or EngineWithoutNetwork(), progress=progress)
    return out.read_bytes()


def work_folder(made: Path, out: str = "ranges.parquet") -> Path:
    return made / f"{out}.work"


def unwidened(data: bytes) -> tuple[Ranges, dict[str, Any]]:
    wide, metadata = decode_ranges(data, "x")
    return widen_ranges(wide, 1 / 1.2), metadata


@pytest.mark.parametrize("options", [{}, {"resize": "fast"}, {"weights": "other.pt"}])
def test_calibrated_ranges_are_the_widened_extremes(made: Path, options: dict[str, str]) -> None:
    found, metadata = decode_ranges(measure(made, "a", "b", **options), "x")
    layers = truth_of(made, "a", "b", **options)
    low = np.concatenate([x.min(axis=0) for x in layers]).astype(np.float64)
    high = np.concatenate([x.max(axis=0) for x in layers]).astype(np.float64)
    taps = tuple((tap.name, tap.neurons) for tap in TAPS)
    assert found.digest == widen_ranges(Ranges(taps, low, high)).digest
    assert (metadata["images"], metadata["failed"], metadata["nonfinite"]) == (14, 0, 0)
    assert (metadata["widened"], metadata["widened_about"]) == (1.2, "centre")
    assert metadata["sources"] == [str(made / "a"), str(made / "b")]
    assert metadata["preprocess"]["resize"] == options.get("resize", "clean")
    assert metadata["quantile"] is None
    assert metadata["numerics"] == [{"numerics": NUMERICS.to_json(), "images": 14}]
    network = OTHER if "weights" in options else TINY
    assert find_ranges(network, str(made / "ranges.parquet"), {})[0].digest == found.digest


def test_a_calibration_with_quantiles_finds_those_of_all_activations(made: Path) -> None:
    found, metadata = unwidened(measure(made, "a", "b", quantile=0.02))
    lower, upper = (
        np.concatenate(x)
        for x in zip(*(by_numpy(layer, 0.02) for layer in truth_of(made, "a", "b")), strict=True)
    )
    assert (metadata["quantile"], metadata["unresolved"]) == (0.02, 0)
    assert metadata["passes"] == 2
    assert metadata["coarsest"] > 0
    allowed = metadata["resolution"] * (upper - lower) + 1e-12
    assert 0 < metadata["resolution"] <= 0.01
    assert (abs(found.low - lower) <= allowed).all()
    assert (abs(found.high - upper) <= allowed).all()
    assert found.low[2] == found.high[2] == 0.25


@pytest.mark.parametrize("quantile", [None, 0.01])
def test_order_repeated_sources_and_shard_size_do_not_change_the_ranges(
    made: Path, quantile: float | None
) -> None:
    """The files are equal byte by byte, except that an overlapping source is named in the file."""
    truth = measure(made, "a", "b", quantile=quantile)
    assert measure(made, "b", "a", "a", quantile=quantile, shard_images=1) == truth
    (made / "list.txt").write_text("a/001.jpg\nb/101.jpg\n")
    found, metadata = decode_ranges(
        measure(made, "list.txt", "a", "a/0*.jpg", "b", quantile=quantile), "x"
    )
    assert found.digest == decode_ranges(truth, "x")[0].digest
    assert metadata["images"] == 14


def test_duplicates_are_reported(made: Path) -> None:
    out = str(made / "r.parquet")
    sources = [str(made / "a"), str(made / "a"), str(made / "a" / "00*.jpg")]
    assert calibrate(CalibrationRequest(sources, out), EngineWithoutNetwork()).duplicates == 20


def test_a_limit_applies_to_all_sources_and_selects_the_same_images_each_run(made: Path) -> None:
    truth = measure(made, "a", "b", limit=7)
    assert decode_ranges(truth, "x")[1]["images"] == 7
    assert measure(made, "b", "a", limit=7, out="again.parquet") == truth


@pytest.mark.parametrize("quantile", [None, 0.01])
def test_an_interrupted_calibration_resumes_to_the_same_bytes(
    made: Path, quantile: float | None
) -> None:
    clean = EngineWithoutNetwork()
    truth = measure(made, "a", "b", quantile=quantile, engine=clean, out="clean.parquet")
    assert not work_folder(made, "clean.parquet").exists()
    counted = 0
    for _ in range(100):
        engine = EngineWithoutNetwork(stop_after=7)
        try:
            found = measure(made, "a", "b", quantile=quantile, engine=engine)
            break
        except InterruptedError:
            assert work_folder(made).exists()
        finally:
            counted += engine.counted
    assert found == truth
    assert counted == clean.counted  # no shard twice
    assert not work_folder(made).exists()


def test_results_of_a_call_with_other_arguments_are_not_reused(made: Path) -> None:
    """Most of these calls are interrupted, and all of them use the same work folder."""
    truth = measure(made, "a", quantile=0.01, out="clean.parquet")
    others: list[tuple[tuple[str, ...], dict[str, Any]]] = [
        (("a",), {"quantile": 0.02}),
        (("a",), {"include": "00[0-4]*"}),
        (("a",), {"limit": 6}),
        (("b",), {}),
        (("a",), {"weights": "other.pt"}),
        (("a", "b"), {}),
        (("a",), {"resize": "fast"}),
        (("a",), {"shard_images": 2, "quantile": 0.3}),
        (("a", "spoilt"), {"max_failures": 1}),
    ]
    for sources, options in others:
        with contextlib.suppress(InterruptedError):
            measure(made, *sources, engine=EngineWithoutNetwork(4), **{"quantile": 0.01} | options)
    assert work_folder(made).exists()
    assert measure(made, "a", quantile=0.01) == truth
    for sources, options in (others[0], others[4]):
        options = {"quantile": 0.01} | options
        with pytest.raises(InterruptedError):
            measure(made, "a", engine=EngineWithoutNetwork(13), quantile=0.01)
        fresh = measure(made, *sources, out="fresh.parquet", **options)
        assert measure(made, *sources, **options) == fresh != truth


def test_an_image_that_changed_is_measured_again(made: Path) -> None:
    with pytest.raises(InterruptedError):
        measure(made, "a", engine=EngineWithoutNetwork(5))
    for path in (made / "a").iterdir():
        path.write_text("something else of another size")
    engine = EngineWithoutNetwork()
    measure(made, "a", engine=engine)
    assert engine.counted == 10


def test_calibration_removes_only_its_own_work_files(made: Path) -> None:
    work_folder(made).mkdir()
    (work_folder(made) / "mine.txt").write_text("dear")
    measure(made, "a")
    assert [path.name for path in work_folder(made).iterdir()] == ["mine.txt"]


def test_too_many_failures_are_refused_and_a_higher_limit_needs_no_recounting(made: Path) -> None:
    with pytest.raises(
        GateError, match=r"1 of 8 images could not be read; the limit is 1% of the images"
    ):
        measure(made, "b", "spoilt")
    assert not (made / "ranges.parquet").exists()
    engine, said = EngineWithoutNetwork(), Lines()
    data = measure(made, "b", "spoilt", engine=engine, max_failures=1, progress=said)
    assert engine.counted == 0
    _, metadata = decode_ranges(data, "x")
    assert (metadata["images"], metadata["failed"]) == (7, 1)
    assert [line for line in said.lines if "201-bad.jpg: truncated" in line]


def test_a_pass_accepted_under_another_limit_is_checked_again(made: Path) -> None:
    with pytest.raises(InterruptedError):
        measure(made, "spoilt", quantile=0.1, engine=EngineWithoutNetwork(6), max_failures=1)
    with pytest.raises(GateError, match=r"(?s)1 of 4 images .* limit is 1% of the images.*201-bad"):
        measure(made, "spoilt", quantile=0.1)


def test_activations_that_are_not_finite_are_left_out_and_reported(made: Path) -> None:
    out = str(made / "r.parquet")
    request = CalibrationRequest([str(made / "spoilt")], out, quantile=0.3, max_failures=1)
    done = calibrate(request, EngineWithoutNetwork())
    assert done.nonfinite == 40
    found, metadata = unwidened((made / "r.parquet").read_bytes())
    assert metadata["nonfinite"] == 40
    lower, upper = by_numpy(truth_of(made, "spoilt")[0], 0.3)
    np.testing.assert_allclose(found.low[0], lower[0], atol=0.01 * (upper - lower)[0])


def test_a_neuron_without_a_finite_activation_is_refused_by_name() -> None:
    dna = random_dna(*tiny_spec(), images=5, seed=0)
    dna.min[3], dna.max[3] = np.inf, -np.inf
    dna.min[4], dna.max[4] = np.inf, -np.inf
    with pytest.raises(UsageError, match=r"neuron head\[0\] of tiny had no finite .* 5 .* 1 other"):
        extremes(dna)


def test_unreadable_or_missing_sources_and_invalid_options_are_refused(made: Path) -> None:
    with pytest.raises(SourceError, match="none of 2 candidates is an image"):
        measure(made, "hopeless", max_failures=5)
    with pytest.raises(SourceError, match="nowhere does not exist"):
        measure(made, "a", "nowhere")
    with pytest.raises(UsageError, match="at least one source"):
        measure(made)
    for quantile in (0, 0.5, -0.1, 1, float("nan")):
        with pytest.raises(UsageError, match=f"quantile is {quantile}; it must be above 0"):
            measure(made, "a", quantile=quantile)
    for wrong in ({"limit": 0}, {"max_failures": -1}):
        with pytest.raises(UsageError, match="must"):
            measure(made, "a", **wrong)
    with pytest.raises(UsageError, match="a folder; give the name of a file"):
        measure(made, "a", out="b")


def test_images_that_fail_in_only_some_passes_end_the_calibration(made: Path) -> None:
    class Moody(EngineWithoutNetwork):
        def count(self, job: ShardJob, shard: Shard) -> Partial:
            if job.recipe.spec.bins > 2 and shard.index == 0:
                bad = tuple(replace(e, uri=e.uri + "-bad") for e in shard.members)
                found = super().count(job, replace(shard, members=bad))
                return replace(found, shards=(shard.key(job.recipe.spec.digest),))
            return super().count(job, shard)

    with pytest.raises(ConservationError, match=r"counted 10 .*another .*: some images fail now"):
        measure(made, "a", quantile=0.1, engine=Moody(), max_failures=10)


@pytest.mark.parametrize(
    ("source", "out"),
    [
        ("a", "a/ranges.parquet"),
        ("a", "a/deep/down/ranges.parquet"),
        ("", "ranges.parquet"),
        ("*", "ranges.parquet"),
        ("a/**", "a/ranges.parquet"),
        ("link", "a/ranges.parquet"),
        ("a", "link/ranges.parquet"),
    ],
)
def test_a_work_folder_inside_a_source_is_refused(made: Path, source: str, out: str) -> None:
    (made / "link").symlink_to(made / "a")
    engine = EngineWithoutNetwork()
    with pytest.raises(UsageError) as caught:
        measure(made, "b", source, out=out, engine=engine)
    assert str(work_folder(made, out)) in str(caught.value)
    assert str(made / source) in str(caught.value)
    assert engine.counted == 0
    assert not work_folder(made, out).exists()


def test_a_work_folder_beside_a_source_is_accepted(made: Path) -> None:
    (made / "list.txt").write_text("a/001.jpg\n")
    measure(made, "list.txt", "a", "b/*.jpg", out="a.parquet")
    measure(made, "a", out="ab/ranges.parquet")
    measure(made, "b/*.jpg", out="b/ranges.parquet")


def test_memory_urls_are_refused_if_other_processes_count(made: Path) -> None:
    engine = EngineWithoutNetwork()
    engine.in_process = False
    for sources, out in ((["memory://x"], "r.parquet"), (["a"], "memory://r.parquet")):
        with pytest.raises(UsageError, match="other processes cannot see memory://"):
            calibrate(CalibrationRequest(sources, out), engine)


def test_calibration_resumes_on_an_object_store(made: Path, bucket: str) -> None:
    out = f"{bucket}/calibrated/ranges.parquet"
    request = CalibrationRequest([str(made / "a")], out)
    with pytest.raises(InterruptedError):
        calibrate(request, EngineWithoutNetwork(5))
    assert len(list(storage.walk(f"{out}.work"))) > 5
    engine = EngineWithoutNetwork()
    calibrate(request, engine)
    assert engine.counted == 5
    assert [item.uri for item in storage.walk(f"{bucket}/calibrated")] == [out]
    assert storage.read(out) == measure(made, "a")


# With the network


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 3)
    return folder


@pytest.fixture(scope="module")
def tiny_place(tmp_path_factory: pytest.TempPathFactory) -> tiny.Place:
    return tiny.install(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def observed(photos: Path, tiny_place: tiny.Place) -> list[Array]:
    """Returns every activation of each layer, as (all positions, neurons), each image alone."""
    network = tiny_place.network
    extractor = Extractor(network)
    rule = Preprocess(network.height, network.width, network.mean, network.std)
    found: list[list[Array]] = [[] for _ in network.taps]
    for path in sorted(photos.iterdir()):
        pixels = images.load(path.read_bytes(), rule).values
        extractor.observe(pixels[None], lambda i, x: found[i].append(x[0].numpy().copy()))
    return [np.concatenate(layer) for layer in found]


@pytest.fixture(scope="module")
def in_process(
    photos: Path, tiny_place: tiny.Place, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """Returns the file of each kind that one undisturbed run writes."""
    place = tmp_path_factory.mktemp("out")
    engine = InProcess()
    network = {"extractor": tiny.NAME, "weights": tiny_place.weights}
    for name, quantile in (("extremes", None), ("quantiles", 0.01)):
        request = CalibrationRequest([str(photos)], str(place / name), quantile=quantile, **network)
        calibrate(request, engine)
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_the_extremes_equal_those_that_an_extractor_observes(
    observed: list[Array], in_process: dict[str, bytes], tiny_place: tiny.Place
) -> None:
    found, metadata = decode_ranges(in_process["extremes"], "x")
    taps = tiny_place.network.taps
    low = np.concatenate([x.min(axis=0) for x in observed]).astype(np.float64)
    high = np.concatenate([x.max(axis=0) for x in observed]).astype(np.float64)
    truth = Ranges(tuple((tap.name, tap.neurons) for tap in taps), low, high)
    assert found.digest == widen_ranges(truth).digest
    assert metadata["images"] == 3


def test_the_quantiles_equal_those_of_observed_activations(
    observed: list[Array], in_process: dict[str, bytes]
) -> None:
    found, metadata = unwidened(in_process["quantiles"])
    both = [by_numpy(x, 0.01) for x in observed]
    lower, upper = (np.concatenate(ends) for ends in zip(*both, strict=True))
    assert metadata["unresolved"] == 0
    allowed = metadata["resolution"] * (upper - lower) + 1e-12 * (abs(lower) + abs(upper))
    assert (abs(found.low - lower) <= allowed).all()
    assert (abs(found.high - upper) <= allowed).all()


def test_an_image_that_changes_during_calibration_ends_it(
    photos: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storage.read

    def changed(uri: str, identity: str | None = None, most: int | None = None) -> bytes:
        return read(uri, "another" if uri.endswith("photo-0002.jpg") else identity, most)

    monkeypatch.setattr(storage, "read", changed)
    with pytest.raises(TransientError, match=r"photo-0002\.jpg changed between listing and read"):
        measured(photos, tmp_path / "r.parquet", small)


def measured(photos: Path, out: Path, small: Small, quantile: float | None = None) -> bytes:
    """Measures ranges with the small network, in this process."""
    network = {"extractor": tiny.NAME, "weights": small.place.weights}
    request = CalibrationRequest([str(photos)], str(out), quantile=quantile, **network)
    calibrate(request, InProcess())
    return out.read_bytes()


def command(photos: Path, out: Path, *options: object) -> list[str]:
    words = [sys.executable, "-m", "jobs.calibrate", photos, "--out", out, "--json", *options]
    return [str(word) for word in words]


@pytest.mark.soak
def test_calibration_on_ray_writes_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    """The embedded network is used."""
    alone = tmp_path / "alone.parquet"
    calibrate(CalibrationRequest([str(photos)], str(alone)), InProcess())
    out = tmp_path / "ranges.parquet"
    done = subprocess.run(
        command(photos, out, "--workers", 1, "--threads", 1, "--backend", "torch"),
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 3
    assert out.read_bytes() == alone.read_bytes()
    assert not (tmp_path / "ranges.parquet.work").exists()


@pytest.mark.essential
@pytest.mark.soak
def test_a_killed_process_is_resumed_to_the_same_bytes(
    photos: Path, small: Small, tmp_path: Path
) -> None:
    """The process is killed in the second pass, after its first shard."""
    clean = measured(photos, tmp_path / "clean.parquet", small, quantile=0.001)
    out = tmp_path / "ranges.parquet"
    options = ("--workers", 0, "--threads", 1, "--quantile", 0.001)
    network = ("--extractor", tiny.NAME, "--weights", small.place.weights)
    job = subprocess.Popen(
        command(photos, out, *options, *network),
        env=os.environ | small.environment(SLOW.replace("0.25", "1.5")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPOSITORY,
    )
    kept: list[Path] = []
    end = monotonic() + 60
    while len(kept) < 4 and monotonic() < end:
        kept = list(tmp_path.glob(f"{out.name}.work/*/_work/{SCRATCH_NAME}/*/partials/*.parquet"))
        sleep(0.01)
    os.kill(job.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert not out.exists()
    assert 4 <= len(kept) < 6, kept
    assert measured(photos, out, small, quantile=0.001) == clean


# By its command


def test_the_calibrate_command_writes_ranges(
    photos: Path, tmp_path: Path, in_process: dict[str, bytes], small: Small
) -> None:
    out = tmp_path / "ranges.parquet"
    network = ("--extractor", tiny.NAME, "--weights", small.place.weights)
    words = ("calibrate", photos, "--out", out, "--workers", 0, *network)
    found = vdna_json(*words)
    assert (found["images"], found["failed"], found["out"]) == (3, 0, str(out))
    assert out.read_bytes() == in_process["extremes"]
    assert found["digest"] == decode_ranges(out.read_bytes(), "x")[0].digest
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    mixed = ("calibrate", photos / "photo-000[01].jpg", tmp_path / "bad", "--workers", 0)
    mixed = (*mixed, "--out", out, "--quantile", 0.01)
    mixed = (*mixed, *network)
    refused(vdna(*mixed, exits=3), "1 of 3 images could not be read")
    done = vdna(*mixed, "--max-failures", 1)
    assert "of 2 images (1 could not be read, from quantile 0.01, to 0." in done.stdout
    assert "cut.jpg: " in done.stderr


@pytest.mark.parametrize(
    ("options", "exits", "parts"),
    [
        (("--quantile", "0.5"), 2, ["quantile is 0.5"]),
        (("--extractor", "x"), 2, ["no extractor 'x'"]),
        (("--out", "{}/r.parquet"), 2, ["r.parquet.work", "inside the source"]),
        (("--include", "*.png"), 1, ["holds no image"]),
        (("{}/nowhere",), 1, ["nowhere does not exist"]),
    ],
)
def test_the_calibrate_command_refuses_wrong_input(
    photos: Path, tmp_path: Path, options: tuple[str, ...], exits: int, parts: list[str]
) -> None:
    words = ("calibrate", photos, "--workers", 0, "--out", tmp_path / "r.parquet")
    done = vdna(*words, *(option.format(photos) for option in options), exits=exits)
    refused(done, *parts)


def test_weights_that_give_no_finite_activation_are_refused(photos: Path, tmp_path: Path) -> None:
    state = load_model(describe("efficientnet_lite0")).state_dict()
    state["bn1.bias"] = state["bn1.bias"].clone()
    state["bn1.bias"][3] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    words = ("calibrate", photos, "--workers", 0, "--weights", tmp_path / "nan.pt", "--limit", 1)
    done = vdna(*words, "--out", tmp_path / "r.parquet", exits=2)
    refused(done, "neuron bn1[3] of efficientnet_lite0 had no finite activation in 1 image")
