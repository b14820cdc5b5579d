"""Latencies that `python -m export bench --json` wrote (or --save)."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from export.artifact.manifest import Manifest
from export.bench.measurement import measurement_of, parse_measurement, read_content
from export.errors import ReportError


@dataclass(frozen=True)
class BenchFile:
    """A bench result for the smallest batch that was measured; dictionaries are by temperature."""

    milliseconds: dict[float, list[float]]
    own: dict[float, list[float]]  # milliseconds less the time waited for a CPU
    batch: int  # requests per call
    gflops: dict[float, float] | None  # per request; None if the file lacks some, as those of --save do
    tokens: dict[float, float]  # per request, summed over its sequences and layers: mean of the calls
    last: dict[float, dict[str, float]]  # by encoder, mean tokens of a sequence after the last layer
    samples: str  # their origin
    samples_sha256: str  # `export.bench.calls.samples_sha256`
    created: str  # UTC time, ISO 8601
    machine: str
    caveats: list[str]


def read_bench(path: Path, manifest: Manifest) -> BenchFile:
    """The latencies in a result of `python -m export bench`.

    Raises:
        ReportError: unreadable, of another schema, partial, or of another artifact.
    """
    name = f"the bench result '{path}'"
    content = read_content(path, name, ReportError)
    measured = measurement_of(content)
    if measured["artifact"]["files"] != manifest.part_hashes:
        again = "Measure again with python -m export bench ... --json FILE."
        raise ReportError(f"{name} is of another artifact", "The hashes of its files differ.", again)
    parsed = parse_measurement(content)
    batch = min(case.batch for case in parsed.cases)
    cases = {case.temperature: case for case in sorted(parsed.cases) if case.batch == batch}
    kept = {tau: parsed.kept[case] for tau, case in cases.items()}
    machine = ", ".join(f"{name} {value}" for name, value in measured["machine"].items() if value)
    return BenchFile(
        milliseconds={tau: parsed.cases[case].milliseconds for tau, case in cases.items()},
        own={tau: parsed.cases[case].own for tau, case in cases.items()},
        batch=batch,
        gflops=_gflops(content, batch, kept),
        tokens={tau: fmean(tokens.total) for tau, tokens in kept.items()},
        last={tau: {name: fmean(means) for name, means in tokens.last.items()} for tau, tokens in kept.items()},
        samples=parsed.samples["origin"],
        samples_sha256=parsed.samples["sha256"],
        created=measured["created"],
        machine=machine,
        caveats=parsed.caveats,
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
