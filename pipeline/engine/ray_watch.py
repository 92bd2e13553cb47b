"""Passes on what Ray warns of: lost nodes and heads, memory that ran out, full object stores."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from ray._private import worker

from pipeline.engine.ray_nodes import (
    ANSWER_SECONDS,
    head_address,
    head_answers,
    list_nodes,
    spilled_bytes,
)
from pipeline.events import Listener, Warned
from pipeline.wording import option

HEAD_SECONDS = 5.0
"""How often the head is looked for."""

STORES_SECONDS = 60.0
"""How often a node is asked what the object stores have spilled."""

PLANNED_DEATHS = (1, 4)
"""Ray's numbers of the ends of a node that somebody planned: it was stopped, or was idle."""

_KILLED = re.compile(
    r"killed due to (?:memory pressure|the node running low on memory).*?IP: ([\w.:\[\]-]+)", re.S
)

_AUTOSCALER = re.compile(r"autoscal", re.IGNORECASE)


@contextmanager
def watched_cluster(warnings: RayWarnings) -> Iterator[None]:
    """Looks for the head while the block runs, and at the object stores, also when it ends well.

    A thread looks, as nodes take their time to answer, and Ray's own calls wait for a lost head.

    Args:
        warnings: Looks at Ray, and tells.

    Yields:
        Nothing.
    """
    warnings.look()
    head = head_address()
    ended, failed = threading.Event(), threading.Event()

    def watch() -> None:
        goes_on, due = True, 0.0
        while goes_on:
            warnings.look_for_head(head)
            if (now := monotonic()) >= due:
                due = now + STORES_SECONDS
                warnings.look_at_stores()
            goes_on = not ended.wait(HEAD_SECONDS)
        if not failed.is_set():
            warnings.look_at_stores()

    thread = threading.Thread(target=watch, name="cluster", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:  # a reader who has enough, too: Ray may end now
        failed.set()
        warnings.look_for_head(head)  # what follows may wait for it until Ray ends this process
        raise
    finally:
        ended.set()
        thread.join(2 * ANSWER_SECONDS)


class RayWarnings:
    """Turns what Ray warns of into events, each of which is told once."""

    def __init__(self, listener: Listener) -> None:
        """Looks at nothing yet.

        Args:
            listener: Is told.
        """
        self._listener = listener
        self._told: set[tuple[str, ...]] = set()
        self._telling = threading.Lock()
        self._gone_before: set[str] | None = None
        self._asked: dict[str, Any] | None = None
        self._spilled: int | None = None
        self._head_answered = False

    def look(self) -> None:
        """Asks Ray for nodes that were lost since the first look, which tells nothing."""
        nodes = list_nodes()
        self._asked = next((node for node in nodes if node["Alive"]), None)
        lost = [node for node in nodes if not node["Alive"]]
        if self._gone_before is None:
            self._gone_before = {node["NodeID"] for node in lost}
        for node in lost:
            if node["NodeID"] in self._gone_before or node["DeathReason"] in PLANNED_DEATHS:
                continue
            why = node["DeathReasonMessage"] or "Ray does not know why"
            self.tell(
                f"the node {node['NodeManagerAddress']} was lost: {why}. Other workers count what "
                "its workers had under way",
                *("node", node["NodeID"]),
            )

    def look_for_head(self, address: str) -> None:
        """Tells that the head is lost. Ray waits for it, and then ends this process without a word.

        Args:
            address: Where it listens. If it never answered there, nothing is told.
        """
        answers = head_answers(address)
        if self._head_answered and not answers:
            self.tell(
                f"the head of the Ray cluster at {address} does not answer. If it stays away for a "
                "minute, Ray ends this process: when a cluster runs again, rerun the same command "
                "to go on from what is committed",
                *("head", address),
            )
        self._head_answered |= answers

    def look_at_stores(self) -> None:
        """Asks a node that lives what all object stores have spilled since the last look.

        The first look tells nothing. What lost nodes had spilled is forgotten with them.
        """
        spilled = spilled_bytes(self._asked) if self._asked else None
        if spilled is None:
            return
        before, self._spilled = self._spilled, spilled
        if before is not None and spilled > before:
            self.tell(
                f"Ray's object stores ran full, and wrote {(spilled - before) / 1e6:,.0f} MB to "
                "disk, which takes time. Give Ray more object_store_memory, or use fewer workers, "
                f"or {option('decode', 'here')}",
                "spilled",
            )

    def died(self, workers: str) -> None:
        """Tells of workers that died while they had a shard, whose nodes live on.

        Args:
            workers: Who they were, as a `ShardReceipt` names them.
        """
        for each in filter(None, workers.split("; ")):
            self.tell(f"a worker died: {each}. The shards that it had are counted again")

    def read(self, message: str) -> None:
        """Takes what Ray would print: all that matters of it is how memory ran out."""
        if found := _KILLED.search(message):
            self.tell(
                f"Ray has killed workers of {found[1]}, where memory ran out. Their shards are "
                f"counted again; use fewer workers, or {option('threads', 1)}, if it goes on",
                *("memory", found[1]),
            )
        elif _AUTOSCALER.search(message):
            self.tell(f"Ray's autoscaler: {message.strip()[:300]}")

    def tell(self, message: str, *what: str) -> None:
        """Tells a message, unless one of the same kind was told.

        Args:
            message: The message.
            what: What tells its kind from others; nothing if that is the message.
        """
        what = what or (message,)
        with self._telling:  # of several threads
            is_new = what not in self._told
            self._told.add(what)
        if is_new:
            self._listener(Warned(message))


@contextmanager
def reading_messages(read: Callable[[str], None]) -> Iterator[None]:
    """Has what Ray prints on its own read instead, while the block runs.

    Ray prints long logs of nodes and processes that it replaces by itself, and offers no setting.

    Args:
        read: Is called with each message, and with what nodes log of errors. What workers log is
            dropped.

    Yields:
        Nothing.
    """
    real = worker.print_to_stdstream

    def instead(data: dict[str, Any], ignore_prefix: bool) -> None:
        if "ip" not in data or data["pid"] == "raylet":  # what is logged has its machine's address
            read("\n".join(data["lines"]))

    worker.print_to_stdstream = instead
    try:
        yield
    finally:
        worker.print_to_stdstream = real
