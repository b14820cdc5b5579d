"""JUnit XML, which CI systems show."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from junitparser import Failure, JUnitXml, Skipped, TestCase, TestSuite

from madtp.errors import printable
from madtp.files.outputs import Kind, marked_kind


@dataclass(frozen=True)
class JUnitCase:
    """One test case; it passed if it neither failed nor was skipped.

    Attributes:
        failed: message of a failure, `details` its text.
        skipped: why there is no result.
        output: what is shown of a case that passed, too.
    """

    name: str
    classname: str
    failed: str = ""
    details: str = ""
    skipped: str = ""
    seconds: float | None = None
    output: str = ""


@dataclass(frozen=True)
class JUnitSuite:
    """Test cases, with properties that hold for all of them."""

    name: str
    cases: list[JUnitCase]
    properties: list[tuple[str, str]] = field(default_factory=list)


def junit_xml(command: str, suites: Iterable[JUnitSuite]) -> str:
    """The XML document of a command's results; what XML or a terminal does not take is escaped."""
    document = JUnitXml(_title(command))
    for suite in suites:
        written = TestSuite(suite.name)
        for name, value in suite.properties:
            written.add_property(name, value)
        written.add_testcases([_case(case) for case in suite.cases])
        document.add_testsuite(written)
    return printable(document.tostring().decode("utf-8"))


def junit_kind(command: str) -> Kind:
    """The kind of file that `junit_xml` makes of a command's results."""
    return marked_kind(f"JUnit XML of {command}", f'<testsuites name="{_title(command)}"')


def _title(command: str) -> str:
    return f"madtp-deploy {command}"


def _case(case: JUnitCase) -> TestCase:
    written = TestCase(case.name, case.classname, case.seconds)
    if case.failed:
        failure = Failure(case.failed)
        failure.text = case.details
        written.result = [failure]
    elif case.skipped:
        written.result = [Skipped(case.skipped)]
    if case.output:
        written.system_out = case.output
    return written
