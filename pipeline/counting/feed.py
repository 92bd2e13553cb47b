"""Makes the network's input on the GPU that computes it.

    >>> feed = Feed(torch.device("cuda"), rule)                               # doctest: +SKIP
    >>> extractor.observe(feed([image.values for image in loaded]), visit)    # doctest: +SKIP

What travels are grey levels, mostly uint8 (`images.sending`). A micro-batch is packed into pinned
memory and copied on a stream of its own, while the GPU computes the one before. There it is resized
to the network's size, with the coefficients of the CPU's kernel, and normalised.

Each image is resized by itself, so that its input does not depend on its neighbours.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.counting.device_order import Order, order_of
from pipeline.spec import Preprocess

if TYPE_CHECKING:
    import torch

Prepared: TypeAlias = "NDArray[np.float32] | torch.Tensor"
"""Normalised images, float32 (B, height, width, 3). A tensor on a GPU may not be ready yet."""

SLOTS = 2
"""Micro-batches that have memory: the GPU computes one, and the next travels."""

MATRIX_BYTES = 256 * 2**20
"""How much of the GPU's memory the matrices of the latest sizes may take."""

ALIGNMENT = 512
"""Where in memory an image may begin: any of these bytes, as what CUDA allocates."""

GREY = 128
"""Sums about mid-grey stay small, and float32 rounds small ones more finely."""


class _Slot:
    """Memory of a micro-batch, on the host and on the device.

    Attributes:
        host: Bytes, pinned if the device is a GPU.
        there: As many bytes on the device.
        copied: Ends the copy of `host` to `there`.
        read: Ends what the device reads from `there`.
    """

    def __init__(self, device: torch.device, order: Order) -> None:
        self._device = device
        self.copied, self.read = order.mark(), order.mark()
        self.grow(ALIGNMENT)

    def grow(self, size: int) -> None:
        """Makes room; no copy may be under way."""
        import torch

        room = 1 << (size - 1).bit_length()
        self.host = torch.empty(room, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        self.there = torch.empty(room, dtype=torch.uint8, device=self._device)
        # What the device was given before may still use this memory, which the allocator reuses.
        self.read.record()


class Feed:
    """Holds a ring of slots and the matrices of sizes; one thread at a time may use it."""

    def __init__(self, device: torch.device, rule: Preprocess, order: Order | None = None) -> None:
        """Makes the slots, which grow as they are used.

        Args:
            device: The device that computes the network.
            rule: The size of its input, and how it is normalised.
            order: How copies and computation are put in order; None takes what the device has.
        """
        import torch

        self._device = device
        self._size = rule.height, rule.width
        self._order = order or order_of(device)
        self._slots = [_Slot(device, self._order) for _ in range(SLOTS)]
        scale, shift = images.normalisation(rule)
        self._scale = torch.from_numpy(scale).to(device)
        self._shift = torch.from_numpy(shift).to(device)
        self._matrices: OrderedDict[tuple[int, int], torch.Tensor] = OrderedDict()

    def __call__(self, levels: Sequence[NDArray[Any]]) -> torch.Tensor:
        """Sends a micro-batch on its way; on a GPU this returns before it is there.

        Args:
            levels: `Loaded.values` of each image.

        Returns:
            The network's input, float32 (B, height, width, 3), on the device. The current stream
            computes it.
        """
        import torch

        ends = list(accumulate(-(-image.nbytes // ALIGNMENT) * ALIGNMENT for image in levels))
        starts = [0, *ends[:-1]]
        slot = self._slots[0]
        slot.copied.synchronize()  # the last copy from its pinned memory
        if ends[-1] > len(slot.host):
            slot.grow(ends[-1])
        packed = slot.host.numpy()
        for start, image in zip(starts, levels, strict=True):
            packed[start : start + image.nbytes] = image.reshape(-1).view(np.uint8)
        with self._order.copying():
            slot.read.wait()
            slot.there[: ends[-1]].copy_(slot.host[: ends[-1]], non_blocking=True)
            slot.copied.record()
        self._slots.append(self._slots.pop(0))
        slot.copied.wait()
        batch = torch.empty((len(levels), *self._size, 3), device=self._device)
        try:
            for at, (start, image) in enumerate(zip(starts, levels, strict=True)):
                there = slot.there[start : start + image.nbytes]
                kind = torch.float32 if image.dtype == np.float32 else torch.uint8
                batch[at] = self._resized(there.view(kind).view(image.shape))
        finally:
            slot.read.record()
        return batch.mul_(self._scale).add_(self._shift)

    def _resized(self, image: torch.Tensor) -> torch.Tensor:
        """Returns grey levels in the network's size, by `clean`; see `resize` on the CPU."""
        import torch

        (height, width, _), (to_height, to_width) = image.shape, self._size
        if (height, width) == self._size:
            return image
        about_grey = image.to(torch.float32).sub_(GREY).view(height, width * 3)
        rows = self._matrix(height, to_height) @ about_grey
        columns = rows.view(to_height, width, 3).transpose(0, 1).reshape(width, to_height * 3)
        resized = (self._matrix(width, to_width) @ columns).clamp_(-GREY, 255 - GREY).add_(GREY)
        return resized.view(to_width, to_height, 3).transpose(0, 1)

    def _matrix(self, n_in: int, n_out: int) -> torch.Tensor:
        """Returns a matrix of `resize_matrix` on the device; the latest are kept."""
        import torch

        size = n_in, n_out
        if size not in self._matrices:
            made = torch.from_numpy(images.resize_matrix(n_in, n_out))
            if self._device.type == "cuda":  # a copy of memory that is not pinned waits for the GPU
                made = made.pin_memory()
            held = sum(each.nbytes for each in self._matrices.values())
            while self._matrices and held + made.nbytes > MATRIX_BYTES:
                held -= self._matrices.popitem(last=False)[1].nbytes
            self._matrices[size] = made.to(self._device, non_blocking=True)
        self._matrices.move_to_end(size)
        return self._matrices[size]
