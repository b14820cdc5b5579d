"""Stages that are tests of the project: pytest in this process, its verdicts as results, written as they come."""

import os
import time
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.kit.stage import ROOT, SKIPPED, StageRun

SHOWN = 20  # tests that failed or were skipped
SAVE_SECONDS = 1.0  # least time between two writes


class Verdicts:
    """A pytest plugin that writes the result of each test."""

    def __init__(self, stage: StageRun) -> None:
        self._stage = stage
        self._saved = 0.0
        self.passed = 0
        self.failed: list[dict[str, str]] = []
        self.skipped: list[dict[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test was set up, run or torn down."""
        if report.failed:
            self.failed.append({"test": report.nodeid, "why": _why(report)})
        elif report.skipped:
            self.skipped.append({"test": report.nodeid, "why": _why(report)})
        elif report.when == "call":
            self.passed += 1
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the counts, and the first that failed or were skipped."""
        self._saved = time.monotonic()
        self._stage.save(
            passed_tests=self.passed,
            failed_tests=len(self.failed),
            skipped_tests=len(self.skipped),
            failed=self.failed[:SHOWN],
            skipped=self.skipped[:SHOWN],
        )


def _why(report: pytest.TestReport) -> str:
    """The last line of an error, or the reason of a skip."""
    if report.skipped and isinstance(report.longrepr, tuple):
        text = report.longrepr[2].removeprefix("Skipped: ")
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = getattr(report, "wasxfail", "") or (crash.message if crash is not None else str(report.longrepr))
    return " ".join(text.split())[:300]


def run_tests(stage: StageRun, files: Sequence[str], select: str, *, may_skip: bool = False) -> bool | str:
    """Run the tests of `files` whose names match `select`; passes if some ran and none failed.

    Args:
        stage: the stage that gets the results.
        files: test files.
        select: an expression for pytest's -k.
        may_skip: whether the stage is skipped (`SKIPPED`) if all tests were; else it has not passed.
    """
    # The machine's own pytest plugins are not ours to trust; the kernels' build for the host lies in the kit.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["MADTP_NATIVE"] = str(ROOT / "lib")
    verdicts = Verdicts(stage)
    stage.save(selected=select)
    options: list[Any] = ["-p", "no:cacheprovider", "-q", "-rs", "--durations=5", "--rootdir", ROOT, "-k", select]
    status = pytest.main([*map(str, options), *(str(ROOT / file) for file in files)], plugins=[verdicts])
    verdicts.save()
    stage.save(exit_status=int(status))
    if status == pytest.ExitCode.OK and not verdicts.passed:
        stage.save(error=f"nothing ran: {verdicts.skipped[0]['why'] if verdicts.skipped else 'no test was found'}")
        return SKIPPED if may_skip else False
    return status == pytest.ExitCode.OK
