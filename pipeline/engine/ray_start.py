"""Starts Ray on this machine, again where a busy machine was too slow for it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ray._private.node import Node

from pipeline.errors import TransientError, UsageError

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS = 10.0

MAX_STARTS = 3
"""How often Ray is started on this machine before the job gives up."""


def start_with_retries(start: Callable[[], T]) -> T:
    """Starts a Ray node, and starts it again if the node does not come up.

    A raylet ends itself if its agents take more than 15 s to start, as they may on a busy machine,
    and Ray raises after 30 s (github.com/ray-project/ray/issues/65983). Nothing of a node that
    failed is left running.

    Args:
        start: Starts the node.

    Returns:
        What `start` returns.

    Raises:
        TransientError: If the node did not come up `MAX_STARTS` times.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            with without_stderr():
                return start()
        except Exception as error:  # Ray raises no kind of its own
            node = _node_of(error)
            if node is None:
                raise
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            problem = f"Ray did not start on this machine ({node.get_logs_dir_path()} has its logs)"
            if attempt == MAX_STARTS:
                raise TransientError(
                    f"{problem}, {attempt} times: {error} Rerun the same command when the machine "
                    "is less busy, or with --workers 0, without Ray"
                ) from error
            logger.warning("%s; starting it again", problem)


def require_answer(address: str) -> None:
    """Checks that something listens at a cluster's address. Ray itself tries for minutes.

    Args:
        address: `host:port` or `ray://host:port`. Others, such as `auto`, are left to Ray.

    Raises:
        UsageError: The host is not known, or nothing answers at the port.
    """
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
    except ValueError as error:
        raise UsageError(f"ray-address is {address!r}; give host:port ({error})") from error
    if not host or not port:
        return
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise UsageError(
            f"no Ray cluster answers at {address}: {error}; check --ray-address and RAY_ADDRESS"
        ) from error


def _node_of(error: Exception) -> Any:
    """Returns the node that raised while its processes started, from the error's traceback.

    Ray keeps no other way to it. Returns None if the error is another one.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node) and getattr(node, "all_processes", None):
            return node
    return None


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discards what is written to stderr by the block, also from outside Python.

    Ray's core writes there that it took its log level. Errors are raised all the same.

    Yields:
        Nothing.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
