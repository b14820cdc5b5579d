"""Saved measurements: what `--save` writes and `--against` reads (`measurement.schema.json`)."""

import datetime
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from export.bench.calls import Case, Kept
from export.bench.environment import Activity, Machine, warnings
from export.bench.measure import Ended, Series, WarmUp
from export.bench.statistics import noise_floor
from export.errors import BaselineError
from madtp.errors import MadtpError, one_line
from madtp.files.inputs import read_json, sha256
from madtp.files.outputs import Kind, json_kind
from madtp.files.versioned import check_version

SCHEMA_VERSION = 4
OLDEST_SCHEMA = 3  # it has GONE too, the time of a reference workload beside the calls
GONE = ("yardstick", "yardstick_milliseconds", "yardstick_repetitions")
_SAVED = json_kind("a result of bench", "schema", "partial", "created", "artifact", "machine", "cases")
_WHOLE = json_kind("a result of bench", "measurement", "summaries", "operators")
MEASUREMENT = Kind(_SAVED.name, lambda content: _SAVED.is_ours(content) or _WHOLE.is_ours(content))

ONE_SAMPLE = "only one sample: the latency spread is unknown"
WAITED = 0.01  # share of the calls' time from which waiting for a CPU is reported


@dataclass(frozen=True)
class Conditions:
    """What has to be the same for latencies of two sessions to compare."""

    artifact: Mapping[str, Any]  # from `export.bench.artifact.identity`
    samples: Mapping[str, Any]  # origin, number of requests, sha256
    machine: Machine
    cuda_graphs: bool  # CUDA graphs were requested
    execution: Mapping[str, Any] | None = field(default=None, kw_only=True)  # in ONNX Runtime; None: a plan, or before

    def named(self) -> dict[str, str]:
        """The values of all conditions as text, by name."""
        machine = self.machine
        return {
            **{name: repr(self.artifact[name]) for name in ("task", "precision", "layout", "batching")},
            "processor": repr(machine.processor),
            "architecture": repr(machine.architecture),
            "number of cores": str(machine.cores),
            "GPU": " and ".join(map(repr, machine.gpus)) or "none",
            "number of threads": str(machine.threads),
            "backend": repr(self.artifact["backend"]["name"]),
            "CUDA graphs": "on" if self.cuda_graphs else "off",
            "provider": repr("cpu" if self.execution is None else self.execution["provider"]),
            "custom ops": repr("kernels" if self.execution and self.execution["kernels"] else "function bodies"),
            "samples": f"'{self.samples['origin']}' (sha256 {self.samples['sha256'][:12]})",
        }

    def differences(self, now: "Conditions") -> list[str]:
        """What is not the same now."""
        before, after = self.named(), now.named()
        if self.samples["sha256"] == now.samples["sha256"]:
            before["samples"] = after["samples"]  # whatever they are called
        return [f"{name} {before[name]}, now {after[name]}" for name in before if before[name] != after[name]]


@dataclass(frozen=True)
class Measurement(Conditions):
    """One artifact, measured once."""

    before: Activity
    after: Activity
    warm_up: WarmUp
    ended: Ended
    neighbours: float  # share of the CPUs that other processes used meanwhile
    cases: dict[Case, Series]  # at least one
    kept: dict[Case, Kept]
    notes: list[str] = field(default_factory=list)  # caveats that do not follow from the rest, a sentence each

    @property
    def partial(self) -> bool:
        """Measuring was interrupted."""
        return self.ended == Ended.INTERRUPTED

    @property
    def caveats(self) -> list[str]:
        """What makes its numbers less reliable, a sentence each; shown wherever the numbers are."""
        found = [*self.notes, *warnings(self.machine, self.before, self.after, self.neighbours)]
        if self.samples["requests"] == 1:
            found.append(ONE_SAMPLE)
        waited = sum(sum(series.waited or ()) for series in self.cases.values())
        share = waited / sum(sum(series.milliseconds) for series in self.cases.values())
        if share > WAITED:
            found.append(
                f"calls waited {100 * share:.0f} % of their time for a CPU that others had; "
                "speed-ups and verdicts leave that out"
            )
        if not self.warm_up.stable:
            found.append("latencies were not stable yet when the time for the warm-up was over")
        return found

    def to_json(self) -> dict[str, Any]:
        """The content of a saved file."""
        return {
            "schema": SCHEMA_VERSION,
            "partial": self.partial,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "artifact": dict(self.artifact),
            "samples": dict(self.samples),
            "machine": asdict(self.machine),
            "before": asdict(self.before),
            "after": asdict(self.after),
            "warm_up": asdict(self.warm_up),
            "ended": self.ended.value,
            "neighbours": round(self.neighbours, 4),
            "cuda_graphs": self.cuda_graphs,
            "execution": self.execution,
            "caveats": self.caveats,
            "cases": [self._case_to_json(case) for case in self.cases],
        }

    def _case_to_json(self, case: Case) -> dict[str, Any]:
        series = self.cases[case]
        floor = noise_floor(series.own)
        return {
            **asdict(case),
            "milliseconds": series.milliseconds,
            "device_milliseconds": series.device,
            "waited_milliseconds": series.waited,
            "tokens": asdict(self.kept[case]),
            "noise_floor": floor if math.isfinite(floor) else None,
        }


def read_measurement(path: Path) -> Measurement:
    """The complete measurement that `--save` or `--json` wrote.

    Raises:
        BaselineError: missing, malformed, of an unknown schema version, or partial.
    """
    return parse_measurement(read_content(path, f"the baseline '{path}'", BaselineError))


def read_content(path: Path, name: str, error: type[MadtpError]) -> dict[str, Any]:
    """The checked content of a file that `--save` or `--json` wrote.

    Raises:
        error: missing, malformed, of an unknown schema version, or partial; it calls the file `name`.
    """
    again = "Measure again with python -m export bench ... --save FILE."
    try:
        written = read_json(path)
    except (OSError, ValueError, RecursionError) as failure:
        raise error(f"cannot read {name}", str(failure), again) from failure
    content: Any = measurement_of(written)
    check_version(content, name, (OLDEST_SCHEMA, SCHEMA_VERSION), error, again)
    if content["schema"] == OLDEST_SCHEMA:
        _remove_gone(content)
    try:
        schema = resources.files("export.bench").joinpath("measurement.schema.json").read_text(encoding="utf-8")
        jsonschema.validate(content, json.loads(schema))
    except jsonschema.ValidationError as failure:
        why = f"At {failure.json_path}: {failure.message[:200]}."
        raise error(f"{name} is malformed", why, again) from failure
    wrong = contradiction(content)
    if wrong:
        raise error(f"{name} is malformed", wrong, again)
    if content["partial"]:
        raise error(f"{name} is partial", "Its run was interrupted.", "Measure again, and let the run end.")
    checked: dict[str, Any] = written
    return checked


def measurement_of(written: Any) -> Any:
    """The measurement in what `--save` or `--json` wrote."""
    return written.get("measurement", written) if isinstance(written, dict) else None


def _remove_gone(content: dict[str, Any]) -> None:
    cases = content.get("cases")
    for fields in (content, *(cases if isinstance(cases, list) else ())):
        for name in GONE if isinstance(fields, dict) else ():
            fields.pop(name, None)


def parse_measurement(written: Mapping[str, Any]) -> Measurement:
    """The measurement in what `read_content` returns."""
    content = measurement_of(written)
    cases = {Case(entry["temperature"], entry["batch"]): entry for entry in content["cases"]}
    found = Measurement(
        artifact=content["artifact"],
        samples=content["samples"],
        machine=Machine(**content["machine"]),
        cuda_graphs=content["cuda_graphs"],
        execution=content.get("execution"),
        before=Activity(**content["before"]),
        after=Activity(**content["after"]),
        warm_up=WarmUp(**content["warm_up"]),
        ended=Ended(content["ended"]),
        neighbours=content["neighbours"],
        cases={
            case: Series(entry["milliseconds"], entry["waited_milliseconds"], entry["device_milliseconds"])
            for case, entry in cases.items()
        },
        kept={case: Kept(**entry["tokens"]) for case, entry in cases.items()},
    )
    derived, saved = found.caveats, map(one_line, content.get("caveats", []))
    return replace(found, notes=[caveat for caveat in saved if caveat not in derived])


def contradiction(content: Mapping[str, Any]) -> str:
    """What is wrong in a file that the schema cannot express; empty if nothing is."""
    if content["partial"] != (content["ended"] == Ended.INTERRUPTED):
        return "It says both that its run was interrupted and that it was not."
    if len({(entry["temperature"], entry["batch"]) for entry in content["cases"]}) < len(content["cases"]):
        return "It lists a case twice."
    for entry in content["cases"]:
        calls, waited = entry["milliseconds"], entry["waited_milliseconds"]
        lengths = {len(series) for series in (calls, entry["device_milliseconds"], waited) if series is not None}
        if len(lengths) > 1:
            return "Its series of one case have different lengths."
        if waited is not None and any(lost >= call for call, lost in zip(calls, waited, strict=True)):
            return "A call waited for longer than it took."
    return ""


def check_comparable(baseline: Measurement, path: Path, now: Conditions, cases: Sequence[Case]) -> None:
    """Refuse a baseline of something else, of another machine, or without one of the cases.

    Raises:
        BaselineError: listing everything that differs.
    """
    different = baseline.differences(now)
    missing = [str(case) for case in cases if case not in baseline.cases]
    if missing:
        different.append(f"measured ({') and ('.join(map(str, baseline.cases))}), not ({') and ('.join(missing)})")
    if different:
        raise BaselineError(
            f"the baseline '{path}' does not compare with this run",
            "It has " + "; ".join(different) + ".",
            "Record a baseline here with the same options (--save), or compare two artifacts (--against-engine).",
        )


def available_artifact(baseline: Measurement) -> Path | None:
    """The manifest of the baseline's artifact, if it and its files still exist with the same hashes."""
    path = Path(baseline.artifact["path"])
    try:
        same = all(sha256(path.parent / name) == digest for name, digest in baseline.artifact["files"].items())
    except OSError:
        return None
    return path if same and path.is_file() else None
