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
