"""Puts copies between a device and the host in order with what the device computes.

    >>> order = order_of(torch.device("cuda"))                               # doctest: +SKIP
    >>> done = order.mark()                                                  # doctest: +SKIP
    >>> with order.copying():                                                # doctest: +SKIP
    ...     host.copy_(there, non_blocking=True)
    ...     done.record()

Copies go through a stream of their own, so that they do not wait for what is computed, nor it for
them, unless a mark says so.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


def order_of(device: torch.device) -> Order:
    """Makes the order of a device, with a stream of copies of its own.

    Args:
        device: The device.

    Returns:
        The order.
    """
    return _CudaOrder(device) if device.type == "cuda" else _InOrder()


def device_here(kind: str) -> torch.device:
    """Returns the device of a kind, `cpu` or `cuda`, that this thread computes on.

    Each thread has a current GPU of its own, which is the first one unless `make_current` is called
    in it.
    """
    import torch

    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def make_current(device: torch.device) -> None:
    """Has this thread compute on a device."""
    import torch

    if device.type == "cuda":
        torch.cuda.set_device(device)


class Mark(Protocol):
    """A place in a stream, as `torch.cuda.Event` is."""

    def record(self) -> None:
        """Marks the end of what the current stream has been given so far."""

    def wait(self) -> None:
        """Makes the current stream wait for the mark. The caller goes on."""

    def synchronize(self) -> None:
        """Waits for the mark."""


class Order(Protocol):
    """How work on a device is put in order."""

    def mark(self) -> Mark:
        """Makes a mark; nobody waits for one that was never recorded."""

    def copying(self) -> AbstractContextManager[Any]:
        """Makes the stream of copies the current one."""


class _CudaOrder:
    def __init__(self, device: torch.device) -> None:
        import torch

        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no type

    def mark(self) -> Mark:
        import torch

        # While a thread waits, others have its core.
        made: Mark = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # as above
        return made

    def copying(self) -> AbstractContextManager[Any]:
        import torch

        return torch.cuda.stream(self._copies)


class _InOrder:
    """A CPU ends one thing before it begins the next."""

    def mark(self) -> Mark:
        return self

    def copying(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def record(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass
