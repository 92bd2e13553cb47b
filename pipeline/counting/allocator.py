"""Makes the process keep memory that it will soon want again, and look for garbage rarely.

glibc gives each freed array above 32 MB back to the kernel, and later faults it in again, page by
page; a forward pass then takes half as long again. NumPy asks for huge pages for arrays of 4 MB or
more. The kernel may have to move other memory to make room for one, and the first write to an array
of 25 MB took up to 0.3 s. Importing PyTorch makes some 400,000 objects that stay, and Python spends
a fifth of that time looking for garbage among them.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import os
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

HUGE_PAGES = "NUMPY_MADVISE_HUGEPAGE"
"""The variable by which NumPy, as it is imported, is told whether to ask for huge pages."""

MEMORY_ENVIRONMENT = {
    **{name: str(value) for name, (_, value) in MALLOC_SETTINGS.items()},
    HUGE_PAGES: "0",
}
"""All of this as the environment of a process to be started."""


@functools.cache
def keep_memory() -> None:
    """Tells glibc to keep large blocks that are freed, for the rest of the process.

    Other C libraries are left as they are. NumPy asks for no huge pages any more, unless the
    environment says what it should do.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for option, value in MALLOC_SETTINGS.values():
            libc.mallopt(option, value)
    if HUGE_PAGES not in os.environ:
        # NumPy reads the variable only as it is imported, and has no public function for later.
        for name in ("numpy._core.multiarray", "numpy.core.multiarray"):  # NumPy 2, NumPy 1
            ask = getattr(sys.modules.get(name), "_set_madvise_hugepage", None)
            if ask is not None:
                ask(0)


def collect_rarely() -> None:
    """Has Python look for garbage less often, for the rest of the process, and not as it ends."""
    atexit.unregister(_skip_the_last_look)  # several commands may run in one process
    atexit.register(_skip_the_last_look)
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])


def _skip_the_last_look() -> None:
    """Has Python not look for garbage as it ends. Triton would print what it then finds left."""
    if "triton" not in sys.modules:
        gc.freeze()
