"""Says which instructions of a CPU a network is computed by, as they decide how bf16 rounds.

>>> widest_of("flags : fpu sse avx2 avx512f")
'avx512f'
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

WIDEST = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")
"""Flags of Linux, of x86 and then of ARM. A network is computed by the first that a CPU has."""

CPU_FLAGS = Path("/proc/cpuinfo")


@functools.cache
def cpu_instructions() -> str:
    """Returns the widest instructions that this machine's CPU has, or else its architecture."""
    return widest_of(CPU_FLAGS.read_text()) if CPU_FLAGS.exists() else platform.machine()


def widest_of(cpuinfo: str) -> str:
    """Returns the first of `WIDEST` that a text of Linux names, or else the architecture."""
    flags = set(cpuinfo.split())
    return next((name for name in WIDEST if name in flags), platform.machine())
