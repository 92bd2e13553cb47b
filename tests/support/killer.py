"""Kills a build in this process at a write to storage."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pipeline import storage

Killer = Callable[[int | None, bool], list[str]]


class Killed(BaseException):
    """Ends a build as a SIGKILL does: no handler of ours catches it."""


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    """Returns a function that counts writes to storage, and dies before or after the given one."""
    originals = {name: getattr(storage, name) for name in ("create", "replace")}

    def arm(at: int | None, after: bool = False) -> list[str]:
        writes: list[str] = []
        lock = threading.Lock()

        def wrap(name: str) -> Callable[[str, bytes], object]:
            def write(uri: str, data: bytes) -> object:
                with lock:
                    writes.append(uri)
                    mine = len(writes)
                if at is not None and mine == at and not after:
                    raise Killed
                done = originals[name](uri, data)
                if at is not None and mine >= at:
                    raise Killed
                return done

            return write

        for name in originals:
            monkeypatch.setattr(storage, name, wrap(name))
        return writes

    return arm
