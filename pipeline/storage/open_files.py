"""How many files this process may have open.

>>> is_of_open_files(OSError(errno.EMFILE, "Too many open files")), is_of_open_files(OSError())
(True, False)
"""

from __future__ import annotations

import contextlib
import errno
import functools
import resource

OPEN_FILES = 2**16
"""How many files a process may have open from its first mapped file on, if the system permits so
many. macOS may permit no more than `FEWER_FILES`."""

FEWER_FILES = 10_240

MORE_OPEN_FILES = f"allow more open files, as by ulimit -n {OPEN_FILES}"
"""What a user can do about an error that `is_of_open_files`."""


def is_of_open_files(error: BaseException) -> bool:
    """Tells whether this process, or the system, has as many files open as it may."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


@functools.cache
def allow_open_files() -> None:
    """Lets this process have more files open, as far as the system permits it.

    A map holds its file open, and a comparison of hundreds of DNAs maps one or two of each. Unless
    a process asks for more, many systems permit 1,024, and macOS 256.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for files in (OPEN_FILES, FEWER_FILES):
        wanted = files if most == resource.RLIM_INFINITY else min(files, most)
        if now == resource.RLIM_INFINITY or now >= wanted:
            return
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            return
