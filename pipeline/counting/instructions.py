"""Says which instructions of a CPU a network is computed by, as they decide how bf16 rounds.

>>> widest_of("flags : fpu sse avx2 avx512f")
'avx512f'
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

WIDEST = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "bf16", "asimd")
"""Flags of Linux, of x86 and then of ARM. A network is computed by the first that a CPU has, unless
the environment limits it."""

CPU_FLAGS = Path("/proc/cpuinfo")


LIMITS = ("ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that make torch do without some instructions."""


@functools.cache
def cpu_instructions() -> str:
    """Returns the widest instructions that this machine's CPU has, or else its architecture.

    Limits that the environment sets follow.
    """
    widest = (
        widest_of(CPU_FLAGS.read_text(encoding="utf-8"))
        if CPU_FLAGS.exists()
        else platform.machine()
    )
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if os.environ.get(name)]
    return " ".join([widest, *limits])


def widest_of(cpuinfo: str) -> str:
    """Returns the first of `WIDEST` that a text of Linux names, or else the architecture."""
    flags = set(cpuinfo.split())
    return next((name for name in WIDEST if name in flags), platform.machine())
