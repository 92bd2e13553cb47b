"""A browser for tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from selenium import webdriver

from tests.support import browser
from tests.support.browser import Reader


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Starts a browser for the tests of a file, because a start takes as long as a test."""
    with browser.started(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def reader(chromium: webdriver.Chrome) -> Iterator[Reader]:
    with browser.new_tab(chromium) as opened:
        opened.set_window(1600)
        yield opened
