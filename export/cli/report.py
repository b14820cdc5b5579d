"""`python -m export report`: one page that shows what an artifact is and does."""

from contextlib import suppress
from pathlib import Path

import click

from export.cli.common import PATH, errors_console, execution_options, output_console, raise_interrupts
from export.engine.op_library import Provider
from madtp.console.command import allow_outside


@click.command(short_help="Write a page about an artifact.")
@click.argument("artifacts", type=PATH, nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("-o", "--output", type=PATH, default=Path("report.html"), show_default=True, help="HTML file to write.")
@click.option("--ckpt", type=PATH, help="Checkpoint of the artifact: for GFLOPs, and for plans that cannot run here.")
@click.option("--samples", type=PATH, metavar="DIR", help="Folder of samples.  [default: the default samples]")
@allow_outside
@click.option("--synthetic", is_flag=True, help="Run random pixels and ids; their token counts mean little.")
@click.option("--bench", type=PATH, metavar="JSON", help="Latencies from `bench --json`.  [default: measured now]")
@click.option(
    "--operating-points", "points", type=PATH, metavar="JSON", help="Show what `calibration temperature` measured."
)
@click.option(
    "--temperature", type=float, multiple=True, help="Temperature besides 0 and the default; may be repeated."
)
@execution_options
def command(
    artifacts: tuple[Path, ...],
    output: Path,
    ckpt: Path | None,
    samples: Path | None,
    allow_outside: bool,
    synthetic: bool,
    bench: Path | None,
    points: Path | None,
    temperature: tuple[float, ...],
    library: str | None,
    provider: Provider,
) -> None:
    """Write a page about ARTIFACT (out.json, out.onnx or out.plan): parity, latency, tokens, what was pruned where.

    Further artifacts of the same checkpoint, e.g. of other precisions, are compared with it in a section.

    The page is one HTML file that needs no network.

    \b
    Exit status: 0 written, 2 invalid input or machine, or interrupted.
    """
    from export.artifact.manifest import Manifest
    from export.bench.comparison_report import sentences
    from export.console import ConsoleProgress
    from export.report.costs import costs_table, notes
    from export.report.page import Measurements
    from export.report.run import ReportOptions, report

    raise_interrupts()
    artifact, *others = artifacts
    options = ReportOptions(
        artifact,
        output,
        ckpt,
        samples,
        synthetic,
        bench,
        temperature,
        allow_outside,
        tuple(others),
        library,
        provider,
        points,
    )
    with ConsoleProgress(errors_console(), options.stages) as progress:

        def show(manifest: Manifest, measured: Measurements) -> None:
            progress.stop()
            with suppress(KeyboardInterrupt):  # the work has ended; only its report is cut short
                console = output_console()
                console.print(costs_table(manifest, measured))
                for line in notes(measured):
                    console.print(f"note: {line}", soft_wrap=True)
                for line in [] if measured.comparison is None else sentences(measured.comparison):
                    console.print(line, soft_wrap=True)

        report(options, progress, show)
    output_console().print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)
