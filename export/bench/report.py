"""The output of a run: tables, Markdown for a pull request, JUnit XML."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from rich.table import Table

from export.bench.environment import clocks
from export.bench.measurement import Measurement
from export.bench.run import BenchResult
from export.bench.statistics import CONFIDENCE
from export.bench.summary import (
    CaseSummary,
    SpeedUp,
    arithmetic_left,
    case_summaries,
    gflops_are_profiled,
    losses,
    smallest_batch,
    speed_ups,
    verdict_sign,
)
from export.bench.verdict import CaseVerdict, Verdict
from export.bench.words import SIGNS, bounds, floor, half_width, milliseconds, percent, sentence, sign
from export.runtime.execution import execution_words
from madtp.console.junit import JUnitCase, JUnitSuite, junit_kind, junit_xml
from madtp.errors import printable
from madtp.files.outputs import marked_kind

TOP_OPERATORS = 12
NOT_COMPARED = "nothing was compared: give --against or --against-engine"
INTERVAL = f"{100 * CONFIDENCE:g} % interval"
MARK = "<!-- madtp-deploy bench -->"
MARKDOWN = marked_kind("a table of bench", MARK)
JUNIT = junit_kind("bench")


def tables(result: BenchResult) -> list[Table]:
    """All tables that have rows."""
    makers = (latency_table, group_table, speed_up_table, operator_table, verdict_table)
    return [table for table in (make(result) for make in makers) if table.row_count]


def table_of(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], caption: str | None = None) -> Table:
    """Names in the first column, numbers in the others."""
    table = Table(title=title, caption=caption)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    return table


def latency_table(result: BenchResult) -> Table:
    """A row for every case."""
    measurement, summaries = result.measurement, case_summaries(result)
    rounds = min(summary.latency.calls for summary in summaries)
    warmed = f"warm-up {measurement.warm_up.rounds}" + ("" if measurement.warm_up.stable else ", not stable")
    caption = f"{measurement.samples['origin']}; {rounds} rounds ({warmed}), ended by: {measurement.ended}"
    gpu = ["GPU p50"] if any(summary.device is not None for summary in summaries) else []
    columns = ("", "p50", "p90", "p99", "mean", "stdev", "p50 CI ±", *gpu, "requests/s", "tokens kept", "GFLOPs")
    rows = []
    for summary in summaries:
        latency = summary.latency
        numbers = (latency.p50, latency.p90, latency.p99, latency.mean, latency.deviation)
        rows.append(
            [
                str(summary.case),
                *map(milliseconds, numbers),
                half_width(latency.relative_half_width),
                *([] if summary.device is None else [milliseconds(summary.device.p50)]),
                f"{summary.requests_per_second:.1f}",
                ", ".join(f"{encoder} {tokens:.1f}" for encoder, tokens in summary.tokens.items()),
                "" if summary.gflops is None else f"{summary.gflops:.3f}",
            ]
        )
    return table_of(f"{result.described.path}: milliseconds per call", columns, rows, caption)


def group_table(result: BenchResult) -> Table:
    """Latency by the tokens that requests keep, for cases with more than one group."""
    rows = [
        [
            str(summary.case),
            f"{group.fewest:.0f} to {group.most:.0f}",
            str(group.latency.calls),
            *map(milliseconds, (group.latency.p50, group.latency.p90, group.latency.p99)),
        ]
        for summary in case_summaries(result)
        for group in (summary.groups if len(summary.groups) > 1 else [])
    ]
    title = "Latency by tokens kept (of a request, all sequences and layers), milliseconds per call"
    return table_of(title, ("", "tokens", "calls", "p50", "p90", "p99"), rows)


def speed_up_table(result: BenchResult) -> Table:
    """Dense over pruned: the speed-up beside what the saved arithmetic promises."""
    rows = [
        [
            str(speed_up.case),
            speed_up.said,
            "" if speed_up.gflops is None else f"{speed_up.gflops:.2f}x",
            _efficiency(speed_up),
        ]
        for speed_up in speed_ups(result)
    ]
    title = f"Dense over pruned ({INTERVAL}); undecided if it includes 1"
    return table_of(title, ("", "latency", "GFLOPs", "efficiency"), rows)


def _efficiency(speed_up: SpeedUp) -> str:
    """Empty if GFLOPs are unknown, or whether it is faster at all."""
    if speed_up.efficiency is None or speed_up.said.startswith(SIGNS[Verdict.UNDECIDED]):
        return ""
    return f"{100 * speed_up.efficiency:.0f} %"


def operator_table(result: BenchResult) -> Table:
    """Time by operator under the profiler: dense beside the most pruned case of the smallest batch."""
    cases = smallest_batch(result.operators)
    if len(cases) < 2:
        return Table()
    lost, left = losses(result), arithmetic_left(result)
    profiles = [result.operators[case] for case in (cases[0], cases[-1])]
    dense, pruned = (each.milliseconds for each in profiles)
    calls = [each.calls for each in profiles]  # of the same inputs
    totals = sum(dense.values()), sum(pruned.values())
    names = sorted({*dense, *pruned}, key=lambda name: -max(dense.get(name, 0.0), pruned.get(name, 0.0)))
    shown, others = names[:TOP_OPERATORS], names[TOP_OPERATORS:]
    groups = [(name, [name]) for name in sorted(shown, key=lambda name: -(lost or pruned).get(name, 0.0))]
    groups += [(f"{len(others)} others", others)] if others else []
    rows = []
    for name, members in [*groups, ("all", names)]:
        slow, fast, more = (sum(series.get(member, 0.0) for member in members) for series in (dense, pruned, lost))
        rows.append(
            [
                name,
                f"{slow:.3f}",
                f"{100 * slow / totals[0]:.0f} %",
                f"{fast:.3f}",
                f"{100 * fast / totals[1]:.0f} %",
                _agreed(f"{slow / fast:.2f}x", 1.0, calls, members) if fast > 0 else "",
                *([] if left is None else [_agreed(f"{more:+.3f}", left, calls, members)]),
            ]
        )
    caption = f"medians of {len(calls[0])} calls; undecided if these disagree"
    if lost:
        caption += "; lost: how much longer an operator takes than if its time had shrunk as the GFLOPs did"
    columns = (
        "operator",
        str(cases[0]),
        "share",
        str(cases[-1]),
        "share",
        "dense / pruned",
        *(["lost"] if lost else []),
    )
    title = f"Time by operator, milliseconds per request under {profiles[0].profiler}"
    return table_of(title, columns, rows, caption)


def _agreed(number: str, left: float, calls: Sequence[Sequence[Mapping[str, float]]], operators: Sequence[str]) -> str:
    """A number, if most of the calls agree that `operators` take more, or less, than that share of the dense time."""
    slow, fast = ([sum(call.get(name, 0.0) for name in operators) for call in each] for each in calls)
    low, high = np.percentile(np.subtract(fast, np.multiply(slow, left)), [10, 90])
    return "undecided" if low <= 0 <= high else number


def verdict_table(result: BenchResult) -> Table:
    """The verdicts; p50s are those of the other tables, and a slow-down that means nothing is not shown."""
    rows = [
        [
            str(verdict.case),
            *(("", "") if verdict.p50 is None else map(milliseconds, verdict.p50)),
            *(("", "") if verdict.too_noisy else (percent(verdict.slowdown.ratio), bounds(verdict.slowdown))),
            f"{100 * verdict.allowed:g} %",
            floor(verdict.noise_floor),
            sign(verdict),
        ]
        for verdict in result.verdicts
    ]
    columns = ("", "baseline p50", "current p50", "slow-down", INTERVAL, "allowed", "noise floor", "verdict")
    return table_of(f"Slower? Compared {result.method}", columns, rows)


def verdict_line(result: BenchResult) -> str:
    """The exit status in words."""
    if result.measurement.partial:
        return "verdict: none, measuring was interrupted"
    if not result.verdicts:
        return f"verdict: none, {NOT_COMPARED}"
    outcomes = [verdict.outcome for verdict in result.verdicts]
    counted = [f"{outcomes.count(each)} {SIGNS[each].lower()}" for each in Verdict if each in outcomes]
    allowed = f"{100 * result.verdicts[0].allowed:g} % slower"
    cases = f"{len(outcomes)} case{'s' if len(outcomes) > 1 else ''}"
    return f"verdict: {verdict_sign(result)} (of {cases} {', '.join(counted)}; allowed {allowed}; {result.method})"


def lines(result: BenchResult) -> list[str]:
    """Machine, host synchronisations, notes and the verdict, a line each."""
    measurement, summaries = result.measurement, case_summaries(result)
    backend = measurement.artifact["backend"]
    notes = [*result.notes, *measurement.caveats, *filter(None, map(_contradiction, result.verdicts))]
    if any(summary.gflops for summary in summaries) and not gflops_are_profiled(result):
        counted = result.described.manifest.validation.samples
        notes.insert(0, f"GFLOPs are the manifest's, of the export's samples: {counted}")
    found = [
        *machine_lines(measurement),
        f"backend: {backend['name']} {backend['version']}, {measurement.artifact['precision']}, "
        f"layout {measurement.artifact['layout']}{', CUDA graphs' if measurement.cuda_graphs else ''}; "
        "times are wall-clock, results on the host",
        *([] if measurement.execution is None else [f"runs {execution_words(measurement.execution)}"]),
        f"host synchronisations per call, by the manifest: {_waits(summaries)}",
        *(f"note: {note}" for note in notes),
    ]
    if Verdict.UNDECIDED in {verdict.outcome for verdict in result.verdicts}:
        found.append("undecided: measure longer (--seconds), on a quieter machine, or side by side (--against-engine)")
    return [*found, verdict_line(result)]


def machine_lines(measurement: Measurement) -> list[str]:
    """The machine, and what it was doing, a line each."""
    machine = measurement.machine
    device = f"{', '.join(machine.gpus)}, driver {machine.driver}" if machine.gpus else "no GPU"
    return [
        f"machine: {machine.processor}, {machine.cores} cores, {machine.threads} threads, {device}; "
        f"load {measurement.before.load:g} before, {measurement.after.load:g} after",
        f"clocks: before {clocks(measurement.before)}; after {clocks(measurement.after)}",
    ]


def _contradiction(verdict: CaseVerdict) -> str:
    """Why a verdict and the p50s beside it disagree; empty if they do not."""
    if verdict.p50 is None:
        return ""
    baseline, current = verdict.p50
    failed = verdict.outcome == Verdict.FAIL and current <= baseline
    passed = verdict.outcome == Verdict.PASS and current > baseline * (1 + verdict.allowed)
    if not failed and not passed:
        return ""
    reason = "which excludes waiting for a CPU, and side by side compares calls of the same input"
    return f"{verdict.case}: the p50s disagree with the slow-down, {reason}"


def _waits(summaries: Iterable[CaseSummary]) -> str:
    """In words; for every case if they differ: a decoder runs as often as it generates ids."""
    texts = {}
    for summary in summaries:
        shown = []
        for part, waits in summary.synchronisations.items():
            runs = summary.runs[part]
            shown.append(f"{part} {waits:.4g}" + (f" ({runs:.3g} runs)" if waits and runs != 1 else ""))
        texts[str(summary.case)] = ", ".join(shown)
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{case}: {text}" for case, text in texts.items())


def markdown(result: BenchResult) -> str:
    """A short table for a pull request."""
    verdicts = {verdict.case: verdict for verdict in result.verdicts}
    gains = {speed_up.case: speed_up.said for speed_up in speed_ups(result)}
    head = ["case", "p50 ms", "p50 CI ±", "p90 ms", "p99 ms", "requests/s", "dense / pruned", "slow-down", "verdict"]
    rows = [head, ["---"] * len(head)]
    for summary in case_summaries(result):
        latency, verdict = summary.latency, verdicts.get(summary.case)
        slowdown = ""
        if verdict is not None and not verdict.too_noisy:
            slowdown = f"{percent(verdict.slowdown.ratio)} ({bounds(verdict.slowdown)})"
        rows.append(
            [
                str(summary.case),
                milliseconds(latency.p50),
                half_width(latency.relative_half_width),
                milliseconds(latency.p90),
                milliseconds(latency.p99),
                f"{summary.requests_per_second:.1f}",
                gains.get(summary.case, ""),
                slowdown,
                "not compared" if verdict is None else sign(verdict),
            ]
        )
    *notes, verdict_text = lines(result)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    title = f"**Latency of `{result.described.manifest.artifact}`**"
    state = " (interrupted, partial)" if result.measurement.partial else ""
    under = "\n".join(f"- {line}" for line in notes)
    return printable(f"{title}{state}\n{MARK}\n\n**{verdict_text}**\n\n{table}\n\n{under}\n")


def junit(result: BenchResult) -> str:
    """JUnit XML with a test case for every case: failed if it is slower, skipped if that is undecided or was not asked.

    Numbers and notes are the output of each, and verdict and caveats properties of all.
    """
    *notes, verdict_text = lines(result)
    properties = [("verdict", verdict_text.removeprefix("verdict: "))]
    properties += [("caveat", caveat) for caveat in (*result.notes, *result.measurement.caveats)]
    verdicts = {verdict.case: verdict for verdict in result.verdicts}
    cases = []
    for summary in case_summaries(result):
        case, verdict = summary.case, verdicts.get(summary.case)
        text = "" if verdict is None else sentence(verdict)
        skipped = NOT_COMPARED if verdict is None else text if verdict.outcome == Verdict.UNDECIDED else ""
        cases.append(
            JUnitCase(
                str(case),
                f"bench.{result.measurement.artifact['task']}",
                failed=text if verdict is not None and verdict.outcome == Verdict.FAIL else "",
                skipped="interrupted" if result.measurement.partial else skipped,
                seconds=sum(result.measurement.cases[case].milliseconds) / 1e3,
                output="\n".join(filter(None, [_latency(summary), text, *notes])),
            )
        )
    return junit_xml("bench", [JUnitSuite("madtp bench", cases, properties)])


def _latency(summary: CaseSummary) -> str:
    """The latency of a case in a line."""
    latency = summary.latency
    percentiles = ", ".join(f"{name} {milliseconds(getattr(latency, name))} ms" for name in ("p90", "p99"))
    known = half_width(latency.relative_half_width)
    return f"p50 {milliseconds(latency.p50)} ms ({known}), {percentiles}, {latency.calls} calls"
