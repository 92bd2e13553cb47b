"""Counts the requests that a process sends to stores, and those that its workers tell it of.

    >>> meter = RequestMeter()
    >>> count_requests(2)
    >>> meter.read(), meter.read()
    (2, 0)

Each try is a request. Local files take none.
"""

from __future__ import annotations

import threading

_LOCK = threading.Lock()

_sent = 0


def count_requests(more: int = 1) -> None:
    """Counts requests.

    Args:
        more: How many were sent, by this process or by a worker that has told it.
    """
    global _sent
    with _LOCK:
        _sent += more


def requests_sent() -> int:
    """Returns how many requests were counted since this process began."""
    return _sent


class RequestMeter:
    """Tells how many requests were counted since it was made or read; for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read = requests_sent()

    def read(self) -> int:
        """Returns how many there were since it was read last."""
        with self._lock:
            before, self._read = self._read, requests_sent()
            return self._read - before
