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
from export.bench.measure import Ended, WarmUp, own
from export.bench.statistics import noise_floor
from export.errors import BaselineError
from madtp.errors import one_line
from madtp.files.inputs import read_json, sha256
from madtp.files.outputs import Kind, json_kind

SCHEMA_VERSION = 3
_SAVED = json_kind("a result of bench", "schema", "partial", "created", "artifact", "machine", "cases")
_WHOLE = json_kind("a result of bench", "measurement", "summaries", "operators")
MEASUREMENT = Kind(_SAVED.name, lambda content: _SAVED.is_ours(content) or _WHOLE.is_ours(content))
# What has to be the same for latencies of two sessions to compare, and what it is called.
SAME_ARTIFACT = {name: name for name in ("task", "precision", "layout", "batching")}
SAME_MACHINE = {
    "processor": "processor",
    "architecture": "architecture",
    "cores": "number of cores",
    "gpus": "GPU",
    "threads": "number of threads",
}


ONE_SAMPLE = "there is one sample: an adaptive model has a distribution, and one is not one"
WAITED = 0.01  # share of the calls' time from which waiting for a CPU is worth a word


@dataclass(frozen=True)
class Timed:
    """Latencies, one a round.

    Attributes:
        milliseconds: wall-clock.
        waited: milliseconds that each call was ready to run while others had the CPUs; None where that is not known.
    """

    milliseconds: list[float]
    waited: list[float] | None = None

    @property
    def own(self) -> list[float]:
        """Latencies less what was waited for a CPU: what verdicts rest on."""
        return own(self.milliseconds, self.waited)


@dataclass(frozen=True)
class Measured:
    """Latencies of one case, one a round, and the tokens of its calls.

    Attributes:
        milliseconds: wall-clock.
        device: milliseconds of the GPU; None where they were not measured.
        waited: milliseconds that each call was ready to run while others had the CPUs; None where that is not known.
        yardstick: milliseconds of the `Yardstick`, once, beside each call, without waiting; None without one.
        repetitions: how often it was done beside each call: in a row it is faster than once. None without one.
    """

    milliseconds: list[float]
    kept: Kept
    device: list[float] | None = None
    waited: list[float] | None = None
    yardstick: list[float] | None = None
    repetitions: int | None = None

    @property
    def own(self) -> list[float]:
        """Latencies less what was waited for a CPU: what verdicts rest on."""
        return own(self.milliseconds, self.waited)

    @property
    def steady(self) -> list[float]:
        """`own`, of which the drift of the machine is taken away too: in units of the yardstick where there is one."""
        if self.yardstick is None:
            return self.own
        return [call / work for call, work in zip(self.own, self.yardstick, strict=True)]


@dataclass(frozen=True)
class Measurement:
    """One artifact, measured once.

    Attributes:
        artifact: as `export.bench.artifact.identity` gives it.
        samples: origin in words, number of requests, sha256.
        neighbours: share of the CPUs that other processes took meanwhile.
        cuda_graphs: it was asked to replay CUDA graphs.
        yardstick: what stood beside the calls; None without one.
        cases: at least one.
        notes: what makes its numbers worth less and does not follow from the rest, a sentence each.
    """

    artifact: Mapping[str, Any]
    samples: Mapping[str, Any]
    machine: Machine
    before: Activity
    after: Activity
    warm_up: WarmUp
    ended: Ended
    neighbours: float
    cuda_graphs: bool
    yardstick: str | None
    cases: dict[Case, Measured]
    notes: list[str] = field(default_factory=list)

    @property
    def partial(self) -> bool:
        """It was interrupted."""
        return self.ended == Ended.INTERRUPTED

    @property
    def waited_share(self) -> float:
        """Of the time of all calls, what they waited for a CPU that others had; 0 where that is not known."""
        waited = sum(sum(measured.waited or ()) for measured in self.cases.values())
        return waited / sum(sum(measured.milliseconds) for measured in self.cases.values())

    @property
    def caveats(self) -> list[str]:
        """What makes its numbers worth less, a sentence each; to be said wherever they are shown."""
        found = [*self.notes, *warnings(self.machine, self.before, self.after, self.neighbours)]
        if self.samples["requests"] == 1:
            found.append(ONE_SAMPLE)
        if self.waited_share > WAITED:
            waiting = f"for {100 * self.waited_share:.0f} % of their time calls waited for a CPU that others had"
            found.append(f"{waiting}; speed-ups and verdicts leave that out")
        if not self.warm_up.stable:
            found.append("latencies had not become stable when the warm-up's time was up")
        return found

    def to_json(self) -> dict[str, Any]:
        """As the schema says."""
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
            "yardstick": self.yardstick,
            "caveats": self.caveats,
            "cases": [_case_to_json(case, measured) for case, measured in self.cases.items()],
        }


def _case_to_json(case: Case, measured: Measured) -> dict[str, Any]:
    floor = noise_floor(measured.steady)
    return {
        **asdict(case),
        "milliseconds": _rounded(measured.milliseconds),
        "device_milliseconds": _rounded(measured.device),
        "waited_milliseconds": _rounded(measured.waited),
        "yardstick_milliseconds": _rounded(measured.yardstick),
        "yardstick_repetitions": measured.repetitions,
        "tokens": asdict(measured.kept),
        "noise_floor": floor if math.isfinite(floor) else None,
    }


def _rounded(milliseconds: list[float] | None) -> list[float] | None:
    return None if milliseconds is None else [round(value, 4) for value in milliseconds]


def measurement_schema() -> dict[str, Any]:
    """Of the files that `--save` writes."""
    text = resources.files("export.bench").joinpath("measurement.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def read_measurement(path: Path) -> Measurement:
    """A saved measurement: what `--save` wrote, or `--json`, which holds the same.

    Raises:
        BaselineError: missing, malformed, of another schema version, or partial.
    """
    try:
        written = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise BaselineError(
            f"cannot read the baseline '{path}'", str(error), "Make one with python -m export bench ... --save FILE."
        ) from error
    content: Any = written.get("measurement", written) if isinstance(written, dict) else None
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise BaselineError(
            f"the baseline '{path}' is of schema {version!r}",
            f"This version reads schema {SCHEMA_VERSION}.",
            "Make it again with python -m export bench ... --save FILE.",
        )
    try:
        jsonschema.validate(content, measurement_schema())
    except jsonschema.ValidationError as error:
        raise BaselineError(
            f"the baseline '{path}' is malformed",
            f"At {error.json_path}: {error.message[:200]}.",
            "Make it again with python -m export bench ... --save FILE.",
        ) from error
    wrong = contradiction(content)
    if wrong:
        raise BaselineError(
            f"the baseline '{path}' is malformed", wrong, "Make it again with python -m export bench ... --save FILE."
        )
    if content["partial"]:
        raise BaselineError(
            f"the baseline '{path}' is partial",
            "Its run was interrupted, so its numbers may be of a warm-up or of a disturbed machine.",
            "Make it again, and let it end.",
        )
    return parse_measurement(content)


def parse_measurement(content: Mapping[str, Any]) -> Measurement:
    """What a file says that is as the schema wants it, and that no `contradiction` is in."""
    found = Measurement(
        content["artifact"],
        content["samples"],
        Machine(**content["machine"]),
        Activity(**content["before"]),
        Activity(**content["after"]),
        WarmUp(**content["warm_up"]),
        Ended(content["ended"]),
        content["neighbours"],
        content["cuda_graphs"],
        content["yardstick"],
        {
            Case(entry["temperature"], entry["batch"]): Measured(
                entry["milliseconds"],
                Kept(**entry["tokens"]),
                entry["device_milliseconds"],
                entry["waited_milliseconds"],
                entry["yardstick_milliseconds"],
                entry["yardstick_repetitions"],
            )
            for entry in content["cases"]
        },
    )
    told, kept = found.caveats, map(one_line, content.get("caveats", []))
    return replace(found, notes=[caveat for caveat in kept if caveat not in told])


def contradiction(content: Mapping[str, Any]) -> str:
    """What the schema cannot say is wrong, in words; empty where nothing is."""
    if content["partial"] != (content["ended"] == Ended.INTERRUPTED):
        return "It says both that its run was interrupted and that it was not."
    if len({(entry["temperature"], entry["batch"]) for entry in content["cases"]}) < len(content["cases"]):
        return "It lists a case twice."
    for entry in content["cases"]:
        calls, waited = entry["milliseconds"], entry["waited_milliseconds"]
        beside = entry["device_milliseconds"], waited, entry["yardstick_milliseconds"]
        lengths = {len(series) for series in (calls, *beside) if series is not None}
        if len(lengths) > 1:
            return "What stood beside its calls is not of as many calls."
        work = content["yardstick"], entry["yardstick_milliseconds"], entry["yardstick_repetitions"]
        if len({value is None for value in work}) > 1:
            return "It says of the fixed work beside its calls both that it was done and that it was not."
        if waited is not None and any(lost >= call for call, lost in zip(calls, waited, strict=True)):
            return "A call waited for longer than it took."
    return ""


def check_comparable(
    baseline: Measurement,
    path: Path,
    artifact: Mapping[str, Any],
    here: Machine,
    samples: Mapping[str, Any],
    cases: Sequence[Case],
    cuda_graphs: bool,
) -> None:
    """Refuse a baseline that was measured of something else, or elsewhere.

    Args:
        baseline: read from `path`.
        path: for the message.
        artifact: identity of the one to be measured.
        here: this machine.
        samples: of this run.
        cases: of this run; each needs a counterpart.
        cuda_graphs: whether this run asks for them.

    Raises:
        BaselineError: listing all that differs.
    """
    then, now = asdict(baseline.machine), asdict(here)
    different = [
        *(
            f"{word} {baseline.artifact[key]!r}, now {artifact[key]!r}"
            for key, word in SAME_ARTIFACT.items()
            if baseline.artifact[key] != artifact[key]
        ),
        *(
            f"{word} {_shown(then[key])}, now {_shown(now[key])}"
            for key, word in SAME_MACHINE.items()
            if then[key] != now[key]
        ),
    ]
    backends = [entry["backend"]["name"] for entry in (baseline.artifact, artifact)]
    if backends[0] != backends[1]:
        different.append(f"backend {backends[0]!r}, now {backends[1]!r}")
    if baseline.cuda_graphs != cuda_graphs:
        different.append("CUDA graphs on, now off" if baseline.cuda_graphs else "CUDA graphs off, now on")
    if baseline.samples["sha256"] != samples["sha256"]:
        different.append(f"samples '{baseline.samples['origin']}', now others: '{samples['origin']}'")
    lacking = [str(case) for case in cases if case not in baseline.cases]
    if lacking:
        different.append(f"measured ({') and ('.join(map(str, baseline.cases))}), not ({') and ('.join(lacking)})")
    if different:
        raise BaselineError(
            f"the baseline '{path}' does not compare with this run",
            "It has " + "; ".join(different) + ".",
            "Make a baseline here and with the same options (--save), or hold two artifacts to each other "
            "(--against-engine).",
        )


def _shown(value: Any) -> str:
    """Names of GPUs as text, all else as it is."""
    return repr(value) if not isinstance(value, list) else " and ".join(map(repr, value)) or "none"


def artifact_at_hand(baseline: Measurement) -> Path | None:
    """The manifest of the baseline's artifact, where it and the files still exist with the same hashes."""
    path = Path(baseline.artifact["path"])
    try:
        same = all(sha256(path.parent / name) == digest for name, digest in baseline.artifact["files"].items())
    except OSError:
        return None
    return path if same and path.is_file() else None
