"""Counts activations on the device that computes them, until a shard or a cell of it ends.

    >>> on_gpu = DeviceRanges.on("cuda", ranges.low, ranges.high, 1000)           # doctest: +SKIP
    >>> counts = DeviceCounts(on_gpu, 1000)                                       # doctest: +SKIP
    >>> counts.add(activations, slice(0, 768), means[:, 0:768])  # returns at once  # doctest: +SKIP
    >>> table, minimum, maximum = counts.sent(order)()                            # doctest: +SKIP

The counting rule is that of `histogram`, to the last count. The tables stay on the device: nothing
is copied, and nobody waits for the device, before `read` or `sent`. Counts are int64, so that none
can wrap. On CUDA with Triton, a layer is counted by one launch of a kernel; elsewhere by the
operations of torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

from pipeline.counting.bin_vectors import NONFINITE, OVERFLOW, UNDERFLOW
from pipeline.counting.device_order import Order
from pipeline.counting.histogram import Counted, checked_ranges, scale_of
from pipeline.dna import Floats
from pipeline.errors import UsageError

if TYPE_CHECKING:
    import torch

Kernel = Literal["triton", "torch"]

GROUP_ACTIVATIONS = 8192
"""How many activations of a neuron one program of the kernel counts at most, in whole images. With
fewer, programs would add to the table more often. It was computed, not measured."""

LEAST_PROGRAMS = 2048
"""How many programs a launch has at least, if it has the images for them: a layer of few positions
would else be counted by fewer than a large GPU runs at a time. It was computed, not measured."""

MAX_BLOCK, MAX_WINDOW = 1024, 1024
"""The most positions that are read at a time, and the most columns that are counted at a time. A
range of 1,000 bins takes one pass, with underflow, overflow and non-finite; more than 1,021 bins
take several."""

MIN_WINDOW = 32

FALLBACK_ACTIVATIONS = 2**24
"""How many activations torch's operations take at a time, in whole images: 128 MiB of float64."""


@dataclass(frozen=True, eq=False)
class DeviceRanges:
    """What the rule needs of each neuron's range, on a device; see `histogram.scale_of`.

    Attributes:
        least: The lowest value in range, float64 (neurons,).
        most: The highest value in range.
        centre: The centre.
        half: The half-width.
    """

    least: torch.Tensor
    most: torch.Tensor
    centre: torch.Tensor
    half: torch.Tensor

    @classmethod
    def on(cls, device: torch.device | str, low: Floats, high: Floats, bins: int) -> DeviceRanges:
        """Copies ranges to a device.

        Args:
            device: The device. It must have float64 (CUDA has, MPS has not).
            low: The lower end of each neuron's range, float64 (neurons,).
            high: The upper end.
            bins: How many bins a range is divided into.

        Returns:
            The ranges.

        Raises:
            UsageError: If a range is not finite or ends below its start, or bins are too few or too
                many.
        """
        import torch

        scale = scale_of(*checked_ranges(low, high, bins))
        return cls(*(torch.from_numpy(part).to(device) for part in scale))

    def __getitem__(self, neurons: slice) -> DeviceRanges:
        return DeviceRanges(
            self.least[neurons], self.most[neurons], self.centre[neurons], self.half[neurons]
        )


class DeviceCounts:
    """Counts of all layers on one device.

    Several threads may add if they use one CUDA stream. On a CPU only one thread may.
    """

    def __init__(self, ranges: DeviceRanges, bins: int, kernel: Kernel | None = None) -> None:
        """Starts at zero.

        Args:
            ranges: The ranges of all neurons.
            bins: How many bins a range is divided into.
            kernel: What counts; None takes what `default_kernel` says.
        """
        import torch

        device, neurons = ranges.least.device, len(ranges.least)
        self._ranges = ranges
        self._bins = bins
        self._count = KERNELS[kernel or default_kernel(device.type)]
        self._table = torch.zeros((neurons, bins + 3), dtype=torch.int64, device=device)
        self._minimum = torch.full((neurons,), torch.inf, device=device)
        self._maximum = torch.full((neurons,), -torch.inf, device=device)

    def add(self, x: torch.Tensor, neurons: slice, means: torch.Tensor) -> None:
        """Counts activations of a layer. On CUDA this returns before they are counted.

        Args:
            x: (images, positions, layer's neurons), float32 or narrower, in any layout.
            neurons: The place of the layer among all neurons.
            means: float64 (images, layer's neurons), neurons side by side. Each image's mean over
                positions is written to it. It is not finite if an activation is not.

        Raises:
            UsageError: If the activations have another shape or type.
        """
        ranges = self._ranges[neurons]
        _check(x, len(ranges.least))
        self._count(
            x,
            ranges,
            self._bins,
            self._table[neurons][None],
            self._minimum[neurons],
            self._maximum[neurons],
            means,
        )

    def sent(self, order: Order) -> Callable[[], Counted]:
        """Starts to copy what was counted to pinned memory; nothing may be added any more.

        Args:
            order: How copies and computation are put in order. What is computed meanwhile does not
                wait for the copy.

        Returns:
            Waits for the copy, in any thread, and returns what `read` does. The tables stay on the
            device until it is dropped.
        """
        import torch

        tables = self._table, self._minimum, self._maximum
        pinned = self._table.device.type == "cuda"
        copies = [
            (torch.empty(there.shape, dtype=there.dtype, pin_memory=pinned), there)
            for there in tables
        ]
        counted, copied = order.mark(), order.mark()
        counted.record()
        with order.copying():
            counted.wait()
            for here, there in copies:
                here.copy_(there, non_blocking=True)
            copied.record()

        def wait() -> Counted:
            """Holds the tables, too, so that nothing else takes their memory before."""
            copied.synchronize()
            table, minimum, maximum = (here.numpy() for here, _ in copies)
            return table, minimum, maximum

        return wait

    def read(self) -> Counted:
        """Waits for the device, and copies what it has counted.

        Returns:
            The table, int64 (neurons, bins + 3), as `LayerCounts` has it; minimum and maximum,
            float32 (neurons,).
        """
        return (
            self._table.cpu().numpy(),
            self._minimum.cpu().numpy(),
            self._maximum.cpu().numpy(),
        )


def tables_of_images(
    x: torch.Tensor, ranges: DeviceRanges, bins: int, kernel: Kernel | None = None
) -> torch.Tensor:
    """Counts each image on its own, on the device of the activations.

    Args:
        x: (images, positions, neurons), float32 or narrower, in any layout.
        ranges: The neurons' ranges, on the same device.
        bins: How many bins a range is divided into.
        kernel: What counts; None takes what `default_kernel` says.

    Returns:
        int64 (images, neurons, bins + 3): the bins, then underflow, overflow and non-finite.

    Raises:
        UsageError: If the activations have another shape or type.
    """
    import torch

    neurons = len(ranges.least)
    _check(x, neurons)
    table = torch.zeros((len(x), neurons, bins + 3), dtype=torch.int64, device=x.device)
    minimum = torch.full((neurons,), torch.inf, device=x.device)
    means = torch.empty((len(x), neurons), dtype=torch.float64, device=x.device)
    count = KERNELS[kernel or default_kernel(x.device.type)]
    count(x, ranges, bins, table, minimum, -minimum, means)
    return table


@functools.cache
def default_kernel(device: str) -> Kernel:
    """Returns `triton` on CUDA if it is installed, and else `torch`."""
    return "triton" if device == "cuda" and importlib.util.find_spec("triton") else "torch"


def require_compiler() -> None:
    """Checks that Triton can compile what starts its kernels, which it does in C.

    Raises:
        UsageError: There is no C compiler. Counting would find that out at its first shard.
    """
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise UsageError(
            f"there is no C compiler on {socket.gethostname()}, and Triton needs one to start what "
            "counts on a GPU; install gcc and its C library there (apt-get install gcc libc6-dev), "
            "or name a compiler in the environment variable CC"
        )


def _check(x: torch.Tensor, neurons: int) -> None:
    import torch

    narrow = (torch.float32, torch.bfloat16, torch.float16)
    if x.dim() != 3 or x.shape[1] == 0 or x.shape[2] != neurons or x.dtype not in narrow:
        raise UsageError(
            f"activations are {x.dtype} of shape {tuple(x.shape)}; expected float32, bfloat16 or "
            f"float16 of shape (images, positions, {neurons})"
        )


def _count_by_triton(
    x: torch.Tensor,
    ranges: DeviceRanges,
    bins: int,
    table: torch.Tensor,
    minimum: torch.Tensor,
    maximum: torch.Tensor,
    means: torch.Tensor,
) -> None:
    """Adds to `table`, int64 (1 or images, neurons, bins + 3): one for all images, or one each."""
    from pipeline.counting.histogram_kernel import count_activations

    images, positions, neurons = x.shape
    if images == 0:
        return
    each = len(table) > 1
    group = 1 if each else _images_a_program(images, positions, neurons)
    window = min(MAX_WINDOW, max(MIN_WINDOW, _power_of_two(bins + 3)))
    grid = (neurons, ceil(images / group), ceil((bins + 3) / window))
    options: dict[str, Any] = {"enable_fp_fusion": False}  # each operation is rounded once
    count_activations[grid](
        x,
        ranges.least,
        ranges.most,
        ranges.centre,
        ranges.half,
        table,
        minimum,
        maximum,
        means,
        images,
        positions,
        group,
        *x.stride(),
        table.stride(0) if each else 0,
        means.stride(0),
        BINS=bins,
        BLOCK=_lanes(positions),
        WINDOW=window,
        **options,
    )


def _images_a_program(images: int, positions: int, neurons: int) -> int:
    by_activations = GROUP_ACTIVATIONS // positions
    by_programs = images * neurons // LEAST_PROGRAMS
    return max(1, min(by_activations, by_programs))


def _power_of_two(least: int) -> int:
    """Returns the smallest power of two that is not below a positive number."""
    return 1 << (least - 1).bit_length()


def _count_by_torch(
    x: torch.Tensor,
    ranges: DeviceRanges,
    bins: int,
    table: torch.Tensor,
    minimum: torch.Tensor,
    maximum: torch.Tensor,
    means: torch.Tensor,
) -> None:
    """Does what `_count_by_triton` does, to the last bit of the means."""
    import torch

    images, positions, neurons = x.shape
    columns = bins + 3
    first = torch.arange(neurons, device=x.device) * columns
    step = max(1, FALLBACK_ACTIVATIONS // (positions * neurons))
    for start in range(0, images, step):
        part = x[start : start + step].float()
        wide = part.double()
        means[start : start + step] = _means_by_lanes(wide)
        finite = part.isfinite()
        for extreme, nothing, pick in (
            (minimum, torch.inf, torch.minimum),
            (maximum, -torch.inf, torch.maximum),
        ):
            seen = torch.where(finite, part, nothing)
            ends = seen.amin(dim=(0, 1)) if pick is torch.minimum else seen.amax(dim=(0, 1))
            pick(extreme, ends, out=extreme)
        at = ((wide - ranges.centre) / ranges.half).nan_to_num(0.0).clamp(-1.0, 1.0)
        at = ((at + 1.0) * bins * 0.5).clamp(max=bins - 1).long()
        at = torch.where(wide < ranges.least, bins + UNDERFLOW, at)
        at = torch.where(wide > ranges.most, bins + OVERFLOW, at)
        at = torch.where(finite, at, bins + NONFINITE) + first
        if len(table) > 1:
            image = torch.arange(start, start + len(part), device=x.device)
            at += (image * neurons * columns)[:, None, None]
        at = at.flatten()
        table.view(-1).scatter_add_(0, at, torch.ones_like(at))


def _means_by_lanes(x: torch.Tensor) -> torch.Tensor:
    """Adds positions in the order that `count_activations` states, whatever device this is.

    Args:
        x: Activations, float64 (images, positions, neurons).

    Returns:
        The means, float64 (images, neurons).
    """
    images, positions, neurons = x.shape
    lanes = _lanes(positions)
    total = x.new_zeros((images, lanes, neurons))
    for start in range(0, positions, lanes):
        part = x[:, start : start + lanes]
        total[:, : part.shape[1]] += part
    while total.shape[1] > 1:
        total = total[:, 0::2] + total[:, 1::2]
    # CUDA would multiply by the reciprocal of a number that it is given by the host.
    return total[:, 0] / x.new_full((), positions)


def _lanes(positions: int) -> int:
    """Returns how many positions are added beside each other; see `count_activations`."""
    return min(MAX_BLOCK, _power_of_two(positions))


KERNELS: Mapping[Kernel, Callable[..., None]] = {
    "triton": _count_by_triton,
    "torch": _count_by_torch,
}
