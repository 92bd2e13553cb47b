"""Starts Ray on this machine, again where a busy machine was too slow for it."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil
from ray._private import services, worker
from ray._private.node import Node
from ray._private.state import GlobalState

from pipeline.errors import TransientError, UnexpectedError, UsageError, VdnaError
from pipeline.wording import option

logger = logging.getLogger(__name__)

T = TypeVar("T")

CONNECT_SECONDS = 10.0

SESSION_SECONDS = 5.0
"""How long a session's folder is removed again if processes that end still write to it."""

NODE_LOOK_SECONDS = 0.05
"""How often it is looked whether a node that starts is there. Ray looks once a second."""

QUICK_SECONDS = 10.0
"""How long it is looked that often."""

START_ENVIRONMENT = {
    "RAY_raylet_client_connect_timeout_milliseconds": "50",
    "RAY_raylet_client_num_connect_attempts": "200",
}
"""How often, and how many times, a node's processes try to reach its object store. Ray tries every
second, ten times, and the first time often comes too early."""

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
        KeyboardInterrupt: If the start was interrupted; nothing is left of the node then.
    """
    attempt = 0
    while True:
        attempt += 1
        try:
            with without_stderr(), environment(START_ENVIRONMENT), looking_often():
                return start()
        except KeyboardInterrupt as error:
            if node := _node_of(error):
                _end(node)
                remove_session(Path(node.get_session_dir_path()))
            raise
        except Exception as error:  # Ray raises no kind of its own
            node = _node_of(error)
            if node is None:
                raise
            _end(node)
            problem = f"Ray did not start on this machine ({node.get_logs_dir_path()} has its logs)"
            if attempt == MAX_STARTS:
                raise TransientError(
                    f"{problem}, {attempt} times: {error} Rerun the same command when the machine "
                    f"is less busy, or with {option('workers', 0)}, without Ray"
                ) from error
            logger.warning("%s; starting it again", problem)


@contextlib.contextmanager
def looking_often() -> Iterator[None]:
    """Has a node that Ray starts in the block seen when it is there, and not up to a second later.

    Ray asks its head for the node, and sleeps for a second if it is not there. A node takes about a
    second to start.

    Yields:
        Nothing.
    """
    untyped: Any = services  # Ray gives these no types
    made: Any = GlobalState
    ask = untyped.get_node
    end = monotonic() + QUICK_SECONDS

    def look(gcs_address: str, node_id: str) -> Any:
        state = made()
        state._initialize_global_state(untyped._get_gcs_client_options(gcs_address))
        while monotonic() < end and all(node["NodeID"] != node_id for node in state.node_table()):
            sleep(NODE_LOOK_SECONDS)
        return ask(gcs_address, node_id)

    untyped.get_node = look
    try:
        yield
    finally:
        untyped.get_node = ask


@contextlib.contextmanager
def importing(module: str) -> Iterator[None]:
    """Imports a module while the block waits for other processes.

    Args:
        module: Its name. Neither it nor what it imports may import what the block imports.

    Yields:
        Nothing.
    """
    thread = threading.Thread(target=import_module, args=(module,), name=f"import {module}")
    thread.start()
    try:
        yield
    finally:
        thread.join()


def require_answer(address: str) -> None:
    """Checks that something listens at a cluster's address. Ray itself tries for minutes.

    Args:
        address: `host:port`. Others, such as `auto`, are left to Ray.

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
            f"no Ray cluster answers at {address}: {error}; check that address, and RAY_ADDRESS"
        ) from error


def session_folder() -> Path | None:
    """Returns the folder of logs and sockets of the Ray that this process started, if it did.

    Ray has no public way to it. None of a Ray that keeps its node elsewhere: its folder stays.
    """
    with contextlib.suppress(AttributeError):
        node = worker._global_node
        if node is not None and node.is_head():
            return Path(node.get_session_dir_path())
    return None


def is_worth_logs(error: BaseException | None) -> bool:
    """Tells whether a job ended so that the logs of Ray's workers may say why."""
    if isinstance(error, VdnaError):
        return isinstance(error, TransientError | UnexpectedError)
    return isinstance(error, Exception)


def remove_session(folder: Path) -> None:
    """Removes the folder of a Ray that has ended, whose last processes may still write to it.

    Args:
        folder: The folder, as `session_folder` returns it.
    """
    end = monotonic() + SESSION_SECONDS
    while folder.exists() and monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)
        sleep(0.05)
    latest = folder.with_name("session_latest")
    if latest.is_symlink() and latest.resolve() == folder.resolve():
        latest.unlink(missing_ok=True)


def _node_of(error: BaseException) -> Any:
    """Returns the node that raised while its processes started, from the error's traceback.

    Ray keeps no other way to it. Returns None if the error is another one.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("self")
        if isinstance(node, Node) and getattr(node, "all_processes", None):
            return node
    return None


def _end(node: Any) -> None:
    """Ends all processes of a node, with those that Ray does not know of.

    A raylet starts agents of its own. They end when they see that it is gone, but an agent that has
    only just begun does not look yet, and nobody else ends it.
    """
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    until = monotonic() + SESSION_SECONDS
    while (left := _agents_of(node.node_id)) and monotonic() < until:
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=until - monotonic())


def _agents_of(node_id: str) -> list[psutil.Process]:
    """Returns the processes whose command line names a node. Others of its cluster are left out."""
    found = []
    for process in psutil.process_iter():
        # A process of another user, or one that ends meanwhile, shows no command line.
        with contextlib.suppress(psutil.Error):
            if _named(node_id) in process.cmdline():
                found.append(process)
    return found


def _named(node_id: str) -> str:
    """Returns the argument that names a node in an agent's command line."""
    return f"--node-id={node_id}"


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables, and sets them back at the end.

    Args:
        variables: Their names and values.

    Yields:
        Nothing.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def kept_sigterm() -> Iterator[None]:
    """Keeps this process's handler of SIGTERM, if it has one of its own.

    Ray's core sets one that prints the machine's registers and aborts.

    Yields:
        Nothing.
    """
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


_stderr_lock = threading.Lock()

_kept_stderr: list[int] = []
"""What stderr is, once for each block of `without_stderr` that runs."""


@contextlib.contextmanager
def without_stderr() -> Iterator[None]:
    """Discards what is written to stderr by the block, also from outside Python.

    Ray's core writes there that it took its log level. Errors are raised all the same. Blocks of
    several threads may overlap: stderr is back after the last of them.

    Yields:
        Nothing.
    """
    with _stderr_lock:
        if not _kept_stderr:
            if sys.stderr is not None:
                sys.stderr.flush()
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            _kept_stderr.append(kept)
        else:
            _kept_stderr.append(_kept_stderr[0])
    try:
        yield
    finally:
        with _stderr_lock:
            kept = _kept_stderr.pop()
            if not _kept_stderr:
                os.dup2(kept, 2)
                os.close(kept)
