"""Stages that are tests of the project: pytest in this process, its verdicts as results."""

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks.kit.stage import ROOT, Stage

SHOWN = 20  # tests that failed or were skipped


def run_tests(stage: Stage, files: Sequence[str], select: str) -> bool:
    """Run the tests of `files` whose names match `select`; passes where some ran and none failed."""
    # The machine's own pytest plugins are not ours to trust; the kernels' build for the host lies in the kit.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["MADTP_NATIVE"] = str(ROOT / "lib")
    report = stage.file.with_suffix(".xml")
    report.unlink(missing_ok=True)
    options = ["-p", "no:cacheprovider", "-q", "-rs", "--durations=5", f"--junitxml={report}"]
    status = pytest.main([*options, "--rootdir", str(ROOT), *(str(ROOT / file) for file in files), "-k", select])
    found = read_report(ET.parse(report).getroot()) if report.is_file() else {}
    stage.save(selected=select, exit_status=int(status), **found)
    return status == 0 and found.get("passed_tests", 0) > 0


def read_report(root: ET.Element) -> dict[str, Any]:
    """Counts of a JUnit report, and which tests failed or were skipped, with the reason."""
    cases = list(root.iter("testcase"))

    def with_child(*tags: str) -> list[dict[str, str]]:
        listed = []
        for case in cases:
            child = next((found for tag in tags if (found := case.find(tag)) is not None), None)
            if child is not None:
                name = f"{case.get('classname')}::{case.get('name')}"
                listed.append({"test": name, "why": " ".join((child.get("message") or "").split())[:300]})
        return listed

    failed, skipped = with_child("failure", "error"), with_child("skipped")
    return {
        "passed_tests": len(cases) - len(failed) - len(skipped),
        "failed_tests": len(failed),
        "skipped_tests": len(skipped),
        "failed": failed[:SHOWN],
        "skipped": skipped[:SHOWN],
    }
