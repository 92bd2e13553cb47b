"""Finishes counted datasets in threads, so that several are summed up and committed at a time.

    >>> with Finishers(engine, finish) as finishers:                          # doctest: +SKIP
    ...     finishers.begin(counted)

Mostly a thread waits for the store. What it does for one dataset is the same as if it were alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from types import TracebackType

from pipeline.building.plan_counting import CountedDataset
from pipeline.counting import expected_bytes
from pipeline.engine import Engine
from pipeline.events import Listener, Started, StepDone, about, stage
from pipeline.mapper import Mapper, SerialMapper
from pipeline.spec import FOLDS

FINISHED_AT_ONCE = 4
"""How many datasets are finished at a time."""

LARGE_BYTES = 2**28
"""Datasets whose folds take more memory are finished one after the other."""

SHARDS_ALONE = 64
"""A dataset of more shards, or one with parts, is summed up by workers, even if none has run."""


class Finishers:
    """Threads that finish datasets.

    Leaving the block waits for those that have begun. An exception in the block keeps others from
    beginning.

    Attributes:
        begun: The names of the datasets that were given to a thread.

    Args:
        engine: What workers there are.
        finish: Sums a dataset up where it is told to, and commits it. It raises nothing.
    """

    def __init__(self, engine: Engine, finish: Callable[[CountedDataset, Mapper], None]) -> None:
        self.begun: set[str] = set()
        self._early: list[Future[None]] = []
        self._engine = engine
        self._finish = finish
        self._pool = ThreadPoolExecutor(FINISHED_AT_ONCE, "finish")
        self._large = threading.Lock()

    def __enter__(self) -> Finishers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            for future in self._early:
                future.result()

    def begin(self, counted: CountedDataset) -> None:
        """Begins to finish a dataset while shards of others run.

        Args:
            counted: The dataset.
        """
        self._early.append(self._submit(counted, self._engine.beside_shards))

    def finish(self, left: Sequence[CountedDataset], progress: Listener) -> None:
        """Finishes the last datasets, when no shard runs any more.

        Args:
            left: The datasets.
            progress: Is told of each, if there are several.
        """
        mapper: Mapper = SerialMapper()
        if any(_takes_workers(of) for of in left):
            mapper = self._engine
            _ = mapper.workers  # opened by this thread, if it was not yet
        commits = Started(len(left), len(left), unit="datasets", step="datasets")
        with stage(progress, commits) if len(left) > 1 else nullcontext():
            begun = {self._submit(of, lambda: mapper): of.plan.request.name for of in left}
            for future in as_completed(begun):
                future.result()
                if len(left) > 1:
                    progress(StepDone(1, name=begun[future]))

    def _submit(self, counted: CountedDataset, mapper: Callable[[], Mapper]) -> Future[None]:
        self.begun.add(counted.plan.request.name)
        return self._pool.submit(self._run, counted, mapper)

    def _run(self, counted: CountedDataset, mapper: Callable[[], Mapper]) -> None:
        recipe = counted.plan.job.recipe
        with_folds = FOLDS * expected_bytes(recipe.spec, recipe.products)
        large = self._large if with_folds > LARGE_BYTES else nullcontext()
        with about(dataset=counted.plan.request.name), large:
            self._finish(counted, mapper())


def _takes_workers(counted: CountedDataset) -> bool:
    """Tells whether a dataset is worth the start of workers, or has used them already."""
    plan = counted.plan
    if plan.up_to_date:
        return False
    return bool(counted.ran.shards or plan.parts or len(plan.manifest.heads) > SHARDS_ALONE)
