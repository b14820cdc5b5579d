"""`python -m export report`: one page that shows what an artifact is and does."""

from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import click
from rich.table import Table

from export.cli.common import PATH, errors_console, output_console, raise_interrupts
from madtp.console.command import allow_outside

if TYPE_CHECKING:
    from export.artifact.manifest import Manifest
    from export.report.page import Measurements


@click.command(short_help="Write a page about an artifact.")
@click.argument("artifact", type=PATH)
@click.option("-o", "--output", type=PATH, default=Path("report.html"), show_default=True, help="HTML file to write.")
@click.option("--ckpt", type=PATH, help="Checkpoint of the artifact: for GFLOPs, and for plans that cannot run here.")
@click.option("--samples", type=PATH, metavar="DIR", help="Samples to run (default: the demo's).")
@allow_outside
@click.option("--synthetic", is_flag=True, help="Run random pixels and ids; their token counts mean little.")
@click.option("--bench", type=PATH, metavar="JSON", help="Latencies from `bench --json` (default: measure here).")
@click.option(
    "--temperature", type=float, multiple=True, help="Temperature to show beside 0 and the default. Repeatable."
)
def command(
    artifact: Path,
    output: Path,
    ckpt: Path | None,
    samples: Path | None,
    allow_outside: bool,
    synthetic: bool,
    bench: Path | None,
    temperature: tuple[float, ...],
) -> None:
    """Write a page about ARTIFACT (out.json, out.onnx or out.plan): parity, latency, tokens, what was pruned where.

    The page is one HTML file that needs no network.

    \b
    Exit status: 0 written, 2 the input or the machine is at fault, or it was interrupted.
    """
    from export.console import ConsoleProgress
    from export.report.run import STAGES, ReportOptions, report

    raise_interrupts()
    options = ReportOptions(artifact, output, ckpt, samples, synthetic, bench, temperature, allow_outside)
    with ConsoleProgress(errors_console(), STAGES) as progress:

        def show(manifest: "Manifest", measured: "Measurements") -> None:
            progress.stop()
            with suppress(KeyboardInterrupt):  # the work has ended; only its report is cut short
                output = output_console()
                output.print(costs_table(manifest, measured))
                for line in notes(measured):
                    output.print(f"note: {line}", soft_wrap=True)

        report(options, progress, show)
    output_console().print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


def costs_table(manifest: "Manifest", measured: "Measurements") -> Table:
    """The numbers of the page's plots, a row per temperature."""
    import numpy as np

    from export.bench.words import milliseconds
    from export.report.measurements import total_tokens
    from export.report.page import PERCENTILES, speed_ups

    table = Table(title=f"{manifest.artifact}: one request, by temperature", caption=measured.samples)
    gflops = measured.gflops
    said = speed_ups(measured)
    for column in (
        "temperature",
        "calls",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "dense / pruned",
        "tokens",
        *(["GFLOPs"] if gflops is not None else []),
    ):
        table.add_column(column, justify="right")
    for temperature, times in measured.times.items():
        tokens = fmean(total_tokens(measured.counts[temperature], measured.images).tolist())
        latency = [milliseconds(float(value)) for value in np.percentile(times, PERCENTILES)]
        cells = [f"{temperature:g}", str(len(times)), *latency, said.get(temperature, ""), f"{tokens:.1f}"]
        table.add_row(*cells, *([f"{gflops[temperature]:.3f}"] if gflops is not None else []))
    return table


def notes(measured: "Measurements") -> list[str]:
    """What to know about the numbers of `costs_table`, a sentence each."""
    found = ["latencies are of the torch model, not of the plan"] if measured.of_torch else []
    bench = measured.bench
    if bench is not None and not measured.alike:
        requests = f"{bench.batch} request{'s' if bench.batch > 1 else ''}"
        found.append(f"latencies are of other calls than tokens are: of {requests} each, {bench.samples}")
    return [*found, *measured.caveats]
