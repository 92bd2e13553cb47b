"""Tests of what a worker keeps between the shards that it counts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.counting import Worker, worker


class FakeEntries:
    """Has for each head that very head as its shard."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def shard(self, head: Any) -> Any:
        return head


def test_shards_that_begin_together_read_their_manifest_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    together = Barrier(2)

    def read_manifest(uri: str) -> str:
        read.append(uri)
        try:  # waits for another reader, which must not come
            together.wait(0.3)
        except BrokenBarrierError:
            together.reset()
        return uri

    monkeypatch.setattr(worker, "_read_manifest", read_manifest)
    monkeypatch.setattr(worker, "head_at", lambda manifest, index: (manifest, index))
    monkeypatch.setattr(worker, "Entries", FakeEntries)
    some = Worker()
    jobs = [SimpleNamespace(manifest_uri=uri, entries_uri="entries") for uri in ("one", "two")]
    try:
        for job in jobs:
            with ThreadPoolExecutor(2) as pool:
                shards = list(pool.map(lambda index, job=job: some._shard(job, index), range(2)))
            assert shards == [(job.manifest_uri, 0), (job.manifest_uri, 1)]
    finally:
        some.close()
    assert read == ["one", "two"]
