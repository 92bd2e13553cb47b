"""Chooses which random histories run."""

from __future__ import annotations

import os
from collections.abc import Sequence


def chosen(seeds: Sequence[int]) -> Sequence[int]:
    """Returns every second seed, or all if `VDNA_TEST_HISTORIES=all` asks for them.

    So each run of the soak stays short. Run all after a change to counting, planning or committing.
    """
    return seeds if os.environ.get("VDNA_TEST_HISTORIES") == "all" else seeds[::2]
