"""What follows from a run: the numbers that tables, JSON and Markdown show."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.bench.artifact import synchronisations
from export.bench.calls import Case
from export.bench.latency import Latency, summarize
from export.bench.measure import Series
from export.bench.run import BenchResult
from export.bench.statistics import Ratio, paired_ratio, token_groups
from export.bench.verdict import Verdict, overall
from export.bench.words import SIGNS, sign, times


@dataclass(frozen=True)
class TokenGroup:
    """Calls that keep about as many tokens: `fewest` to `most` of a request, summed over sequences and layers."""

    fewest: float
    most: float
    latency: Latency


@dataclass(frozen=True)
class CaseSummary:
    """One case in numbers."""

    case: Case
    latency: Latency  # of a call, wall-clock
    device: Latency | None  # GPU time of a call, if it was measured
    requests_per_second: float  # at the mean latency
    tokens: dict[str, float]  # by encoder, mean tokens of a sequence after the last layer
    gflops: float | None  # multiply-adds (1e9) of a request; None if unknown for this batch
    groups: list[TokenGroup]  # fewest tokens first
    runs: dict[str, float]  # of each part in a call, on average
    synchronisations: dict[str, float]  # by part, how often the host waits for the device in a call


@dataclass(frozen=True)
class SpeedUp:
    """What pruning brings."""

    case: Case  # the pruned one
    achieved: Ratio  # dense over pruned latency, from paired rounds, without waiting for a CPU
    p50: tuple[float, float]  # of dense and of pruned calls, wall-clock milliseconds
    gflops: float | None  # dense over pruned multiply-adds, the most to expect; None if unknown

    @property
    def said(self) -> str:
        """The speed-up in words."""
        return times(self.achieved, *self.p50)

    @property
    def efficiency(self) -> float | None:
        """The share of the saved arithmetic that became time."""
        return None if self.gflops is None else self.achieved.ratio / self.gflops


def case_summaries(result: BenchResult) -> list[CaseSummary]:
    """Every case, in the order in which they were measured."""
    waits = synchronisations(result.described.manifest)
    found = []
    for case, series in result.measurement.cases.items():
        latency, kept, runs = summarize(series.milliseconds), result.measurement.kept[case], result.runs[case]
        found.append(
            CaseSummary(
                case,
                latency,
                None if series.device is None else summarize(series.device),
                1e3 * case.batch / latency.mean,
                {encoder: float(np.mean(values)) for encoder, values in kept.last.items()},
                request_gflops(result, case),
                _groups(series, kept.total),
                runs,
                {part: runs[part] * count for part, count in waits.items()},
            )
        )
    return found


def _groups(series: Series, totals: list[float]) -> list[TokenGroup]:
    groups = []
    for members in token_groups(totals):
        values = [value for number, value in enumerate(series.milliseconds) if number % len(totals) in members]
        if values:  # an interrupted run may not have come to these calls
            kept = [totals[index] for index in members]
            groups.append(TokenGroup(min(kept), max(kept), summarize(values)))
    return groups


def gflops_are_profiled(result: BenchResult) -> bool:
    """Whether multiply-adds are those of the samples that were timed."""
    return any(found.gflops is not None for found in result.operators.values())


def request_gflops(result: BenchResult, case: Case) -> float | None:
    """Multiply-adds (1e9) of a request: profiled, else the manifest's, which are of single requests."""
    if gflops_are_profiled(result):
        return result.operators[case].gflops
    counted = result.described.manifest.validation.gflops
    kinds = {result.described.manifest.temperature: "pruned", 0.0: "dense"}
    if case.batch != 1 or case.temperature not in kinds:
        return None
    return counted.dense if kinds[case.temperature] == "dense" else counted.pruned


def speed_ups(result: BenchResult) -> list[SpeedUp]:
    """Of every pruned case over the dense one of its batch."""
    cases = result.measurement.cases
    found = []
    for case, series in cases.items():
        dense = Case(0.0, case.batch)
        if case != dense:
            many, few = request_gflops(result, dense), request_gflops(result, case)
            achieved = paired_ratio(cases[dense].own, series.own)
            found.append(SpeedUp(case, achieved, (cases[dense].p50, series.p50), many / few if many and few else None))
    return found


def losses(result: BenchResult) -> dict[str, float]:
    """Where the saved arithmetic did not become time: milliseconds per request, by operator, the most first.

    In the most pruned case of the smallest batch: how much longer an operator takes than if its time had shrunk as the
    multiply-adds did. Empty if these are unknown.
    """
    left = arithmetic_left(result)
    if left is None:
        return {}
    cases = smallest_batch(result.operators)
    dense, pruned = (result.operators[case].milliseconds for case in (cases[0], cases[-1]))
    lost = {name: pruned.get(name, 0.0) - dense.get(name, 0.0) * left for name in {**pruned, **dense}}
    return dict(sorted(lost.items(), key=lambda entry: -entry[1]))


def arithmetic_left(result: BenchResult) -> float | None:
    """Share of the dense multiply-adds that the most pruned profiled case still makes; None if unknown."""
    cases = smallest_batch(result.operators)
    if len(cases) < 2:
        return None
    many, few = (request_gflops(result, case) for case in (cases[0], cases[-1]))
    return few / many if many and few else None


def smallest_batch(cases: Iterable[Case]) -> list[Case]:
    """Cases of the smallest batch, dense first."""
    found = sorted(cases)
    return [case for case in found if case.batch == min(other.batch for other in found)]


def verdict_sign(result: BenchResult) -> str:
    """The verdict on all cases in words, or why there is none."""
    if not result.verdicts:
        return "interrupted" if result.measurement.partial else "nothing was compared"
    found = overall(result.verdicts)
    noisy = [sign(verdict) for verdict in result.verdicts if verdict.too_noisy]
    return noisy[0] if found == Verdict.UNDECIDED and noisy else SIGNS[found]


def to_json(result: BenchResult) -> dict[str, Any]:
    """Everything: the measurement as `--save` writes it, and all that follows from it. Unknown numbers are null."""
    content = {
        "measurement": result.measurement.to_json(),
        "summaries": [asdict(summary) for summary in case_summaries(result)],
        "speed_ups": [
            asdict(speed_up) | {"efficiency": speed_up.efficiency, "said": speed_up.said}
            for speed_up in speed_ups(result)
        ],
        "operators": [{"case": asdict(case), **asdict(found)} for case, found in result.operators.items()],
        "lost_milliseconds": losses(result),
        "gflops_from": "profile" if gflops_are_profiled(result) else "manifest",
        "comparison": {
            "method": result.method or None,
            "verdict": overall(result.verdicts) if result.verdicts else None,
            "said": verdict_sign(result),
            "verdicts": [
                asdict(verdict) | {"too_noisy": verdict.too_noisy, "said": sign(verdict)} for verdict in result.verdicts
            ],
            "earlier": [
                {
                    "case": asdict(case),
                    "latency": asdict(summarize(series.milliseconds)),
                    "milliseconds": series.milliseconds,
                    "waited_milliseconds": series.waited,
                }
                for case, series in result.earlier.items()
            ],
        },
        "notes": [*result.notes, *result.measurement.caveats],
        "interrupted": result.interrupted,
    }
    known: dict[str, Any] = finite(content)
    return known


def finite(value: Any) -> Any:
    """The same for JSON, which has no infinity: null in its place."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
