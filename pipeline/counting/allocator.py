"""Makes the process keep memory that it will soon want again, and look for garbage rarely.

glibc gives each freed array above 32 MB back to the kernel, and later faults it in again, page by
page; a forward pass then takes half as long again. Importing PyTorch makes some 400,000 objects
that stay, and Python spends a fifth of that time looking for garbage among them.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import sys

NEW_OBJECTS = 50_000
"""How many new objects Python waits for before it looks for garbage."""

MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TOP_PAD_": (-2, 256 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
}
"""The settings, by the variable that glibc reads: the parameter of `mallopt`, and the value."""

MALLOC_ENVIRONMENT = {name: str(value) for name, (_, value) in MALLOC_SETTINGS.items()}
"""The same settings as the environment of a process to be started."""


@functools.cache
def keep_memory() -> None:
    """Tells glibc to keep large blocks that are freed, for the rest of the process.

    Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in MALLOC_SETTINGS.values():
            libc.mallopt(option, value)


def collect_rarely() -> None:
    """Has Python look for garbage less often, for the rest of the process, and not as it ends."""
    atexit.unregister(_skip_the_last_look)  # several commands may run in one process
    atexit.register(_skip_the_last_look)
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def _skip_the_last_look() -> None:
    """Has Python not look for garbage as it ends. Triton would print what it then finds left."""
    if "triton" not in sys.modules:
        gc.freeze()
