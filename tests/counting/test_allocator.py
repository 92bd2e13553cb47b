"""Tests what the process's allocators are told."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ASKS = """
import sys
import numpy
from pipeline.counting import keep_memory
keep_memory()
core = numpy._core if hasattr(numpy, "_core") else numpy.core
print(core.multiarray._set_madvise_hugepage(0))  # returns what it was before
"""


@pytest.mark.parametrize(("told", "asks"), [(None, "False"), ("0", "False"), ("1", "True")])
def test_numpy_asks_for_huge_pages_only_where_it_was_told_to(told: str | None, asks: str) -> None:
    environment = {name: value for name, value in os.environ.items() if "HUGEPAGE" not in name}
    if told is not None:
        environment["NUMPY_MADVISE_HUGEPAGE"] = told
    done = subprocess.run(
        [sys.executable, "-c", ASKS], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == asks
