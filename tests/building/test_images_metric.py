"""Tests the metric: exact in any batches, merges and ranks, and no burden on a training loop."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import distributed

from pipeline import DNA, VisualDNA, emd, make_dna
from pipeline.counting import Extractor, FoldCounts, rank_sums
from pipeline.counting.torch_switches import _products
from pipeline.dna import DnaFile
from pipeline.errors import SpecMismatch, UsageError
from pipeline.events import StepDone
from tests.support import tiny_network

PIXELS = np.random.default_rng(3).integers(0, 256, (40, 11, 9, 3), np.uint8)
PIXELS[3:5] = 7  # of one colour


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> tiny_network.Place:
    return tiny_network.install(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def metrics(place: tiny_network.Place) -> list[VisualDNA]:
    return [new_metric(place) for _ in range(3)]


def new_metric(place: tiny_network.Place, **options: Any) -> VisualDNA:
    arguments: dict[str, Any] = {**place.options, "threads": 2, **options}
    return VisualDNA(**arguments)


@pytest.fixture(scope="module")
def expected(place: tiny_network.Place) -> DNA:
    metric = new_metric(place)
    metric.update(PIXELS)
    return metric.compute()


def assert_same(found: DNA, right: DNA) -> None:
    """Counts, folds and extremes must be equal to the last bit, and floats up to rounding."""
    for name in ("images", "failed", "transparent", "single_colour"):
        assert getattr(found, name) == getattr(right, name), name
    for name in ("counts", "underflow", "overflow", "nonfinite", "min", "max"):
        assert np.array_equal(getattr(found, name), getattr(right, name)), name
    for name in ("mean", "m2"):
        assert np.allclose(getattr(found, name), getattr(right, name), rtol=1e-12, atol=1e-12)
    assert found.numerics == right.numerics
    for layer in right.layers:
        mine, others = (of.folds.read(layer) for of in (found, right))  # type: ignore[union-attr]
        assert list(mine) == list(others)
        assert all(np.array_equal(mine[fold].counts, others[fold].counts) for fold in mine)


def test_the_metric_counts_what_make_dna_counts(expected: DNA, place: tiny_network.Place) -> None:
    right = make_dna(list(PIXELS), **place.options)  # type: ignore[arg-type]
    assert np.array_equal(expected.counts, right.counts)
    assert np.allclose(expected.m2, right.m2)
    assert expected.spec == right.spec
    assert expected.single_colour == right.single_colour == 2
    distance = emd(expected, right)
    assert distance == 0
    assert distance.low == 0 < distance.high


@settings(max_examples=10, deadline=None)
@given(
    order=st.permutations(range(len(PIXELS))),
    cuts=st.sets(st.integers(1, len(PIXELS) - 1), max_size=6),
    data=st.data(),
)
def test_any_batches_and_merges_equal_one_pass(
    order: list[int], cuts: set[int], data: st.DataObject, metrics: list[VisualDNA], expected: DNA
) -> None:
    for metric in metrics:
        metric.reset()
    for start, end in pairwise([0, *sorted(cuts), len(PIXELS)]):
        data.draw(st.sampled_from(metrics)).update(PIXELS[order[start:end]])
    a, b, c = metrics
    if data.draw(st.booleans()):
        a.merge_state(b)
        a.merge_state(c)
    else:
        b.merge_state(c)
        a.merge_state(b)
    assert a.images == len(PIXELS)
    assert_same(a.compute(), expected)


def test_batches_alone_change_no_bit_at_all(metrics: list[VisualDNA], expected: DNA) -> None:
    metrics[0].reset()
    for start in range(0, len(PIXELS), 7):
        metrics[0].update(PIXELS[start : start + 7])
        metrics[0].compute()
    assert metrics[0].compute().identical(expected)


def test_reset_forgets_what_was_counted_and_merged(metrics: list[VisualDNA], expected: DNA) -> None:
    one, other, _ = metrics
    one.update(PIXELS[:5])
    other.update(PIXELS[:5])
    one.merge_state(other)
    one.reset()
    assert one.images == 0
    assert repr(one) == "<VisualDNA of 0 images by tiny>"
    one.update(PIXELS)
    assert_same(one.compute(), expected)


@pytest.mark.parametrize("kind", ["array", "bytes", "floats", "pictures", "tuples"])
def test_every_kind_of_batch_counts_the_same(
    kind: str, metrics: list[VisualDNA], expected: DNA
) -> None:
    tensor = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    batch: Any = {
        "array": PIXELS,
        "bytes": tensor,
        "floats": (tensor / 255).requires_grad_(),
        "pictures": [Image.fromarray(image) for image in PIXELS],
        "tuples": [(image, 7) for image in PIXELS],
    }[kind]
    metrics[0].reset()
    metrics[0].update(batch)
    assert_same(metrics[0].compute(), expected)


def test_a_group_is_in_one_fold(place: tiny_network.Place) -> None:
    metric = new_metric(place)
    metric.update(PIXELS[:20], groups=[f"video {at // 5}" for at in range(20)])
    metric.update(PIXELS[20:], groups=[f"video {at % 4}" for at in range(20)])
    folds = metric.compute().folds
    assert folds is not None
    sizes = [dna.images for dna in folds.read("a").values()]
    assert sum(sizes) == 40
    assert all(size % 10 == 0 for size in sizes)


@pytest.mark.parametrize(
    ("batch", "groups", "message"),
    [
        (PIXELS[0], None, r"the batch has shape \(11, 9, 3\); give \(images, 3, height, width\)"),
        (torch.zeros(3, 8, 8), None, r"the batch has shape \(3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), -1.0), None, "give it before it is normalised"),
        ([PIXELS[0], object()], None, "image 1 has type object"),
        (["a.jpg"], None, "the batch holds paths"),
        (PIXELS[:2], ["a"], "1 group for 2 images"),
    ],
)
def test_a_batch_that_is_refused_is_not_counted(
    batch: Any, groups: Any, message: str, metrics: list[VisualDNA]
) -> None:
    metrics[0].reset()
    with pytest.raises(UsageError, match=message):
        metrics[0].update(batch, groups)
    assert metrics[0].images == 0
    with pytest.raises(UsageError, match=r"no image; call update\(images\) first"):
        metrics[0].compute()


def count_by_metric(place: tiny_network.Place) -> None:
    metric = new_metric(place)
    metric.update(PIXELS[:9])
    metric.compute()


def count_by_make_dna(place: tiny_network.Place) -> None:
    make_dna(list(PIXELS[:9]), threads=2, **place.options)  # type: ignore[arg-type]


def fail_to_count(place: tiny_network.Place) -> None:
    """A stop in the midst of counting, as by Ctrl-C."""

    def stop(event: object) -> None:
        if isinstance(event, StepDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_dna(list(PIXELS[:9]), progress=stop, **place.options)  # type: ignore[arg-type]


def by_older_switches() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def by_precision_of_products() -> None:
    torch.set_float32_matmul_precision("medium")  # bfloat16, also on a CPU


def by_precision_of_all() -> None:
    torch.backends.fp32_precision = "tf32"


@pytest.mark.parametrize("count", [count_by_metric, count_by_make_dna, fail_to_count])
@pytest.mark.parametrize(
    "train", [by_older_switches, by_precision_of_products, by_precision_of_all]
)
def test_training_goes_on_as_it_was(
    place: tiny_network.Place,
    count: Callable[[tiny_network.Place], None],
    train: Callable[[], None],
) -> None:
    backends = torch.backends

    def state() -> list[Any]:
        switches = [each.fp32_precision for each in _products()]
        for read in (torch.get_float32_matmul_precision, lambda: backends.cudnn.allow_tf32):
            with contextlib.suppress(RuntimeError):  # set by the newer switches
                switches.append(read())
        kernels = [backends.cudnn.benchmark, backends.cudnn.deterministic]
        return [switches, kernels, torch.get_num_threads(), torch.get_rng_state().tolist()]

    first, of_all = state(), torch.backends.fp32_precision
    train()
    backends.cudnn.benchmark, backends.cudnn.deterministic = True, False
    torch.set_num_threads(2)
    try:
        before = state()
        count(place)
        assert state() == before
    finally:
        torch.backends.fp32_precision = of_all
        torch.set_float32_matmul_precision(first[0][-2])
        backends.cudnn.allow_tf32 = first[0][-1]
        for each, precision in zip(_products(), first[0][:-2], strict=True):
            each.fp32_precision = precision
        backends.cudnn.benchmark, backends.cudnn.deterministic = first[1]
        torch.set_num_threads(first[2])


@pytest.mark.parametrize(
    "train", [by_older_switches, by_precision_of_products, by_precision_of_all]
)
def test_code_of_others_can_read_the_older_switches_while_images_are_counted(
    train: Callable[[], None],
) -> None:
    """As a network of one's own may, by `torch.backends.cudnn.flags`."""
    code = (
        "import torch\n"
        "from pipeline.counting import exact_switches\n"
        "from tests.building import test_images_metric as tests\n"
        f"tests.{train.__name__}()\n"
        "with exact_switches(), torch.backends.cudnn.flags(enabled=True):\n"
        "    assert not torch.backends.cuda.matmul.allow_tf32\n"
        "    assert torch.get_float32_matmul_precision() == 'highest'\n"
        "torch.backends.cudnn.allow_tf32\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_metrics_that_count_in_other_ways_are_not_merged(
    place: tiny_network.Place, metrics: list[VisualDNA]
) -> None:
    with pytest.raises(
        SpecMismatch, match=r"this metric and the other metric .* bins: 8 against 9"
    ):
        metrics[0].merge_state(new_metric(place, bins=9))
    plain = new_metric(place, error_bars=False)
    with pytest.raises(UsageError, match="only one of the metrics keeps error bars"):
        metrics[0].merge_state(plain)
    with pytest.raises(UsageError, match="its images would count twice"):
        plain.merge_state(plain)
    with pytest.raises(UsageError, match=r"device is 'tpu'"):
        new_metric(place, device="tpu")
    with pytest.raises(TypeError, match="takes no option limit"):
        new_metric(place, limit=3)


def test_without_error_bars_one_table_counts_the_same(
    place: tiny_network.Place, expected: DNA
) -> None:
    plain = new_metric(place, error_bars=False)
    plain.update(PIXELS)
    found = plain.compute()
    assert found.folds is None
    assert np.array_equal(found.counts, expected.counts)


def test_tables_on_the_device_count_as_those_on_the_cpu(place: tiny_network.Place) -> None:
    metric = new_metric(place)
    pixels = np.random.default_rng(1).normal(0, 1, (7, 8, 8, 3)).astype(np.float32)
    folds = np.array([2, 0, 2, 1, 1, 2, 0])
    counts = [
        FoldCounts(Extractor(place.network, on_device=on), metric.spec, metric._ranges, 3)
        for on in (False, True)
    ]
    means: list[NDArray[np.float64]] = []
    for each in counts:
        each.add(pixels[:1], folds[:1])
        each.reset()
        means.append(each.add(pixels, folds))
        each.add(pixels[:3], folds[:3])
    assert np.allclose(*means, rtol=1e-12)
    for fold in range(3):
        for a, b in zip(*(each.read(fold) for each in counts), strict=True):
            assert np.array_equal(a, b)


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    """A group of one rank."""
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_the_sum_over_one_rank_is_its_own(alone: None, expected: DNA) -> None:
    rank_sums.require_same_on_ranks(expected.spec, 16)
    assert rank_sums.sum_over_ranks(expected).identical(expected)
    assert not rank_sums.ranks_together()


RANK = """
import sys
from pathlib import Path

import numpy as np
from torch import distributed

from pipeline import VisualDNA
from pipeline.dna import encode_dna
from pipeline.errors import SpecMismatch
from tests.building.test_images_metric import PIXELS
from tests.support import tiny_network

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
place = tiny_network.install(folder / "network")
store = distributed.FileStore(str(folder / "store"), 2)
distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
metric = VisualDNA(threads=1, **place.options)
metric.update(PIXELS[rank:30:2])
metric.compute()
metric.update(PIXELS[30 + rank::2])
found = metric.compute()
(folder / f"{rank}.parquet").write_bytes(encode_dna(found))
np.save(folder / f"{rank}.npy", [found.folds.read("a").get(k, found).images for k in range(16)])
for options in ({"bins": 8 + rank}, {"error_bars": rank == 0}):
    try:
        VisualDNA(**(place.options | options)).compute()
    except SpecMismatch as error:
        (folder / f"{rank}.{next(iter(options))}").write_text(str(error))
distributed.destroy_process_group()
"""


@pytest.mark.soak  # two more processes import torch, which takes seconds
def test_two_ranks_count_what_one_process_counts(
    tmp_path: Path, place: tiny_network.Place, expected: DNA
) -> None:
    (tmp_path / "network").mkdir()
    tiny_network.install(tmp_path / "network")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(tmp_path), str(rank)])
        for rank in range(2)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert expected.folds is not None
    held = expected.folds.read("a")
    sizes = [held[fold].images if fold in held else 40 for fold in range(16)]
    for rank in range(2):
        found = DnaFile((tmp_path / f"{rank}.parquet").read_bytes(), "dna", "rank").read()
        assert np.array_equal(found.counts, expected.counts)
        assert np.array_equal(found.min, expected.min)
        assert np.array_equal(found.max, expected.max)
        assert np.allclose(found.m2, expected.m2, rtol=1e-12)
        assert np.load(tmp_path / f"{rank}.npy").tolist() == sizes
        assert "bins: 8 against 9" in (tmp_path / f"{rank}.bins").read_text()
        assert "rank 0 keeps 16 folds and rank 1 1" in (tmp_path / f"{rank}.error_bars").read_text()
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()
