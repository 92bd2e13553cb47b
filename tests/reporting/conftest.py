"""A browser for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import browser
from tests.support.browser import Reader


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    with browser.reader(tmp_path / "profile") as opened:
        opened.set_window(1600)
        yield opened
