"""Chooses how many images a network sees at a time, which is part of the numerics.

>>> of_memory(16 * 2**30, 30 * 2**20), of_memory(6 * 2**30, 30 * 2**20)
(128, 32)
"""

from __future__ import annotations

from pipeline.networks import Network

MICRO_BATCH = {"cpu": 8, "cuda": 64}
"""Images per forward pass, if nothing else is chosen. oneDNN and cuDNN pick kernels by shape."""

LEAST_BATCH, MOST_BATCH = 8, 128
"""The bounds of what is chosen by a GPU's memory. With more images, what travels to the GPU would
take gigabytes of pinned memory; with fewer, a large GPU would be idle."""

MEMORY_SHARE = 4
"""A forward pass may take one part in so many of a GPU. The rest is for weights, images that
travel, tables of counts, and the workspaces of libraries."""

INSIDE = 16
"""How many times its largest tap a network may hold inside a block, beside the taps themselves. Of
thirteen networks none held more than 14 times (decisions/0011)."""

FLOAT_BYTES = 4


def bytes_per_image(network: Network) -> int:
    """Returns what a forward pass in float32 holds of an image at most, all taps included.

    Args:
        network: The network.

    Returns:
        An upper estimate of bytes, by the shapes alone. It is the same on every machine.
    """
    taps = [tap.neurons * tap.positions for tap in network.taps]
    return FLOAT_BYTES * (3 * network.height * network.width + sum(taps) + INSIDE * max(taps))


def of_memory(memory: int, per_image: int) -> int:
    """Chooses by a GPU's memory.

    Args:
        memory: The bytes of the GPU, or of a worker's share of it.
        per_image: The bytes that an image takes, as `bytes_per_image` says.

    Returns:
        A power of two within bounds, so that GPUs of nearly the same memory get the same.
    """
    fitting = max(1, memory // (MEMORY_SHARE * per_image))
    return min(MOST_BATCH, max(LEAST_BATCH, 1 << (fitting.bit_length() - 1)))
