"""The actor that counts shards on Ray."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from pipeline import counting
from pipeline.counting import (
    DEVICE_FAULTS,
    Ahead,
    Recipe,
    ShardJob,
    ShardReceipt,
    Worker,
    collect_rarely,
)
from pipeline.engine.ray_decoding import RayDecodePool
from pipeline.engine.ray_nodes import RayHome
from pipeline.events import topic_here
from pipeline.storage import RequestMeter

_NAMED = ("reasons", "spent")
"""The fields of a receipt that are mappings, whose names differ from row to row."""

ROW_SECONDS = 1.0
"""How long a process that ends itself waits, so that Ray takes the rows of its last shards."""


class ShardActor:
    """One actor of the pool: a worker that keeps its networks loaded from row to row."""

    def __init__(
        self, recipes: list[Recipe], room: int, runtime_env: dict[str, Any], pool: str
    ) -> None:
        """Loads nothing yet.

        Args:
            recipes: How shards are counted; rows name them by their place.
            room: How many bytes of images may be decoded ahead; 0 if this process decodes.
            runtime_env: What Ray must start the processes with that decode ahead.
            pool: A text that no other pool of actors has.
        """
        collect_rarely()
        self._recipes = recipes
        always = recipes[0].resources.decode == "ahead"
        ahead = Ahead(RayDecodePool(runtime_env), room, always=always) if room else None
        self._home = RayHome(pool)
        self._worker = Worker(ahead, self._home)
        self._notices = _Notices()
        self._requests = RequestMeter()
        logging.getLogger(counting.__name__).addHandler(self._notices)
        self._device_is_unsure = False
        self._under_way = 0
        self._changed = threading.Condition()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Counts a shard.

        Args:
            batch: One row: the place of the recipe, and the rest of a `ShardJob` and its index.

        Returns:
            One row: the receipt, the id of the node, whether its device has failed, and what was
                warned of while shards were counted, and how many requests were sent, since the last
                row.
        """
        job = ShardJob(
            self._recipes[int(batch["recipe"][0])],
            str(batch["manifest"][0]),
            str(batch["work"][0]),
            str(batch["entries"][0]),
            str(batch["claimant"][0]),
            bool(batch["keeps_cells"][0]),
            str(batch["dataset"][0]),
        )
        self._begin()
        try:
            receipt = self._worker.run(job, int(batch["index"][0]))
            has_device = job.recipe.device != "cpu"
            failed = has_device and receipt.fault in DEVICE_FAULTS
            # Such an error may have left the device in any state, whoever's it is.
            unsure = receipt.unexpected and receipt.fault != "crash"
            self._device_is_unsure |= failed or (has_device and unsure)
        finally:
            self._end()
        told = {
            "node": self._home.node,
            "device_failed": failed,
            "notices": json.dumps(self._notices.drained()),
            "requests": self._requests.read(),
        }
        return row_of(receipt) | {name: np.array([value]) for name, value in told.items()}

    def _begin(self) -> None:
        """Begins a shard, or ends the process if its device may be lost.

        Only a new process gets a sound context of the device. Ray starts one, and gives the shard
        to it. No other shard may be under way, or it would seem to have ended the process.
        """
        with self._changed:
            if self._device_is_unsure:
                self._changed.wait_for(lambda: not self._under_way)
                time.sleep(ROW_SECONDS)
                os._exit(1)
            self._under_way += 1

    def _end(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()


class _Notices(logging.Handler):
    """Keeps what is logged until it is asked for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[str] = deque()

    def emit(self, record: logging.LogRecord) -> None:
        topic = topic_here()
        names = [str(topic["dataset"])] if topic.get("dataset") else []
        names += [f"shard {topic['shard']}"] if "shard" in topic else []
        self._kept.append(": ".join([", ".join(names)] * bool(names) + [record.getMessage()]))

    def drained(self) -> list[str]:
        """Returns what was kept. Two shards that end together share it."""
        found: list[str] = []
        with suppress(IndexError):
            while True:
                found.append(self._kept.popleft())
        return found


def row_of(receipt: ShardReceipt) -> dict[str, Any]:
    """Returns a receipt as a row; what has names of its own in it is written as JSON."""
    values = asdict(receipt) | {name: json.dumps(getattr(receipt, name)) for name in _NAMED}
    return {name: np.array([value]) for name, value in values.items()}


def receipt_of(row: dict[str, Any]) -> ShardReceipt:
    """Returns the receipt in a row that an actor returned."""
    values = {field.name: row[field.name] for field in fields(ShardReceipt)}
    return ShardReceipt(**values | {name: json.loads(values[name]) for name in _NAMED})
