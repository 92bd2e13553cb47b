"""What this machine knows of processes: which machine it is, and whether one of its own has ended.

>>> pid = os.getpid()
>>> has_ended(pid, beginning_of(pid))
False
"""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path


@functools.cache
def this_machine() -> tuple[str, str]:
    """Returns the name of this machine, and what tells its processes from those of others.

    The second is made of the boot and of the namespace of processes: containers of one machine may
    share a name, but not the namespace. It is empty where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return socket.gethostname(), f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return socket.gethostname(), ""


def beginning_of(pid: int) -> str:
    """Returns when a process began, in the system's own terms; empty if that is not known."""
    state = _state_of(pid)
    return "" if state is None else state[1]


def has_ended(pid: int, began: str) -> bool:
    """Tells whether a process of this machine has ended.

    Args:
        pid: Its number, which another process may have by now.
        began: When it began, as `beginning_of` told.

    Returns:
        Whether it surely runs no more.
    """
    state = _state_of(pid)
    if state is not None:
        return state[0] in ("Z", "X") or state[1] != began
    try:
        os.kill(pid, 0)  # /proc may hide the processes of other users
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _state_of(pid: int) -> tuple[str, str] | None:
    """Returns the state of a process and when it began; None if /proc does not show it."""
    try:
        # The name of the program may hold spaces and brackets; what follows it has fixed places.
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]
