"""`python -m export bench` with several artifacts: what they are beside each other."""

import json
from collections.abc import Sequence
from pathlib import Path

from export.artifact.outputs import files_of
from export.bench import report
from export.bench.comparison import STAGES, compare
from export.bench.comparison_report import COMPARISON, lines, markdown, tables, to_json
from export.bench.run import BenchOptions
from export.cli.common import deliver, errors_console, output_console
from export.console import ConsoleProgress
from madtp.console.printing import say
from madtp.files.outputs import check_outputs, write_output


def show_comparison(
    options: BenchOptions, others: Sequence[Path], json_file: Path | None, markdown_file: Path | None
) -> bool:
    """Compare, print, and write the files that are asked for; returns whether it was interrupted."""
    inputs = [path for artifact in (options.artifact, *others) for path in files_of(artifact)]
    check_outputs([(json_file, COMPARISON), (markdown_file, report.MARKDOWN)], inputs)
    with ConsoleProgress(errors_console(), STAGES) as progress:
        comparison = compare(options, others, progress)
        progress.detail("intervals and tables")
        shown, said = tables(comparison), lines(comparison)
    output = output_console()

    def show() -> None:
        for table in shown:
            output.print(table)
        for line in said:
            output.print(line, soft_wrap=True)

    def write_json(path: Path) -> None:
        write_output(path, json.dumps(to_json(comparison), indent=1) + "\n", COMPARISON)

    def write_markdown(path: Path) -> None:
        write_output(path, markdown(comparison), report.MARKDOWN)

    deliver(show, [(json_file, write_json), (markdown_file, write_markdown)])
    if comparison.measurement.partial:
        say("interrupted: what was measured is marked partial", err=True)
    return comparison.measurement.partial
