"""Names each test that fails at once: a run that is stopped for want of time prints no summary."""

from __future__ import annotations

import pytest


class FailuresAtOnce:
    """Writes a line when a test fails, and not only in the summary at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    @pytest.hookimpl(trylast=True)  # after the letter that stands for the test
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Names a test that has failed, with the first line of its error."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is None or not report.failed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        error = (crash.message if crash else report.longreprtext).partition("\n")[0]
        terminal.ensure_newline()
        terminal.write_line(f"FAILED {report.nodeid} ({report.when}): {error}", red=True)
        terminal.flush()
