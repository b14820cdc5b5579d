"""The result of a validation: checks that passed, failed or were not run; as JSON, JUnit XML and a manifest's entry."""

import datetime
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from export.artifact.manifest import (
    KEPT_FAILURES,
    ArtifactStatus,
    CostEntry,
    InvarianceEntry,
    Manifest,
    OutputEntry,
    PairEntry,
    SamplesEntry,
    VerdictEntry,
    tool_versions,
)
from export.artifact.reader import read_manifest
from export.artifact.seal import MANIFEST, dump_manifest
from export.runtime.execution import Execution
from export.validate.batch_invariance import BatchInvariance
from export.validate.comparator import PairResult, TokenCounts
from export.validate.divergent_node import DivergentNode
from export.validate.tolerances import Bounds
from madtp.console.junit import JUnitCase, JUnitSuite, junit_kind, junit_xml
from madtp.errors import MadtpError
from madtp.files.outputs import json_kind, write_output

RESULT = json_kind("a result of validate", "artifact", "passed", "status", "checks", "pairs")
JUNIT = junit_kind("validate")
PASSED: Final = "passed"
FAILED: Final = "failed"
NOT_RUN: Final = "not run"
BATCH_INVARIANCE = "batch invariance"


@dataclass(frozen=True)
class Check:
    """One check of a validation.

    Attributes:
        group: a pair of runners, e.g. "torch/onnx", or "batch invariance".
        status: "passed", "failed" or "not run".
        why: one line for each failure, or for why it was not run.
    """

    group: str
    name: str
    status: str
    why: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bisection:
    """Where a failure comes from; `repro` is a command that shows the difference, or why there is none."""

    text: str
    divergent_node: DivergentNode | None = None
    repro: str = ""


@dataclass(frozen=True)
class ValidationResult:
    """All that a validation found.

    Attributes:
        token_counts: torch's at the first temperature.
        runs_plan: whether a GPU here can run the plan; None for an .onnx artifact.
        notes: what was compared less closely than usual and why, a sentence each.
        changed: names of files that are not as the export wrote them.
        execution: of an .onnx artifact; its library is the runner "kernels".
    """

    artifact: str
    task: str
    precision: str
    layout: str
    samples: SamplesEntry
    bounds: Bounds
    pairs: list[PairResult]
    token_counts: TokenCounts
    batch_invariance: list[BatchInvariance]
    runs_plan: bool | None = None
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    bisection: Bisection | None = None
    execution: Execution | None = None
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    @property
    def failures(self) -> list[str]:
        return [why for check in self.checks if check.status == FAILED for why in check.why]

    @property
    def passed(self) -> bool:
        """Nothing that was run failed."""
        return all(check.status != FAILED for check in self.checks)

    @property
    def artifact_status(self) -> ArtifactStatus:
        """Of the artifact itself: "passed", "failed", or "not run" where its ONNX alone could be compared."""
        if not self.passed:
            return FAILED
        return NOT_RUN if self.runs_plan is False else PASSED

    @property
    def bisection_lines(self) -> list[str]:
        """What bisecting found, and the command that shows it; none where nothing failed."""
        return [] if self.bisection is None else [line for line in (self.bisection.text, self.bisection.repro) if line]

    @property
    def checks(self) -> list[Check]:
        """All of them, in the order in which they ran."""
        checks = [_pair_check(result) for result in self.pairs]
        if self.runs_plan is False:
            why = ("no GPU of this machine can run the plan",)
            checks += [Check(pair, "all temperatures", NOT_RUN, why) for pair in ("torch/plan", "onnx/plan")]
        for found in self.batch_invariance:
            failure = found.failure(self.layout)
            name = f"{found.runner}, sample {found.probe} among {found.others} requests"
            checks.append(Check(BATCH_INVARIANCE, name, FAILED if failure else PASSED, (failure,) if failure else ()))
        return checks

    def to_json(self) -> dict[str, Any]:
        """The whole result; numbers that are not finite are null."""
        tolerance = asdict(self.bounds.tolerance)
        tolerance["dtype"] = str(self.bounds.tolerance.dtype).removeprefix("torch.")
        content: dict[str, Any] = _finite(
            {
                "created": self.created,
                "artifact": self.artifact,
                "task": self.task,
                "precision": self.precision,
                "layout": self.layout,
                "passed": self.passed,
                "status": self.artifact_status,
                "samples": asdict(self.samples),
                "tolerance": tolerance | {"given": dict(self.bounds.given)},
                "checks": [asdict(check) for check in self.checks],
                "pairs": [result.to_json() for result in self.pairs],
                "token_counts": self.token_counts,
                "batch_mates": [found.to_json() for found in self.batch_invariance],
                "bisected": "" if self.bisection is None else self.bisection.text,
                "repro": "" if self.bisection is None else self.bisection.repro,
                "execution": None if self.execution is None else self.execution.to_json(),
                "notes": self.notes,
                "changed": self.changed,
                "tools": tool_versions(),
            }
        )
        return content

    def to_manifest(self) -> VerdictEntry:
        """The manifest's `validation.verdict`: what was compared on what, and how close it came."""
        return VerdictEntry(
            created=self.created,
            status=self.artifact_status,
            samples=self.samples,
            pairs=tuple(_pair_entry(result) for result in self.pairs),
            batch_mates=tuple(InvarianceEntry(**found.to_json()) for found in self.batch_invariance),
            failures=tuple(self.failures[:KEPT_FAILURES]),
            bisected="" if self.bisection is None else self.bisection.text,
        )


def _pair_check(result: PairResult) -> Check:
    temperature = f"{result.temperature!r}".removesuffix(".0")
    tokens = "kept tokens" if result.selection.shows_ids else "token counts"
    name = f"temperature {temperature}: outputs, answers, {tokens}"
    why = [failure.text for failure in result.failures] + result.damage
    if not why and not result.passed:
        why = [
            f"{result.pair}, temperature {result.temperature:g}: all requests are excluded: "
            "a score lies within rounding of the threshold in every batch"
        ]
    return Check(result.pair, name, FAILED if why else PASSED, tuple(why))


def _pair_entry(result: PairResult) -> PairEntry:
    return PairEntry(
        pair=result.pair,
        temperature=result.temperature,
        status=PASSED if result.passed else FAILED,
        requests=result.requests,
        explained=result.excluded,
        outputs=tuple(OutputEntry(**_finite(output.to_json())) for output in result.outputs.values()),
        layers=len(result.selection.layers),
        layers_equal=result.selection.layers_equal,
        cost=None if result.cost is None else CostEntry(**result.cost.entry()),
    )


def _finite(value: Any) -> Any:
    """The same with None for floats that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def write_json(result: ValidationResult, path: Path) -> None:
    """Write the result as JSON; raises OutputError where that fails."""
    write_output(path, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n", RESULT)


def write_junit(result: ValidationResult, path: Path) -> None:
    """Write the checks as JUnit XML, a test suite for each group; raises OutputError where that fails."""
    properties = [(f"samples.{name}", str(getattr(result.samples, name))) for name in ("kind", "origin", "words")]
    for name, texts in (("changed", result.changed), ("notes", result.notes)):
        properties += [(name, "; ".join(texts))] if texts else []
    cases: dict[str, list[JUnitCase]] = {}
    for check in result.checks:
        case = JUnitCase(check.name, f"validate.{result.artifact}.{check.group}")
        if check.status == FAILED:
            details = "\n".join([*check.why, *result.bisection_lines])
            case = replace(case, failed=check.why[0], details=details)
        elif check.status == NOT_RUN:
            case = replace(case, skipped="; ".join(check.why))
        cases.setdefault(check.group, []).append(case)
    suites = [JUnitSuite(f"{result.artifact}: {group}", found, properties) for group, found in cases.items()]
    write_output(path, junit_xml("validate", suites), JUNIT)


def update_manifest(result: ValidationResult, path: Path, validated: Manifest) -> str:
    """Put the result into the manifest at `path`; everything else in it stays.

    Returns:
        Why it was not written, e.g. a folder that is not writable, or because the artifact is not the one that was
        `validated` any more; empty where it was.
    """
    if result.changed:
        return f"the result was not written into '{path}', which describes the files as they were exported"
    try:
        manifest = read_manifest(path)
        if manifest.parts != validated.parts:
            return f"the result was not written into '{path}': the manifest was replaced meanwhile"
        seen = manifest.validation
        if result.runs_plan is False and (seen.validated, seen.artifact) == ("artifact", FAILED):
            return f"'{path}' still says that the plan failed elsewhere: only its ONNX could be compared here"
        entry = replace(seen, artifact=result.artifact_status, verdict=result.to_manifest())
        if result.runs_plan is not None:
            entry = replace(entry, validated="artifact" if result.runs_plan else "onnx")
        write_output(path, dump_manifest(replace(manifest, validation=entry)), MANIFEST)
    except MadtpError as error:
        return f"the result was not written into '{path}': {error.what}"
    return ""
