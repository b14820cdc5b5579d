"""JUnit XML of bench and validate."""

import junitparser
import pytest

from madtp.console.junit import JUnitCase, JUnitSuite, junit_kind, junit_xml


def cases(*written: JUnitCase) -> list[junitparser.TestCase]:
    (suite,) = junitparser.JUnitXml.fromstring(junit_xml("bench", [JUnitSuite("suite", list(written))]))
    return list(suite)


def test_a_case_passes_unless_it_failed_or_was_skipped() -> None:
    passed, failed, skipped = cases(
        JUnitCase("a", "x", seconds=1.5),
        JUnitCase("b", "x", failed="slow", details="why"),
        JUnitCase("c", "x", skipped="?"),
    )
    assert (passed.result, passed.time) == ([], 1.5)
    assert [(type(found), found.message, found.text) for found in failed.result] == [
        (junitparser.Failure, "slow", "why")
    ]
    assert [(type(found), found.message) for found in skipped.result] == [(junitparser.Skipped, "?")]


@pytest.mark.parametrize("field", ["name", "failed", "output"])
def test_characters_that_xml_does_not_take_are_escaped(field: str) -> None:
    (case,) = cases(JUnitCase(**{"name": "a", "classname": "x", field: "a\x1bb"}))
    found = {"name": case.name, "output": case.system_out, "failed": case.result and case.result[0].message}
    assert found[field] == "a\\x1bb"


def test_a_command_knows_its_own_files() -> None:
    written = junit_xml("bench", []).encode()
    assert junit_kind("bench").is_ours(written)
    assert not junit_kind("validate").is_ours(written)
