"""The page: what was measured and what the manifest records, as HTML."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import numpy as np
import torch

from calibration.temperature_file import TemperatureFile
from export.artifact.manifest import KEPT_FAILURES, Manifest, OutputEntry, Validation, VerdictEntry
from export.bench.comparison import Comparison
from export.bench.comparison_report import COLUMNS, explanation, heading, rows, sentences
from export.bench.latency import summarize
from export.bench.statistics import CONFIDENCE, paired_ratio
from export.bench.words import milliseconds, times
from export.engine.backends import Backend, find_gpus
from export.report.bench_file import BenchFile
from export.report.examples import Example
from export.report.measurements import Counts, total_tokens
from export.report.operating_points import points_section
from export.report.plots import latency_plot, pareto_plot, temperature_name, tokens_plot
from madtp.files.outputs import marked_kind

PAGE = marked_kind("a page of report", '<meta name="generator" content="madtp-deploy report">')
GFLOPS, TOKENS = "GFLOPs per request", "tokens per request, summed over sequences and layers"


@dataclass(frozen=True)
class Measurements:
    """What was measured for a page; mappings are by temperature."""

    samples: str  # their origin
    images: int  # per request
    alike: bool  # `times` are of calls with one of these samples each, as `counts` and `gflops` are
    ran: str  # the runtime and its version, or "torch" in place of a plan
    backend: Backend  # the artifact's, on this machine
    least: int  # requests per call, the profile's minimum
    counts: Mapping[float, Counts]  # at least for 0 and the default temperature
    gflops: Mapping[float, float] | None  # per request; None without the checkpoint
    times: Mapping[float, Sequence[float]]  # milliseconds of every call
    bench: BenchFile | None  # the source of `times`; None if they were measured for the page
    shown: float | None  # temperature of `examples`; None if nothing prunes
    watched: str | None  # what recorded the source ids of the examples; None if nothing could
    examples: Sequence[Example]
    words_fit: bool  # the ids are those of the words; otherwise answers mean little
    caveats: Sequence[str]  # what makes `times` less reliable, a sentence each
    comparison: Comparison | None = None  # with other artifacts of the checkpoint; None if there are none
    points: TemperatureFile | None = None  # operating points of the checkpoint; None if no file was given

    @property
    def of_torch(self) -> bool:
        """`times` are of the torch model, in the place of a plan."""
        return self.bench is None and not self.backend.can_run


@dataclass(frozen=True)
class Table:
    """A table: its head and rows, all text; the first column names the rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def render(manifest: Manifest, measured: Measurements) -> str:
    """The page as HTML that refers to nothing outside of itself. Text from outside is escaped."""
    default = float(manifest.temperature)
    costs, cost_name = _costs(measured)
    shown = default if measured.shown is None else measured.shown
    call = _call_name(measured)
    gains = speed_ups(measured)
    return _template().render(
        manifest=manifest,
        measured=measured,
        default=default,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=this_machine(),
        files=_files(manifest),
        verdicts=verdicts(manifest, measured),
        summary=_summary(measured, default, gains),
        parity=parity_table(manifest.validation),
        later=manifest.validation.verdict,
        validated=validated_table(manifest.validation.verdict),
        failures=[failure for entry in manifest.validation.parity for failure in entry.failures],
        kept_failures=KEPT_FAILURES,
        recorded=_recorded(manifest.validation),
        latency=_latency(measured, gains),
        latency_plot=latency_plot(measured.times, default, call, gains),
        tokens_at=shown,
        tokens={
            encoder: (tokens_plot(encoder, rows, measured.counts[0.0][encoder]), _tokens(rows))
            for encoder, rows in measured.counts[shown].items()
        },
        cost_title="GFLOPs" if cost_name == GFLOPS else "Tokens",
        pareto_plot=pareto_plot(costs, measured.times, default, cost_name, call),
        pareto=_pareto(measured, costs, cost_name),
        compared=_compared(measured.comparison),
        points=points_section(measured.points),
    )


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("export.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def this_machine() -> str:
    """The machine in a line."""
    gpus = ", ".join(gpu.name for gpu in find_gpus()) or "no GPU"
    return (
        f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, {gpus}, {platform.system()}"
    )


def verdicts(manifest: Manifest, measured: Measurements) -> list[tuple[bool, str]]:
    """Verdicts and whether they are positive: of the latest validation, of the export and of this run."""
    validation = manifest.validation
    passed = [f"at the export parity passed at temperature {entry.temperature:g}" for entry in validation.parity]
    if validation.verdict is not None:  # it took the place of what the manifest said of the artifact
        either = ", of the plan or of the ONNX file that it was built from" if manifest.is_plan else ""
        recorded = [_validated(validation.verdict), *((True, f"{text}{either}") for text in passed)]
    elif validation.artifact == "not run":
        recorded = [
            (False, "at the export the plan was NOT RUN: no GPU of that machine could execute it"),
            *((True, f"{text}, of the ONNX file that it was built from") for text in passed),
        ]
    else:
        recorded = [
            (True, "at the export the artifact was run and compared with the torch model"),
            *((True, f"{text}, of the artifact itself") for text in passed),
        ]
    if measured.backend.can_run:
        this_run = (True, f"run for this page by {measured.ran}")
    else:
        of_torch = "tokens and latency" if measured.bench is None else "tokens (not latency, which bench measured)"
        this_run = (
            False,
            f"NOT RUN for this page: {measured.backend.reason}; {of_torch} below are those of the torch model",
        )
    return [*recorded, this_run]


def _validated(verdict: VerdictEntry) -> tuple[bool, str]:
    date, samples = f"on {verdict.created[:10]}", verdict.samples.origin
    if verdict.status == "failed":
        reasons = [verdict.bisected, *verdict.failures[:1]]
        return False, "; ".join([f"VALIDATION FAILED {date}", *filter(None, reasons)])
    if verdict.status == "not run":
        return False, f"when it was validated {date}, the plan was NOT RUN: its ONNX agrees with torch on {samples}"
    return True, f"validated {date}: it agrees with torch on {samples}"


def validated_table(verdict: VerdictEntry | None) -> Table | None:
    """What the latest validation found, a column for each pair and temperature; None without one."""
    if verdict is None:
        return None
    pairs = verdict.pairs
    names = dict.fromkeys(output.output for pair in pairs for output in pair.outputs)
    found = [{output.output: output for output in pair.outputs} for pair in pairs]
    rows = [
        ("requests compared", [str(pair.requests - pair.explained) for pair in pairs]),
        ("excluded: a score within rounding of the threshold", [str(pair.explained) for pair in pairs]),
    ]
    for name in names:
        outputs = [entry.get(name) for entry in found]
        if any(output and (output.worst != 0 or output.allowed) for output in outputs):  # ids differ or do not
            rows.append((f"{name}: worst |difference|", [_number(output, "worst") for output in outputs]))
            errors = [f"{_number(found, 'error')} ({_number(found, 'allowed')})" if found else "" for found in outputs]
            rows.append((f"{name}: error against the fp64 reference (allowed)", errors))
        cosines = [f"{output.cosine:.7f}" if output and output.cosine is not None else "" for output in outputs]
        if any(cosines):
            rows.append((f"{name}: lowest cosine", cosines))
        if any(output and output.decisions for output in outputs):
            decided = [f"{output.decided} of {output.decisions}" if output else "" for output in outputs]
            rows.append((f"{name}: answers equal", decided))
    rows.append(("layers that kept the same tokens", [f"{pair.layers_equal} of {pair.layers}" for pair in pairs]))
    rows.append(("verdict", ["FAILED" if pair.status == "failed" else "passed" for pair in pairs]))
    head = ["", *(f"{pair.pair}, temperature {pair.temperature:g}" for pair in pairs)]
    return Table(head, [[label, *cells] for label, cells in rows])


def _number(output: OutputEntry | None, key: str) -> str:
    if output is None:
        return ""
    number = getattr(output, key)
    return "not finite" if number is None else f"{number:.1e}"


def parity_table(validation: Validation) -> Table:
    """What the manifest says of parity, a column for each temperature."""
    entries = validation.parity
    encoders = entries[0].mean_tokens if entries else {}
    rows = [
        ("requests compared", [str(entry.requests - entry.explained) for entry in entries]),
        ("excluded: a score within rounding of the threshold", [str(entry.explained) for entry in entries]),
        (
            "worst |difference| (allowed)",
            [f"{entry.worst:.1e} of {entry.worst_output} ({entry.tolerance:.0e})" for entry in entries],
        ),
        (
            "answers equal",
            [f"{entry.decisions_equal} of {entry.requests - entry.explained}" for entry in entries],
        ),
        ("token counts equal, layers", [f"{entry.layers_equal} of {entry.layers}" for entry in entries]),
        *(
            (
                f"{name} tokens after the last layer, mean",
                [f"{entry.mean_tokens[name][-1]:.1f}" for entry in entries],
            )
            for name in encoders
        ),
        ("verdict", ["FAILED" if entry.failures else "passed" for entry in entries]),
    ]
    head = ["", *(f"temperature {entry.temperature:g}" for entry in entries)]
    return Table(head, [[label, *cells] for label, cells in rows])


def _recorded(validation: Validation) -> Table:
    """Latency and GFLOPs that the manifest records."""
    rows = [
        [name, f"{entry.median_ms:.2f}", f"{entry.p90_ms:.2f}", str(entry.calls)]
        for name, entry in validation.latency.items()
    ]
    return Table(["runner", "p50 ms", "p90 ms", "calls"], rows)


def _compared(comparison: Comparison | None) -> dict[str, Any] | None:
    """What the page says of other artifacts of the checkpoint."""
    if comparison is None:
        return None
    return {
        "tables": {heading(comparison, case): Table(COLUMNS, rows(comparison, case)) for case in comparison.cases},
        "sentences": sentences(comparison),
        "explanation": explanation(comparison),
        "caveats": comparison.measurement.caveats,
    }


def _files(manifest: Manifest) -> list[tuple[str, str, str]]:
    """(what, name, sha256) of every file that the artifact consists of."""
    files = []
    for part in manifest.parts:
        files.append((f"part {part.name}", part.artifact, part.sha256))
        if part.external_data is not None:
            files.append((f"weights of {part.name}", part.external_data.file, part.external_data.sha256))
    library = manifest.plugins.library
    if library is not None:
        files.append(("plugin library", library.file or "within the plan", library.sha256))
    vocabulary = manifest.preprocessing.text.vocabulary
    if vocabulary is not None:
        files.append(("vocabulary", vocabulary.file or "of a package", vocabulary.sha256))
    return files


def _summary(measured: Measurements, default: float, gains: Mapping[float, str]) -> list[str]:
    """The numbers that a reader looks for, default against dense."""
    if default == 0:
        return ["the default temperature is 0: the artifact runs dense unless it is told otherwise"]
    dense, pruned = (total_tokens(measured.counts[tau], measured.images).mean() for tau in (0.0, default))
    lines = [f"{100 * pruned / dense:.0f} % of the dense model's tokens are left, summed over what leaves each layer"]
    if measured.gflops is not None:
        lines.append(f"{measured.gflops[0.0] / measured.gflops[default]:.2f} times fewer GFLOPs")
    if {0.0, default} <= measured.times.keys():
        lines.append(_speed_up(measured, default, gains[default]))
    return lines


def _speed_up(measured: Measurements, default: float, gains: str) -> str:
    """Medians, and the ratio of calls of the same round, which is what `bench` calls the speed-up."""
    slow, fast = (milliseconds(summarize(measured.times[tau]).p50) for tau in (0.0, default))
    text = (
        f"{slow} ms dense, {fast} ms pruned, p50"
        f"{' of torch, not of the plan' if measured.of_torch else ''}; "
        f"dense / pruned, call by call: {gains} ({100 * CONFIDENCE:g} % interval)"
    )
    if measured.bench is not None and not measured.alike:
        other, gflops = measured.bench, measured.bench.gflops
        text += f"; these are other calls, of {request_count(other)} each, {other.samples}"
        if gflops is not None:
            text += f": {gflops[0.0] / gflops[default]:.2f} times fewer GFLOPs there"
    return text


def speed_ups(measured: Measurements) -> dict[float, str]:
    """Dense over pruned in words, by temperature: of calls of the same round, less what they waited for a CPU."""
    steady = measured.times if measured.bench is None else measured.bench.own
    if 0.0 not in steady:
        return {}
    p50 = {tau: summarize(values).p50 for tau, values in measured.times.items()}
    return {
        tau: times(paired_ratio(steady[0.0], values), p50[0.0], p50[tau]) for tau, values in steady.items() if tau > 0
    }


def request_count(bench: BenchFile) -> str:
    """The requests of a call, in words."""
    return f"{bench.batch} request{'s' if bench.batch > 1 else ''}"


def _call_name(measured: Measurements) -> str:
    """What an axis of latencies is called."""
    batch = measured.least if measured.bench is None else measured.bench.batch
    of_torch = "\n(torch, not the plan)" if measured.of_torch else ""
    return f"milliseconds per call{f' of {batch} requests' if batch > 1 else ''}{of_torch}"


def _latency(measured: Measurements, gains: Mapping[float, str]) -> Table:
    rows = []
    for temperature, values in measured.times.items():
        latency = summarize(values)
        percentiles = map(milliseconds, (latency.p50, latency.p90, latency.p99))
        cells = [*percentiles, str(latency.calls), gains.get(temperature, "")]
        rows.append([temperature_name(temperature), *cells])
    return Table(["temperature", "p50 ms", "p90 ms", "p99 ms", "calls", "dense / pruned"], rows)


def _tokens(counts: np.ndarray[Any, np.dtype[np.int64]]) -> Table:
    """[samples, layers] as a table of layers."""
    rows = []
    for layer, values in enumerate(counts.T, start=1):
        low, first, median, third, high = np.percentile(values, [0, 25, 50, 75, 100])
        cells = [f"{values.mean():.1f}", f"{first:g}", f"{median:g}", f"{third:g}", f"{low:g} to {high:g}"]
        rows.append([str(layer), *cells])
    return Table(["layer", "mean", "25 %", "median", "75 %", "range"], rows)


def _costs(measured: Measurements) -> tuple[dict[float, float], str]:
    """What a request of the calls that were timed costs at each temperature, and in what."""
    bench = None if measured.alike else measured.bench
    gflops = measured.gflops if bench is None else bench.gflops
    if gflops is not None:
        return {tau: gflops[tau] for tau in measured.times}, GFLOPS
    if bench is not None:
        return bench.tokens, TOKENS
    return {tau: float(total_tokens(measured.counts[tau], measured.images).mean()) for tau in measured.times}, TOKENS


def _pareto(measured: Measurements, costs: Mapping[float, float], cost_name: str) -> Table:
    if measured.bench is None or measured.alike:
        last = {
            tau: {encoder: float(rows[:, -1].mean()) for encoder, rows in counts.items()}
            for tau, counts in measured.counts.items()
        }
    else:
        last = measured.bench.last
    rows, digits = [], ".4g" if cost_name == GFLOPS else ".0f"
    for temperature, values in measured.times.items():
        ends = [f"{tokens:.1f}" for tokens in last[temperature].values()]
        rows.append(
            [
                temperature_name(temperature),
                format(costs[temperature], digits),
                milliseconds(summarize(values).p50),
                *ends,
            ]
        )
    encoders = [f"{encoder} tokens at the end" for encoder in next(iter(last.values()))]
    return Table(["temperature", cost_name, "p50 ms", *encoders], rows)
