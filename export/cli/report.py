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
    from export.report.page import Measured


@click.command(short_help="Write a page about an artifact.")
@click.argument("artifact", type=PATH)
@click.option("-o", "--output", type=PATH, default=Path("report.html"), show_default=True, help="The page to write.")
@click.option(
    "--ckpt", type=PATH, help="The checkpoint that it was made from: for GFLOPs, and plans of other machines."
)
@click.option("--samples", type=PATH, metavar="DIR", help="Samples to run; the demo's.")
@allow_outside
@click.option("--synthetic", is_flag=True, help="Run random pixels and ids: their token counts mean little.")
@click.option("--bench", type=PATH, metavar="JSON", help="Latencies of python -m export bench --json; measured here.")
@click.option("--temperature", type=float, multiple=True, help="Beside 0 and the manifest's. May be repeated.")
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
    from export.report.build import STAGES, ReportOptions, report

    raise_interrupts()
    options = ReportOptions(artifact, output, ckpt, samples, synthetic, bench, temperature, allow_outside)
    with ConsoleProgress(errors_console(), STAGES) as progress:

        def show(manifest: "Manifest", measured: "Measured") -> None:
            progress.stop()
            with suppress(KeyboardInterrupt):  # the work has ended; only its report is cut short
                output = output_console()
                output.print(costs_table(manifest, measured))
                for line in notes(measured):
                    output.print(f"note: {line}", soft_wrap=True)

        report(options, progress, show)
    output_console().print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)


def costs_table(manifest: "Manifest", measured: "Measured") -> Table:
    """What the page's figures are of, in numbers: a row a temperature."""
    from export.bench.latency import summarize
    from export.bench.words import milliseconds
    from export.report.measure import total_tokens
    from export.report.page import speed_ups

    table = Table(title=f"{manifest.artifact}: a request, by temperature", caption=measured.samples)
    gflops = measured.gflops
    said = speed_ups(measured)
    for column in (
        "temperature",
        "calls",
        "p50 ms",
        "dense / pruned",
        "tokens",
        *(["GFLOPs"] if gflops is not None else []),
    ):
        table.add_column(column, justify="right")
    for temperature, times in measured.times.items():
        tokens = fmean(total_tokens(measured.counts[temperature], measured.images).tolist())
        p50 = milliseconds(summarize(times).p50)
        cells = [f"{temperature:g}", str(len(times)), p50, said.get(temperature, ""), f"{tokens:.1f}"]
        table.add_row(*cells, *([f"{gflops[temperature]:.3f}"] if gflops is not None else []))
    return table


def notes(measured: "Measured") -> list[str]:
    """What to know about the numbers of `costs_table`, a sentence each."""
    found = ["latencies are of the torch model, not of the plan"] if measured.of_torch else []
    bench = measured.bench
    if bench is not None and not measured.alike:
        requests = f"{bench.batch} request{'s' if bench.batch > 1 else ''}"
        found.append(f"latencies are of other calls than tokens are: of {requests} each, {bench.samples}")
    return [*found, *measured.caveats]
