"""`python -m export report`: one page that shows what an artifact is and does."""

from pathlib import Path

import click

from export.commands.common import PATH, errors_console, output_console, raise_interrupts
from madtp.command import allow_outside


@click.command()
@click.argument("artifact", type=PATH, metavar="OUT.JSON")
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
    """Write a page about an artifact: parity, latency, tokens, and what was pruned where.

    The page is one HTML file that needs no network.
    """
    from export.report import ConsoleProgress
    from export.reporting.build import STAGES, ReportOptions, report

    raise_interrupts()
    options = ReportOptions(artifact, output, ckpt, samples, synthetic, bench, temperature, allow_outside)
    with ConsoleProgress(errors_console(), STAGES) as progress:
        report(options, progress)
    output_console().print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)", soft_wrap=True)
