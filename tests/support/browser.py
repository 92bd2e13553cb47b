"""Opens pages in Chromium without a screen, and uses them by keyboard and mouse."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.support.ceph import free_port

CHOICE = "VDNA_TEST_BROWSER"
INSTALL = "apt-get install chromium chromium-driver"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def chosen() -> str | None:
    """Returns `chromium`, or None if there is no browser.

    Raises `pytest.UsageError` if `VDNA_TEST_BROWSER` requires one that is missing.
    """
    wanted = os.environ.get(CHOICE)
    if wanted not in (None, "none", "chromium"):
        raise pytest.UsageError(f"{CHOICE}={wanted}: give chromium or none")
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if wanted == "chromium" and missing:
        raise pytest.UsageError(f"{CHOICE}=chromium, but {missing} are not installed: {INSTALL}")
    return None if missing or wanted == "none" else "chromium"


def described() -> str:
    if chosen():
        return "Browser: chromium"
    why = f"{CHOICE}=none" if CHOICE in os.environ else INSTALL
    return f"Browser: none, the page is not opened ({why})"


AXE = """
const done = arguments[0];
axe.run({ resultTypes: ["violations"] }).then(
  ({ violations }) => done(violations), (error) => { throw error; });
"""


@cache
def axe_source() -> str:
    """Reads the script of axe-core, which looks for what keeps people out of a page."""
    return resources.files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8")


needed = pytest.mark.skipif(chosen() is None, reason=f"needs chromium: {INSTALL}")


class Reader:
    """A browser with an open page."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self.asked: dict[str, str] = {}

    def open(self, path: Path) -> None:
        self.driver.get(path.as_uri())
        self.wait(lambda: self.run("return document.body.dataset.drawn"))

    def reload(self) -> None:
        """Opens the page again in the same process, which sees its own storage at once."""
        self.driver.refresh()
        self.wait(lambda: self.run("return document.body.dataset.drawn"))

    def wait(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        until = monotonic() + seconds
        while not (found := condition()):
            assert monotonic() < until, "the page did not come so far"
            sleep(0.02)
        return found

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, identity: str) -> WebElement:
        return self.driver.find_element(By.ID, identity)

    def text(self, identity: str) -> str:
        return str(self.find(identity).get_property("textContent"))

    def choose(self, identity: str, text: str) -> None:
        """Chooses an option of a select as a person does, and waits until the page is drawn."""
        before = self.run("return document.body.dataset.drawn")
        for option in self.find(identity).find_elements(By.TAG_NAME, "option"):
            if option.get_property("textContent") == text:
                option.click()
                break
        else:
            raise AssertionError(f"{identity} has no {text!r}")
        self.wait(lambda: self.run("return document.body.dataset.drawn") != before)

    def set_window(self, width: int, height: int = 900, scheme: str = "light") -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def barriers(self) -> list[str]:
        """Returns what axe-core finds `serious` or `critical` in the page as it is now."""
        self.run(axe_source())
        return [
            f"{found['impact']} {found['id']}: {found['nodes'][0]['html']}"
            f" {found['nodes'][0]['failureSummary']}"
            for found in self.driver.execute_async_script(AXE)
            if found["impact"] in ("serious", "critical")
        ]

    def console_messages(self) -> list[str]:
        """Returns the messages of the console."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> set[str]:
        """Returns what was requested, without what the page's policy stopped."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self.asked[message["params"]["requestId"]] = message["params"]["request"]["url"]
            if message["params"].get("blockedReason") == "csp":
                del self.asked[message["params"]["requestId"]]
        own = ("data:", "chrome:")  # the browser's first tab
        return {url for url in self.asked.values() if not url.startswith(own)}

    def assert_no_request_and_no_message(self, path: Path) -> None:
        """Checks that only the file itself was requested, and that the console has no message."""
        assert self.console_messages() == []
        assert self.requests() == {path.as_uri()}


@contextmanager
def started(profile: Path) -> Iterator[webdriver.Chrome]:
    """Starts a browser with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"), port=free_port())
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def new_tab(driver: webdriver.Chrome) -> Iterator[Reader]:
    """Opens a tab of its own, which has seen nothing, and closes the one before it."""
    before = driver.current_window_handle
    driver.switch_to.new_window("tab")
    tab = driver.current_window_handle
    driver.switch_to.window(before)
    driver.close()
    driver.switch_to.window(tab)
    for log in ("browser", "performance"):
        driver.get_log(log)  # takes out what earlier tabs left
    try:
        yield Reader(driver)
    finally:
        ActionBuilder(driver).clear_actions()  # no key stays pressed
