"""The numbers of the page's plots as a table for the terminal."""

from statistics import fmean

from rich.table import Table

from export.artifact.manifest import Manifest
from export.bench.latency import summarize
from export.bench.words import milliseconds
from export.report.measurements import total_tokens
from export.report.page import Measurements, request_count, speed_ups


def costs_table(manifest: Manifest, measured: Measurements) -> Table:
    """The numbers of the page's plots, a row per temperature."""
    table = Table(title=f"{manifest.artifact}: one request, by temperature", caption=measured.samples)
    gflops = measured.gflops
    gains = speed_ups(measured)
    columns = ("temperature", "calls", "p50 ms", "p90 ms", "p99 ms", "dense / pruned", "tokens")
    for column in (*columns, *(["GFLOPs"] if gflops is not None else [])):
        table.add_column(column, justify="right")
    for temperature, times in measured.times.items():
        tokens = fmean(total_tokens(measured.counts[temperature], measured.images).tolist())
        latency = summarize(times)
        percentiles = map(milliseconds, (latency.p50, latency.p90, latency.p99))
        cells = [f"{temperature:g}", str(latency.calls), *percentiles, gains.get(temperature, ""), f"{tokens:.1f}"]
        table.add_row(*cells, *([f"{gflops[temperature]:.3f}"] if gflops is not None else []))
    return table


def notes(measured: Measurements) -> list[str]:
    """Caveats of the numbers of `costs_table`, a sentence each."""
    found = ["latencies are of the torch model, not of the plan"] if measured.of_torch else []
    bench = measured.bench
    if bench is not None and not measured.alike:
        found.append(f"latencies are of other calls than tokens are: of {request_count(bench)} each, {bench.samples}")
    return [*found, *measured.caveats]
