"""Tells whether processes died of a shard's images, or with their machines, as spot nodes do.

>>> notes = [{"host": "elsewhere"}, {"host": "elsewhere"}]
>>> die_of_images(len(crashed(notes, ThisMachine())), len(notes))
False

A process that takes a shard leaves a note, and one that dies leaves no other trace. No clock tells
which death it was: whoever takes the shard next asks whether the machine that a note names has
outlived the process. If so, the process crashed. After some crashes a shard is decoded image by
image in processes apart, which is slower. And no other shard runs in its process, because that one
would seem to crash, too. If processes still crash, no other takes the shard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from pipeline.counting.processes import has_ended, this_machine

MOST_CRASHES = 2
"""After so many crashes, a shard runs alone, and its images are decoded in processes apart."""

MOST_DEATHS = 5
"""After so many deaths of any kind, it does, too. Where all processes of a machine share a limit
of memory, an image that is too large ends the machine with them."""

LAST_CRASH = MOST_CRASHES + 3
"""After so many crashes no process takes a shard in this try. The last ones had no other shard, and
decoded its images in processes apart."""

LAST_DEATH = 16
"""Nor after so many deaths of any kind. A shard takes about a minute, so nodes that are taken away
hardly ever end the same shard so often."""

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
        """Nothing more than a note has anyway: the machine, and the process."""
        return {}

    def saw_crash(self, note: Note) -> bool:
        """Tells whether the process of a note ran on this machine since its boot, and is gone."""
        return has_ended_here(note) is True


def has_ended_here(note: Note) -> bool | None:
    """Tells whether the process of a note is gone; None if it was not of this machine's boot."""
    pid = note.get("pid")
    if (note.get("host"), note.get("machine")) != this_machine() or not isinstance(pid, int):
        return None
    return has_ended(pid, str(note.get("began")))


def crashed(notes: Iterable[Note], home: Home) -> list[Note]:
    """Returns the notes of processes that died, and their machines did not."""
    return [note for note in notes if home.saw_crash(note)]


def die_of_images(crashes: int, deaths: int) -> bool:
    """Tells whether an image of a shard may be what ends the processes that take it.

    Args:
        crashes: How many processes took the shard and crashed.
        deaths: How many took it, and neither committed it nor gave it up.

    Returns:
        Whether the images are to be decoded in processes apart.
    """
    return crashes >= MOST_CRASHES or deaths >= MOST_DEATHS


def ends_processes(crashes: int, deaths: int) -> bool:
    """Tells whether a shard has ended so many processes that no other should take it.

    Args:
        crashes: How many processes took the shard and crashed.
        deaths: How many took it, and neither committed it nor gave it up.

    Returns:
        Whether the shard is to be given up.
    """
    return crashes >= LAST_CRASH or deaths >= LAST_DEATH


def name_of(note: Note) -> str:
    """Names the process of a note for people."""
    return f"process {note.get('pid')} on {note.get('host')}"
