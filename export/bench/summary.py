"""What follows from a run: the numbers that tables, JSON and Markdown show."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from export.bench.artifact import synchronisations
from export.bench.calls import Case
from export.bench.measurement import Measured
from export.bench.run import BenchResult
from export.bench.statistics import Ratio, Summary, median, paired_ratio, summarize, token_groups
from export.bench.verdict import Outcome, overall
from export.bench.words import SIGNS, sign, times


@dataclass(frozen=True)
class Group:
    """Calls that keep about as many tokens.

    Attributes:
        fewest: tokens of a request, summed over sequences and layers.
        most: likewise.
        latency: of these calls.
    """

    fewest: float
    most: float
    latency: Summary


@dataclass(frozen=True)
class CaseSummary:
    """One case in numbers.

    Attributes:
        latency: of a call, wall-clock.
        device: GPU time of a call; None where it was not measured.
        requests_per_second: at the mean latency.
        tokens: by encoder, mean tokens of a sequence after the last layer.
        gflops: multiply-adds (1e9) of a request, None where it is not known for this batch.
        groups: fewest tokens first.
        runs: of each part in a call, at the mean.
        synchronisations: by part, how often the host waits for the device in a call.
    """

    case: Case
    latency: Summary
    device: Summary | None
    requests_per_second: float
    tokens: dict[str, float]
    gflops: float | None
    groups: list[Group]
    runs: dict[str, float]
    synchronisations: dict[str, float]


@dataclass(frozen=True)
class SpeedUp:
    """What pruning brings.

    Attributes:
        case: the pruned one.
        achieved: dense over pruned latency, from paired rounds, less what calls waited for a CPU.
        p50: of dense and of pruned calls, wall-clock milliseconds.
        gflops: dense over pruned multiply-adds, what could be hoped for; None where they are not known.
    """

    case: Case
    achieved: Ratio
    p50: tuple[float, float]
    gflops: float | None

    @property
    def said(self) -> str:
        """In words."""
        return times(self.achieved, *self.p50)

    @property
    def efficiency(self) -> float | None:
        """The share of the saved arithmetic that became time."""
        return None if self.gflops is None else self.achieved.ratio / self.gflops


def case_summaries(result: BenchResult) -> list[CaseSummary]:
    """Every case, in the order in which they were measured."""
    return [_summarize(result, case, measured) for case, measured in result.measurement.cases.items()]


def _summarize(result: BenchResult, case: Case, measured: Measured) -> CaseSummary:
    latency = summarize(measured.milliseconds)
    calls = len(measured.kept.total)
    groups = []
    for members in token_groups(measured.kept.total):
        chosen = set(members)
        values = [value for number, value in enumerate(measured.milliseconds) if number % calls in chosen]
        if values:  # an interrupted run may not have come to these calls
            totals = [measured.kept.total[index] for index in members]
            groups.append(Group(min(totals), max(totals), summarize(values)))
    tokens = {encoder: float(np.mean(values)) for encoder, values in measured.kept.last.items()}
    device = None if measured.device is None else summarize(measured.device)
    throughput = 1e3 * case.batch / latency.mean
    runs = result.runs[case]
    waits = {part: runs[part] * count for part, count in synchronisations(result.described.manifest).items()}
    return CaseSummary(case, latency, device, throughput, tokens, request_gflops(result, case), groups, runs, waits)


def gflops_are_profiled(result: BenchResult) -> bool:
    """Whether multiply-adds are of the very samples that were timed."""
    return any(found.gflops is not None for found in result.operators.values())


def request_gflops(result: BenchResult, case: Case) -> float | None:
    """Multiply-adds (1e9) of a request: profiled here, else as the manifest counted them for single requests."""
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
    for case, measured in cases.items():
        dense = Case(0.0, case.batch)
        if case == dense:
            continue
        achieved = paired_ratio(cases[dense].own, measured.own)
        many, few = request_gflops(result, dense), request_gflops(result, case)
        p50 = median(cases[dense].milliseconds), median(measured.milliseconds)
        found.append(SpeedUp(case, achieved, p50, many / few if many and few else None))
    return found


def losses(result: BenchResult) -> dict[str, float]:
    """Where the saved arithmetic did not become time: milliseconds a request, by operator, the most first.

    Of the most pruned case of the smallest batch: by how much an operator takes longer than if its time had shrunk as
    the multiply-adds did. Empty where they are not known.
    """
    left = arithmetic_left(result)
    if left is None:
        return {}
    cases = smallest_batch(result.operators)
    dense, pruned = (result.operators[case].milliseconds for case in (cases[0], cases[-1]))
    lost = {name: pruned.get(name, 0.0) - dense.get(name, 0.0) * left for name in {**pruned, **dense}}
    return dict(sorted(lost.items(), key=lambda entry: -entry[1]))


def arithmetic_left(result: BenchResult) -> float | None:
    """Share of the dense multiply-adds that are left in the most pruned case that was profiled; None: not known."""
    cases = smallest_batch(result.operators)
    if len(cases) < 2:
        return None
    many, few = (request_gflops(result, case) for case in (cases[0], cases[-1]))
    return few / many if many and few else None


def smallest_batch(cases: Iterable[Case]) -> list[Case]:
    """Those of the smallest batch, dense first."""
    found = sorted(cases)
    return [case for case in found if case.batch == min(other.batch for other in found)]


def verdict_sign(result: BenchResult) -> str:
    """What became of all cases, in a word or a few; why there is no verdict where there is none."""
    if not result.verdicts:
        return "interrupted" if result.measurement.partial else "nothing was compared"
    found = overall(result.verdicts)
    noisy = [sign(verdict) for verdict in result.verdicts if verdict.too_noisy]
    return noisy[0] if found == Outcome.UNDECIDED and noisy else SIGNS[found]


def to_json(result: BenchResult) -> dict[str, Any]:
    """Everything: the measurement as `--save` keeps it, and all that follows from it. Unknown numbers are null."""
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
                    "latency": asdict(summarize(timed.milliseconds)),
                    "milliseconds": timed.milliseconds,
                    "waited_milliseconds": timed.waited,
                }
                for case, timed in result.earlier.items()
            ],
        },
        "notes": [*result.notes, *result.measurement.caveats],
        "interrupted": result.interrupted,
    }
    finite: dict[str, Any] = _finite(content)
    return finite


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
