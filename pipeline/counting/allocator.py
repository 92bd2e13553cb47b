"""How the process keeps memory that it will want again."""

from __future__ import annotations

import ctypes
import functools


@functools.cache
def keep_memory() -> None:
    """Tell glibc to keep large blocks when they are freed, for the rest of the process.

    Else it returns each array above 32 MB to the kernel and faults it in again, page by page: a
    forward pass takes half as long again. Other C libraries are left as they are. Ray's workers
    are started with the same settings in their environment.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    arena_max, mmap_max, top_pad, trim_threshold = -8, -4, -2, -1
    for option, value in (
        (arena_max, 1),
        (mmap_max, 0),
        (top_pad, 256 * 2**20),
        (trim_threshold, 2**31 - 1),
    ):
        libc.mallopt(option, value)
