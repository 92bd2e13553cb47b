"""An engine that is opened when there is work for it, and not before.

    >>> with OnDemand(lambda: RayEngine(resources), resources) as engine:      # doctest: +SKIP
    ...     build_datasets(catalogue, requests, engine)

Ray takes seconds to start. Mostly nothing is new, and then nothing is counted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TypeVar

from pipeline.counting import ShardJob, ShardReceipt
from pipeline.engine.protocol import Engine
from pipeline.mapper import Mapper, NotOpened, SerialMapper
from pipeline.spec import Resources

T = TypeVar("T")
R = TypeVar("R")


class OnDemand:
    """Opens an engine of other processes at its first work, and closes it at the end.

    The main thread alone opens it, as Ray sets handlers of signals. Another thread that would need
    it opened gets a `NotOpened`.

    Args:
        opened: Opens the engine.
        resources: What it is opened with.
    """

    in_process = False

    def __init__(
        self, opened: Callable[[], AbstractContextManager[Engine]], resources: Resources
    ) -> None:
        self.resources = resources
        self._opened = opened
        self._engine: Engine | None = None
        self._stack = ExitStack()

    def __enter__(self) -> OnDemand:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    @property
    def shard_workers(self) -> int:
        """How many workers can have shards at a time now."""
        return self._open().shard_workers

    def run_shards(self, work: Sequence[tuple[ShardJob, int]]) -> Iterator[ShardReceipt]:
        """Runs shards (see `Engine`)."""
        return self._open().run_shards(work)

    def map(
        self, function: Callable[[T], R], items: Sequence[T], *, memory: int = 0
    ) -> Iterator[R]:
        """Calls a function on each item (see `Mapper`)."""
        return self._open().map(function, items, memory=memory)

    @property
    def workers(self) -> int:
        """How many functions run at a time."""
        return self._open().workers

    def beside_shards(self) -> Mapper:
        """Returns what can map functions while shards run: this process, until there are any."""
        return SerialMapper() if self._engine is None else self._engine.beside_shards()

    def _open(self) -> Engine:
        if self._engine is None:
            if threading.current_thread() is not threading.main_thread():
                raise NotOpened
            self._engine = self._stack.enter_context(self._opened())
        return self._engine
