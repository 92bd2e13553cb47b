"""Tells whether processes died of a shard's images, or with their machines, as spot nodes do.

>>> die_of_images([{"host": "elsewhere"}, {"host": "elsewhere"}], ThisMachine())
False

A process that takes a shard leaves a note, and one that dies leaves no other trace. No clock tells
which death it was: whoever takes the shard next asks whether the machine that a note names has
outlived the process. If so, the process crashed. Only crashes have a shard decoded image by image
in processes apart, which is slower.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

MOST_CRASHES = 2
"""After so many crashes, the images of a shard are decoded in processes apart."""

MOST_DEATHS = 5
"""After so many deaths of any kind, they are, too. Where all processes of a machine share a limit
of memory, an image that is too large ends the machine with them."""

Note = Mapping[str, object]
"""What a process wrote when it took a shard; empty if that cannot be read."""


class Home(Protocol):
    """Where a worker's process runs, and what it knows of other processes."""

    @property
    def label(self) -> dict[str, str]:
        """What a note says of the machine."""

    def saw_crash(self, note: Note) -> bool:
        """Tells whether the process of a note has died, and its machine has not."""


class ThisMachine:
    """The home of a process without Ray: a machine, from one boot to the next."""

    @property
    def label(self) -> dict[str, str]:
        """The name of the machine, and what tells this boot from others."""
        boot = ""
        with suppress(OSError):  # no Linux
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"host": socket.gethostname(), "boot": boot}

    def saw_crash(self, note: Note) -> bool:
        """Tells whether the process of a note ran on this machine since its boot, and is gone."""
        pid = note.get("pid")
        return self.label.items() <= note.items() and isinstance(pid, int) and not _lives(pid)


def die_of_images(notes: Iterable[Note], home: Home) -> bool:
    """Tells whether an image of a shard may be what ends the processes that take it.

    Args:
        notes: The notes of the processes that took the shard and neither committed it nor gave it
            up.
        home: Where this process runs.

    Returns:
        Whether the images are to be decoded in processes apart.
    """
    notes = list(notes)
    crashes = sum(home.saw_crash(note) for note in notes)
    return crashes >= MOST_CRASHES or len(notes) >= MOST_DEATHS


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        return True
    return True
