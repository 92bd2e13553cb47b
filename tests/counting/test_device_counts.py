"""Tests that a GPU's kernel counts as the CPU's does, with Triton's interpreter on a CPU.

No GPU runs in these tests. That the kernel compiles for real ones is tested, as that needs none.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.counting import DeviceRanges, LayerCounts, device_counts, tables_of_images
from pipeline.counting.device_counts import KERNELS, DeviceCounts, Kernel
from pipeline.counting.device_order import Mark
from pipeline.errors import UsageError
from tests.counting.test_histogram import activations, cases, oracle

Floats = NDArray[np.float64]
EVERY_KERNEL = pytest.mark.parametrize("kernel", sorted(KERNELS))
pytestmark = pytest.mark.filterwarnings(
    "ignore:.* encountered in:RuntimeWarning"  # NumPy, which the interpreter computes with
)


def counted(
    x: torch.Tensor, low: Floats, high: Floats, bins: int, kernel: Kernel
) -> tuple[DeviceCounts, Floats]:
    counts = DeviceCounts(DeviceRanges.on("cpu", low, high, bins), bins, kernel)
    means = torch.empty((len(x), len(low)), dtype=torch.float64)
    counts.add(x, slice(0, len(low)), means)
    return counts, means.numpy()


def mean_by_lanes(x: NDArray[np.float32]) -> Floats:
    """Returns the means (images, neurons), added in the order that the kernels state."""
    images, positions, neurons = x.shape
    block = min(1024, 1 << (positions - 1).bit_length())
    lanes = np.zeros((images, block, neurons))
    for start in range(0, positions, block):
        part = x[:, start : start + block].astype(np.float64)
        lanes[:, : part.shape[1]] += part
    while lanes.shape[1] > 1:
        lanes = lanes[:, 0::2] + lanes[:, 1::2]
    return np.asarray(lanes[:, 0] / positions)


@EVERY_KERNEL
@settings(max_examples=25)
@given(case=cases())
def test_a_device_counts_as_the_rule_says(
    kernel: Kernel, case: tuple[NDArray[np.float32], Floats, Floats, int]
) -> None:
    x, low, high, bins = case
    counts, means = counted(torch.from_numpy(x), low, high, bins, kernel)
    table, minimum, maximum = counts.read()
    on_cpu = LayerCounts(low, high, bins)
    with np.errstate(invalid="ignore"):
        on_cpu.add(x)
        expected = x.astype(np.float64).mean(axis=1)
    assert np.array_equal(table, oracle(x, low, high, bins))
    assert np.array_equal(minimum, on_cpu.minimum)
    assert np.array_equal(maximum, on_cpu.maximum)
    scale = np.abs(x).max(initial=1, where=np.isfinite(x))
    np.testing.assert_allclose(means, expected, rtol=1e-12, atol=1e-12 * scale)


@EVERY_KERNEL
@pytest.mark.parametrize("bins", [2, 29, 30, 1000, 1021, 1022, 2048, 4096])
def test_any_number_of_bins_is_counted(kernel: Kernel, bins: int) -> None:
    x = activations(bins, 2, 70, 3)
    x[0, 0], x[1, 69, 2] = np.nan, np.inf
    low, high = np.full(3, -1.5), np.array([0.5, 2.0, 6.0])
    counts, _ = counted(torch.from_numpy(x), low, high, bins, kernel)
    assert np.array_equal(counts.read()[0], oracle(x, low, high, bins))


@EVERY_KERNEL
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 5), (2, 7, 3), (1, 1025, 2), (2, 2500, 1)])
def test_any_number_of_images_positions_and_neurons_is_counted(
    kernel: Kernel, shape: tuple[int, int, int]
) -> None:
    x = activations(3, *shape)
    low, high = np.full(shape[2], -2.0), np.full(shape[2], 3.0)
    counts, _ = counted(torch.from_numpy(x), low, high, 20, kernel)
    assert np.array_equal(counts.read()[0], oracle(x, low, high, 20))


@EVERY_KERNEL
@pytest.mark.parametrize("positions", [1, 3, 49, 196, 1025, 2500])
def test_means_are_added_in_the_order_that_the_kernels_state(
    kernel: Kernel, positions: int
) -> None:
    x = activations(5, 3, positions, 4)
    # So far apart that float64 rounds their sums, and another order rounds them otherwise.
    scale = np.random.default_rng(positions).integers(-50, 50, x.shape)
    x = np.ldexp(x, scale).astype(np.float32)
    _, means = counted(torch.from_numpy(x), np.full(4, -1.0), np.ones(4), 20, kernel)
    assert means.tobytes() == mean_by_lanes(x).tobytes()
    if positions >= 49:
        assert means.tobytes() != x.astype(np.float64).mean(axis=1).tobytes()


@EVERY_KERNEL
@pytest.mark.parametrize("layout", ["channels_first", "tokens", "every_second", "one_token"])
def test_activations_are_counted_in_the_layout_that_the_network_gives(
    kernel: Kernel, layout: str
) -> None:
    whole = torch.from_numpy(activations(8, 4, 12, 6))
    x = {
        "channels_first": whole.permute(0, 2, 1).contiguous().permute(0, 2, 1),
        "tokens": whole,
        "every_second": whole[::2, ::3, ::2],
        "one_token": whole[:, :1],
    }[layout]
    low, high = np.full(x.shape[2], -1.0), np.full(x.shape[2], 2.0)
    counts, _ = counted(x, low, high, 16, kernel)
    assert np.array_equal(counts.read()[0], oracle(x.contiguous().numpy(), low, high, 16))


@EVERY_KERNEL
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_narrow_activations_are_widened_exactly(kernel: Kernel, kind: torch.dtype) -> None:
    x = torch.from_numpy(activations(9, 2, 40, 3)).to(kind)
    low, high = np.full(3, -1.0), np.full(3, 2.0)
    counts, _ = counted(x, low, high, 100, kernel)
    table, minimum, _ = counts.read()
    assert np.array_equal(table, oracle(x.float().numpy(), low, high, 100))
    assert minimum.tolist() == x.float().amin(dim=(0, 1)).tolist()


@EVERY_KERNEL
def test_layers_and_batches_add_up_in_one_table(kernel: Kernel) -> None:
    low, high = np.linspace(-2, -1, 5), np.linspace(1, 3, 5)
    counts = DeviceCounts(DeviceRanges.on("cpu", low, high, 50), 50, kernel)
    expected = np.zeros((5, 53), np.int64)
    for seed, neurons in ((1, slice(0, 2)), (2, slice(2, 5)), (3, slice(0, 2))):
        x = activations(seed, 3, 11, neurons.stop - neurons.start)
        means = torch.empty((3, 5), dtype=torch.float64)
        counts.add(torch.from_numpy(x), neurons, means[:, neurons])
        expected[neurons] += oracle(x, low[neurons], high[neurons], 50)
        np.testing.assert_allclose(means[:, neurons], x.astype(np.float64).mean(axis=1), rtol=1e-9)
    assert np.array_equal(counts.read()[0], expected)


class Log(TorchDispatchMode):
    """An order that notes what is done, and by which stream."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []
        self.stream = "compute"
        self.marks = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if (name := func.overloadpacket.__name__) == "copy_":
            self.done.append(f"{self.stream}: {name}")
        return func(*args, **(kwargs or {}))

    def mark(self) -> Any:
        self.marks += 1
        return SimpleNamespace(
            **{
                name: partial(self.note, name, self.marks)
                for name in Mark.__dict__
                if name[0] != "_"
            }
        )

    def note(self, name: str, mark: int) -> None:
        self.done.append(f"{self.stream}: {name} {mark}")

    @contextmanager
    def copying(self) -> Iterator[None]:
        self.stream = "copies"
        yield
        self.stream = "compute"


def test_tables_travel_beside_the_computation_and_are_waited_for_where_they_are_read() -> None:
    counts = DeviceCounts(DeviceRanges.on("cpu", np.zeros(1), np.ones(1), 2), 2)
    counts.add(torch.full((2, 3, 1), 0.5), slice(0, 1), torch.empty((2, 1), dtype=torch.float64))
    with Log() as order:
        wait = counts.sent(order)
        copies = ["copies: wait 1", *["copies: copy_"] * 3, "copies: record 2"]
        assert order.done == ["compute: record 1", *copies]
        found = wait()
    assert order.done[len(copies) + 1 :] == ["compute: synchronize 2"]
    assert all(map(np.array_equal, found, counts.read()))
    assert [each.dtype for each in found] == [np.int64, np.float32, np.float32]
    assert found[0].tolist() == [[0, 6, 0, 0, 0]]


@EVERY_KERNEL
def test_no_count_on_a_device_wraps_at_32_bits(kernel: Kernel) -> None:
    x = torch.full((2, 3, 1), 0.5)
    counts = DeviceCounts(DeviceRanges.on("cpu", np.zeros(1), np.ones(1), 2), 2, kernel)
    for start in (2**31 - 1, 2**32 - 1, 2**53):
        counts._table[:] = start
        counts.add(x, slice(0, 1), torch.empty((2, 1), dtype=torch.float64))
        assert counts.read()[0].tolist() == [[start, start + 6, start, start, start]]


def test_counting_by_torch_reads_nothing_of_the_device() -> None:
    """Tensors on `meta` have no values: an operation that needs one on the host is an error."""
    ranges = DeviceRanges.on("meta", np.zeros(5), np.ones(5), 10)
    counts = DeviceCounts(ranges, 10, "torch")
    x = torch.empty((4, 9, 5), device="meta")
    counts.add(x, slice(0, 5), torch.empty((4, 5), dtype=torch.float64, device="meta"))
    assert tables_of_images(x, ranges, 10, "torch").shape == (4, 5, 13)
    with pytest.raises(NotImplementedError, match="meta"):
        counts.read()


@EVERY_KERNEL
def test_each_image_may_have_a_table_of_its_own(kernel: Kernel) -> None:
    x = activations(4, 3, 30, 2)
    low, high = np.full(2, -1.0), np.full(2, 2.0)
    tables = tables_of_images(
        torch.from_numpy(x), DeviceRanges.on("cpu", low, high, 1500), 1500, kernel
    )
    expected = [oracle(image[None], low, high, 1500) for image in x]
    assert np.array_equal(tables.numpy(), expected)


@EVERY_KERNEL
def test_no_images_change_nothing(kernel: Kernel) -> None:
    counts, means = counted(torch.empty((0, 5, 2)), np.zeros(2), np.ones(2), 4, kernel)
    table, minimum, maximum = counts.read()
    assert means.shape == (0, 2)
    assert not table.any()
    assert minimum.tolist() == [np.inf] * 2
    assert maximum.tolist() == [-np.inf] * 2


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3), torch.zeros(2, 3, 5), torch.zeros(2, 0, 4), torch.zeros(2, 3, 4).int()]
)
def test_a_device_refuses_bad_activations(x: torch.Tensor) -> None:
    ranges = DeviceRanges.on("cpu", np.zeros(4), np.ones(4), 10)
    with pytest.raises(UsageError, match="activations"):
        DeviceCounts(ranges, 10).add(x, slice(0, 4), torch.empty((2, 4), dtype=torch.float64))
    with pytest.raises(UsageError, match="activations"):
        tables_of_images(x, ranges, 10)


def test_a_device_refuses_bad_ranges() -> None:
    with pytest.raises(UsageError, match="neuron 1 has the range"):
        DeviceRanges.on("cpu", np.array([0.0, np.nan]), np.ones(2), 10)


COMPILES = """
import json, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pipeline.counting.histogram_kernel import count_activations as kernel

numbers = {"images": "i32", "positions": "i32", "group_images": "i32",
           "image_stride": "i64", "position_stride": "i64", "neuron_stride": "i64",
           "group_stride": "i64", "means_stride": "i64"}
wide = {"table": "*i64", "minimum": "*fp32", "maximum": "*fp32"}
found = []
for architecture, activations, block, window in json.loads(sys.argv[1]):
    constants = {"BINS": window - 24, "BLOCK": block, "WINDOW": window}
    types = {name: numbers.get(name) or wide.get(name) or "*fp64" for name in kernel.arg_names}
    types |= {"activations": activations} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    made = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"enable_fp_fusion": False}
    )
    found.append([len(made.asm["cubin"]), made.asm["ptx"]])
print(json.dumps(found))
"""


def test_the_kernel_compiles_for_gpus_with_the_rounding_of_the_rule(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET")
    ways = [(80, "*fp32", 1024, 1024), (90, "*bf16", 256, 1024), (90, "*fp32", 1, 32)]
    done = subprocess.run(
        [sys.executable, "-c", COMPILES, json.dumps(ways)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for size, code in json.loads(done.stdout):
        assert size > 0
        assert "div.rn.f64" in code
        assert "fma.rn.f64" not in code  # a product and a sum that are rounded once
        assert ".ftz" not in code  # small numbers taken for zero
        # Threads share the sums of a mean: each of them adding up all lanes takes a thousand.
        assert code.count("add.f64") + code.count("add.rn.f64") < 100


def test_a_launch_has_programs_for_a_large_gpu_if_it_has_the_images() -> None:
    share = device_counts._images_a_program
    assert share(64, 49, 192) == 64 * 192 // device_counts.LEAST_PROGRAMS
    assert share(64, 112 * 112, 32) == 1
    assert share(64, 196, 4096) == 8192 // 196
    assert share(3, 49, 8) == 1


@pytest.mark.parametrize("programs", [1, 40, 10**9])
def test_counts_do_not_depend_on_how_images_are_shared_among_programs(
    monkeypatch: pytest.MonkeyPatch, programs: int
) -> None:
    x = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (7, 5, 12)).astype(np.float32))
    ranges = DeviceRanges.on("cpu", np.full(12, -1.0), np.full(12, 1.5), 10)
    monkeypatch.setattr(device_counts, "LEAST_PROGRAMS", programs)
    found = []
    for kernel in ("triton", "torch"):
        counts, means = DeviceCounts(ranges, 10, kernel), torch.empty((7, 12), dtype=torch.float64)
        counts.add(x, slice(0, 12), means)
        found.append([*counts.read(), means.numpy()])
    for by_triton, by_torch in zip(*found, strict=True):
        np.testing.assert_array_equal(by_triton, by_torch)


@pytest.mark.parametrize("named", ["", "/opt/cc"])
def test_a_machine_without_a_compiler_is_told_before_anything_is_counted(
    monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", named)
    refused = pytest.raises(UsageError, match=r"no C compiler on .*apt-get install gcc libc6-dev")
    with nullcontext() if named else refused:
        device_counts.require_compiler()


def test_cuda_is_counted_by_triton_where_it_is_installed_and_all_else_by_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choose = device_counts.default_kernel.__wrapped__  # without its memory
    for installed, kernel in ((object(), "triton"), (None, "torch")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=installed: found)
        assert choose("cuda") == kernel
        assert choose("cpu") == "torch"
