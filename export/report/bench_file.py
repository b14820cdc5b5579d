"""Latencies that `python -m export bench --json` wrote (or --save)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import jsonschema

from export.artifact.manifest import Manifest
from export.bench.measure import own
from export.bench.measurement import SCHEMA_VERSION, contradiction, measurement_schema, parse_measurement
from export.errors import ReportError
from madtp.files.inputs import read_json


@dataclass(frozen=True)
class BenchFile:
    """A result of bench: of the smallest batch that was measured.

    Attributes:
        milliseconds: of calls, by temperature.
        own: likewise, less what they waited for a CPU.
        batch: requests of a call.
        gflops: of a request, by temperature; None where the file does not have all of them, as --save does not.
        tokens: of a request, summed over its sequences and layers, by temperature: mean of the calls.
        last: by temperature and encoder, mean tokens of a sequence after the last layer.
        samples: where they come from.
        samples_sha256: `export.bench.calls.samples_sha256` of them.
        created: when.
        machine: on what.
        caveats: what makes its numbers worth less, a sentence each.
    """

    milliseconds: dict[float, list[float]]
    own: dict[float, list[float]]
    batch: int
    gflops: dict[float, float] | None
    tokens: dict[float, float]
    last: dict[float, dict[str, float]]
    samples: str
    samples_sha256: str
    created: str
    machine: str
    caveats: list[str]


def read_bench(path: Path, manifest: Manifest) -> BenchFile:
    """The latencies in a result of `python -m export bench`.

    Raises:
        ReportError: unreadable, of another schema, partial, or of another artifact.
    """
    again = "Make it with python -m export bench ... --json FILE."
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"cannot read the bench result '{path}'", str(error), again) from error
    measured: Any = content.get("measurement", content) if isinstance(content, dict) else None
    version = measured.get("schema") if isinstance(measured, dict) else None
    if version != SCHEMA_VERSION:
        raise ReportError(
            f"the bench result '{path}' is of schema {version!r}", f"This version reads schema {SCHEMA_VERSION}.", again
        )
    try:
        jsonschema.validate(measured, measurement_schema())
    except jsonschema.ValidationError as error:
        raise ReportError(
            f"the bench result '{path}' is malformed", f"At {error.json_path}: {error.message[:200]}.", again
        ) from error
    wrong = contradiction(measured)
    if wrong:
        raise ReportError(f"the bench result '{path}' is malformed", wrong, again)
    if measured["partial"]:
        raise ReportError(f"the bench result '{path}' is partial", "Its run was interrupted.", again)
    if measured["artifact"]["files"] != manifest.part_hashes:
        raise ReportError(f"the bench result '{path}' is of another artifact", "The hashes of its files differ.", again)
    batch = min(case["batch"] for case in measured["cases"])
    cases = {case["temperature"]: case for case in measured["cases"] if case["batch"] == batch}
    kept = {tau: cases[tau]["tokens"] for tau in sorted(cases)}
    machine = ", ".join(f"{name} {value}" for name, value in measured["machine"].items() if value)
    return BenchFile(
        milliseconds={tau: cases[tau]["milliseconds"] for tau in kept},
        own={tau: own(cases[tau]["milliseconds"], cases[tau]["waited_milliseconds"]) for tau in kept},
        batch=batch,
        gflops=_gflops(content, batch, kept),
        tokens={tau: fmean(tokens["total"]) for tau, tokens in kept.items()},
        last={tau: {name: fmean(means) for name, means in tokens["last"].items()} for tau, tokens in kept.items()},
        samples=measured["samples"]["origin"],
        samples_sha256=measured["samples"]["sha256"],
        created=measured["created"],
        machine=machine,
        caveats=parse_measurement(measured).caveats,
    )


def _gflops(content: Mapping[str, Any], batch: int, temperatures: Collection[float]) -> dict[float, float] | None:
    """GFLOPs of a request by temperature; no schema describes what a result holds beside the measurement."""
    found = {}
    summaries = content.get("summaries")
    for summary in summaries if isinstance(summaries, list) else ():
        match summary:
            case {"case": {"temperature": float() | int() as tau, "batch": number}, "gflops": float() as gflops}:
                if number == batch and math.isfinite(gflops) and gflops > 0:
                    found[float(tau)] = gflops
    return {tau: found[tau] for tau in temperatures} if found.keys() >= set(temperatures) else None
