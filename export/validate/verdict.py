"""What a validation came to: checks that passed, failed or were not run; as JSON, JUnit XML and a manifest's entry."""

import datetime
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from export.artifact.manifest import KEPT_FAILURES, Manifest, Validation, tool_versions
from export.artifact.reader import read_manifest
from export.artifact.schema import decode, encode
from export.artifact.seal import MANIFEST, dump_manifest
from export.validate.bisect import Culprit
from export.validate.invariance import Dependence
from export.validate.pairs import PairResult
from export.validate.tolerances import Bounds
from madtp.console.junit import JUnitCase, JUnitSuite, junit_kind, junit_xml
from madtp.errors import MadtpError
from madtp.files.outputs import json_kind, write_output

VERDICT = json_kind("a verdict of validate", "artifact", "passed", "status", "checks", "pairs")
JUNIT = junit_kind("validate")
PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass(frozen=True)
class Check:
    """One thing that was held to torch.

    Attributes:
        group: "torch/onnx", "torch/plan", "onnx/plan" or "batch mates".
        name: what was looked at.
        status: "passed", "failed" or "not run".
        why: of a failure or of what was not run, one line each.
    """

    group: str
    name: str
    status: str
    why: tuple[str, ...] = ()


@dataclass
class Verdict:
    """Everything that a validation found.

    Attributes:
        artifact: what was validated, its name; `task`, `precision`, `layout`: of it.
        samples: what it was compared on (`export.samples.choice.ValidationSamples.to_json`).
        bounds: what was allowed.
        results: of every pair and temperature.
        token_counts: encoder -> tokens after each layer, a row a sample, at the first temperature, in torch.
        dependences: of answers on batch mates.
        runs_plan: whether a GPU here can execute the plan; None of an .onnx artifact.
        culprit: the node at fault; None where nothing failed, or no single node does.
        bisected: what bisecting came to in words; empty where nothing failed.
        notes: what was looked at less closely than it should be, and why, a sentence each.
        changed: names of files that are not as the export wrote them.
    """

    artifact: str
    task: str
    precision: str
    layout: str
    samples: dict[str, Any]
    bounds: Bounds
    results: list[PairResult]
    token_counts: dict[str, list[list[int]]]
    dependences: list[Dependence]
    runs_plan: bool | None = None
    culprit: Culprit | None = None
    bisected: str = ""
    repro: str = ""
    notes: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    created: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))

    @property
    def failures(self) -> list[str]:
        """What is wrong, in words."""
        return [why for check in self.checks if check.status == FAILED for why in check.why]

    @property
    def passed(self) -> bool:
        """Nothing that was run failed."""
        return all(check.status != FAILED for check in self.checks)

    @property
    def artifact_status(self) -> str:
        """Of the artifact itself: "passed", "failed", or "not run" where its ONNX alone could be compared."""
        if not self.passed:
            return FAILED
        return NOT_RUN if self.runs_plan is False else PASSED

    @property
    def checks(self) -> list[Check]:
        """All of them, in the order in which they ran."""
        checks = [_pair_check(result) for result in self.results]
        if self.runs_plan is False:
            why = ("no GPU of this machine can execute the plan",)
            checks += [Check(pair, "all temperatures", NOT_RUN, why) for pair in ("torch/plan", "onnx/plan")]
        for found in self.dependences:
            failure = found.failure(self.layout)
            name = f"{found.contestant}, sample {found.probe} among {found.mates} mates"
            checks.append(Check("batch mates", name, FAILED if failure else PASSED, (failure,) if failure else ()))
        return checks

    def to_json(self) -> dict[str, Any]:
        """The whole verdict; numbers that are not finite are null."""
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
                "samples": self.samples,
                "tolerance": tolerance | {"given": dict(self.bounds.given)},
                "checks": [asdict(check) for check in self.checks],
                "pairs": [result.to_json() for result in self.results],
                "token_counts": self.token_counts,
                "batch_mates": [found.to_json() for found in self.dependences],
                "bisected": self.bisected,
                "repro": self.repro,
                "notes": self.notes,
                "changed": self.changed,
                "tools": tool_versions(),
            }
        )
        return content

    def to_manifest(self) -> dict[str, Any]:
        """The manifest's `validation.verdict`: what was compared on what, and how close it came."""
        pairs = [
            {
                "pair": result.pair,
                "temperature": result.temperature,
                "status": PASSED if result.passed else FAILED,
                "requests": result.requests,
                "explained": result.explained,
                "outputs": [output.to_json() for output in result.outputs.values()],
                "layers": len(result.selection.layers),
                "layers_equal": result.selection.layers_equal,
            }
            for result in self.results
        ]
        content: dict[str, Any] = _finite(
            {
                "created": self.created,
                "status": self.artifact_status,
                "samples": self.samples,
                "pairs": pairs,
                "batch_mates": [found.to_json() for found in self.dependences],
                "failures": self.failures[:KEPT_FAILURES],
                "bisected": self.bisected,
            }
        )
        return content


def _pair_check(result: PairResult) -> Check:
    temperature = f"{result.temperature!r}".removesuffix(".0")
    tokens = "kept tokens" if result.selection.shows_ids else "token counts"
    name = f"temperature {temperature}: outputs, answers, {tokens}"
    why = [failure.text for failure in result.failures]
    if not why and not result.passed:
        why = [f"{result.pair}, temperature {result.temperature:g}: rounding decides a token in every comparison"]
    return Check(result.pair, name, FAILED if why else PASSED, tuple(why))


def _finite(value: Any) -> Any:
    """The same with None for floats that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def write_json(verdict: Verdict, path: Path) -> None:
    """The verdict as a JSON file.

    Raises:
        OutputError: it cannot be written.
    """
    write_output(path, json.dumps(verdict.to_json(), indent=2, allow_nan=False) + "\n", VERDICT)


def write_junit(verdict: Verdict, path: Path) -> None:
    """The checks as JUnit XML, a test suite for each group.

    Raises:
        OutputError: it cannot be written.
    """
    properties = [(f"samples.{name}", verdict.samples[name]) for name in ("kind", "origin", "words")]
    for name, texts in (("changed", verdict.changed), ("notes", verdict.notes)):
        properties += [(name, "; ".join(texts))] if texts else []
    cases: dict[str, list[JUnitCase]] = {}
    for check in verdict.checks:
        case = JUnitCase(check.name, f"validate.{verdict.artifact}.{check.group}")
        if check.status == FAILED:
            details = "\n".join([*check.why, verdict.bisected, verdict.repro])
            case = replace(case, failed=check.why[0], details=details)
        elif check.status == NOT_RUN:
            case = replace(case, skipped="; ".join(check.why))
        cases.setdefault(check.group, []).append(case)
    suites = [JUnitSuite(f"{verdict.artifact}: {group}", found, properties) for group, found in cases.items()]
    write_output(path, junit_xml("validate", suites), JUNIT)


def update_manifest(verdict: Verdict, path: Path, validated: Manifest) -> str:
    """Put the verdict into the artifact's manifest; everything else in it stays.

    Args:
        verdict: of the artifact.
        path: of the manifest.
        validated: the manifest as it was when its hashes were checked.

    Returns:
        Why it was not written, e.g. a folder that cannot be; empty where it was.
    """
    if verdict.changed:
        return f"the verdict was not written into '{path}', which describes the files as they were exported"
    try:
        manifest = read_manifest(path)
        if manifest.parts != validated.parts:
            return f"the verdict was not written into '{path}': it was replaced meanwhile"
        seen = manifest.validation
        if verdict.runs_plan is False and (seen.validated, seen.artifact) == ("artifact", FAILED):
            return f"'{path}' keeps that the plan failed elsewhere: here its ONNX alone could be compared"
        entry = encode(seen) | {"artifact": verdict.artifact_status, "verdict": verdict.to_manifest()}
        if verdict.runs_plan is not None:
            entry["validated"] = "artifact" if verdict.runs_plan else "onnx"
        write_output(path, dump_manifest(replace(manifest, validation=decode(Validation, entry))), MANIFEST)
    except MadtpError as error:
        return f"the verdict was not written into '{path}': {error.what}"
    return ""
