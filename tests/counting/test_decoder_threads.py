"""Tests the threads that decode, and what becomes of images once they have ended."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

import pytest

from pipeline.counting.decoder_threads import Decoders


@pytest.mark.parametrize("fetch_ends", ["before", "after", "cancelled"])
def test_what_comes_once_the_threads_have_ended_is_cancelled(fetch_ends: str) -> None:
    """Nobody would take it, and a shard that waited for it would keep the process from ending."""
    decoders = Decoders(2)
    fetched: Future[int] = Future()
    if fetch_ends == "before":
        fetched.set_result(1)
        decoders.close()
    decoded = decoders.after(fetched, lambda value: value + 1)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            decoders.result(decoded)
        except CancelledError as error:
            raised.append(error)

    shard = threading.Thread(target=wait, daemon=True)
    shard.start()
    if fetch_ends != "before":
        decoders.close()
        fetched.set_result(1) if fetch_ends == "after" else fetched.cancel()
    shard.join(10)
    assert len(raised) == 1


def test_what_is_there_before_the_threads_end_is_decoded() -> None:
    decoders = Decoders(1)
    fetched: Future[int] = Future()
    fetched.set_result(1)
    decoded = [decoders.after(fetched, lambda value, more=more: value + more) for more in range(9)]
    decoders.close()
    assert [decoders.result(each) for each in decoded] == list(range(1, 10))
