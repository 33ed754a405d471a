"""What holds for every test: reproducible examples, and no silent skip where all is installed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from recordings import RECORDINGS

# No deadline: the machines that run this are shared, and a slow example is not a wrong one.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "default")

#: Beginnings of reasons for which a test may be skipped although CI is set. Each entry says why.
ALLOWED_IN_CI: tuple[str, ...] = ()


def _is_allowed(reason: str) -> bool:
    # Without the folder nobody can run these; with it, a missing file is a misspelt name.
    if reason.startswith("no recording ") and not RECORDINGS.is_dir():
        return True
    return reason.startswith(ALLOWED_IN_CI)


@pytest.fixture(autouse=True)
def _level_of_the_root_logger() -> Iterator[None]:
    """h5pyd silences everybody when it opens a file; the next test may want to read the log."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)


class _SkipWatch:
    """Collect skips that nobody allowed; a plugin, because reports come without their session."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._judge(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._judge(report)

    def _judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        # An expected failure is reported as a skip, too; it has its own strictness.
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not _is_allowed(reason):
            self.refused.append((report.nodeid, reason))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.refused:
            return
        terminalreporter.section("skipped, which CI does not allow", red=True)
        for nodeid, reason in self.refused:
            terminalreporter.line(f"{nodeid}: {reason}")
        terminalreporter.line("Install what they need, or add the reason to ALLOWED_IN_CI in tests/conftest.py.")


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(_SkipWatch(), "firstlight-skip-watch")
