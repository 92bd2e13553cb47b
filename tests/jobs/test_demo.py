"""Tests that the whole `vdna demo` on Ray does what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.comparing import Matrix

ROOT = Path(__file__).parents[2]


@pytest.mark.soak  # a thousand images through a network, which two cores take a minute or two for
@pytest.mark.timeout(900)
def test_the_demo_makes_the_files_and_numbers_that_it_prints(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.demo", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    matrix = Matrix.decode((tmp_path / "matrix.parquet").read_bytes(), "matrix.parquet")
    assert len(matrix.names) >= 8
    original = matrix.names.index("photos/original")
    emd = dict(zip(matrix.names, matrix.of()[original], strict=True))
    variants = ["photos/brighter", "photos/darker", "photos/contrast", "photos/blurred"]
    others = ["textures", "astronomy", "microscopy", "retina", "text"]
    assert emd["photos/original"] == 0
    assert emd["photos/other-crops"] < min(emd[name] for name in variants)
    assert max(emd[name] for name in variants) < min(emd[name] for name in others)
    q = dict(zip(matrix.names, matrix.of("all", "q")[original], strict=True))
    assert q["photos/other-crops"] > 0.05  # 0.42; the folder's name decides on the folds
    assert max(q[name] for name in (*variants, *others)) < 0.01
    assert "\\n" not in done.stdout
    told = done.stdout.partition("these differ from it: ")[2]
    differ, _, alike = told.partition("these are not told apart: ")
    for name in variants:
        corrected, low, high = (
            matrix.of("all", column)[original, matrix.names.index(name)]
            for column in ("emd_corrected", "low", "high")
        )
        assert f"{name.split('/')[1]} {corrected:.1f} [{low:.1f}, {high:.1f}]" in differ
    assert alike.startswith("other-crops ")
    for name in matrix.names:
        assert name in done.stdout
    assert "<svg" in (tmp_path / "matrix.svg").read_text()
    page = (tmp_path / "report.html").read_text()
    assert f"Open {tmp_path / 'report.html'} in a browser" in done.stdout
    assert page.count("data:image/webp") == 6 * len(matrix.names)
    assert len(page) < 1_000_000
