"""The time of GPUs that are only declared: it passes as a test says, and not by itself.

    clock = GpuClock(place)
    clock.set(0)
    ... nodes with GPU_CLOCK=place in their environment, and a build on them ...
    clock.go_on(60, due, wait)

So a busy machine takes longer, and the same work is done at the same times of this clock.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.counting import OVERLAP

START_SECONDS = 10.0
"""What a new process of a worker takes before its first shard, to start and to load its network."""


class GpuClock:
    """Tells the processes of all nodes the time, and a test what their GPUs do.

    Args:
        place: A folder that all of them share. Each node has a note there: until when its GPU
            works, and how many shards the worker has begun that its GPU has not ended.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self._until = 0.0
        self._under_way = 0
        self._is_new = True
        self._noting = threading.Lock()

    @property
    def now(self) -> float:
        return float((self.place / "now").read_text())

    def set(self, now: float) -> None:
        self.place.mkdir(exist_ok=True)
        _replace(self.place / "now", str(now))

    def begin(self, node: str) -> None:
        """Takes note, in the process of a worker, that it begins a shard."""
        with self._noting:
            self._under_way += 1
            self._note(node)

    def work(self, node: str, seconds: float) -> None:
        """Waits, in the process of a worker, until its GPU has worked so long for a shard."""
        with self._noting:
            self._until = self.now + seconds + START_SECONDS * self._is_new
            self._is_new = False
            self._note(node)
        while self.now < self._until:
            time.sleep(0.02)
        with self._noting:
            self._under_way -= 1
            self._note(node)

    def _note(self, node: str) -> None:
        _replace(self.place / node, json.dumps([self._until, self._under_way]))

    def read(self, node: str) -> tuple[float, int]:
        """Returns what the note of a node says."""
        note = self.place / node
        until, under_way = json.loads(note.read_text()) if note.exists() else (self.now, 0)
        return until, under_way

    def go_on(
        self,
        to: float,
        due: Mapping[str, float],
        wait: Callable[[Callable[[], object]], object],
    ) -> None:
        """Goes on, from one end of a shard to the next one.

        It goes no further before the GPU of each node that is due works on a shard, and the next
        one is at hand. By then the worker has stored all shards before these, as it has no more of
        them under way at a time. If that never comes true, `wait` fails.

        Args:
            to: Until when.
            due: The nodes, and from when on each of them has to work.
            wait: Waits until something is true.
        """
        while True:
            now = self.now

            def all_work(now: float = now) -> bool:
                notes = [self.read(node) for node, since in due.items() if since <= now]
                return all(until > now and shards >= OVERLAP for until, shards in notes)

            wait(all_work)
            if now >= to:
                return
            ends = [*(self.read(node)[0] for node in due), *due.values()]
            self.set(min([to, *(end for end in ends if end > now)]))


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)
