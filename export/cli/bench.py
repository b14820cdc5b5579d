"""`python -m export bench`: the latency of an artifact, and whether it regressed."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import click

from export.cli.common import (
    FAILED,
    PATH,
    deliver,
    errors_console,
    execution_options,
    output_console,
    raise_interrupts,
)
from export.engine.op_library import Provider
from export.errors import OptionError
from madtp.console.command import WRONG_INPUT, allow_outside
from madtp.console.printing import say
from madtp.errors import OutputError

UNDECIDED = 3


@click.command(short_help="Measure latency, and compare it with a baseline.")
@click.argument("artifacts", type=PATH, nargs=-1, required=True, metavar="ARTIFACT...")
@click.option("--samples", type=PATH, metavar="DIR", help="Folder of samples (default: the demo's samples).")
@allow_outside
@click.option("--synthetic", is_flag=True, help="Measure with random pixels and ids; their token counts mean little.")
@click.option(
    "--temperature",
    type=float,
    multiple=True,
    help="Temperature besides dense; may be repeated.  [default: the manifest's]",
)
@click.option("--batch", type=int, multiple=True, help="Batch size; may be repeated.  [default: the profile's opt]")
@click.option("--seconds", type=float, default=30.0, show_default=True, help="Time budget; 60 rounds are the minimum.")
@click.option("--threads", type=int, help="Number of CPUs and threads.  [default: all]")
@click.option("--save", type=PATH, metavar="JSON", help="Write all latencies, as a baseline for --against.")
@click.option("--against", type=PATH, metavar="JSON", help="Compare with recorded latencies (written by --save).")
@click.option("--against-engine", type=PATH, metavar="FILE", help="Compare with this artifact, side by side.")
@click.option("--against-library", metavar="PATH|none", help="Compare with itself on another op library, side by side.")
@execution_options
@click.option(
    "--max-regression", metavar="PERCENT", default="5%", show_default=True, help="Maximum slow-down that passes."
)
@click.option("--cuda-graphs", is_flag=True, help="Replay a plan as CUDA graphs, where TensorRT can.")
@click.option("--no-profile", is_flag=True, help="Skip the profile of operators or layers.")
@click.option("--junit", type=PATH, metavar="XML", help="Write the verdicts as JUnit XML.")
@click.option("--json", "json_file", type=PATH, metavar="JSON", help="Write all results as JSON.")
@click.option("--markdown", type=PATH, metavar="FILE", help="Write a short table for a pull request.")
@click.pass_context
def command(
    context: click.Context,
    artifacts: tuple[Path, ...],
    samples: Path | None,
    allow_outside: bool,
    synthetic: bool,
    temperature: tuple[float, ...],
    batch: tuple[int, ...],
    seconds: float,
    threads: int | None,
    save: Path | None,
    against: Path | None,
    against_engine: Path | None,
    against_library: str | None,
    library: str | None,
    provider: Provider,
    max_regression: str,
    cuda_graphs: bool,
    no_profile: bool,
    junit: Path | None,
    json_file: Path | None,
    markdown: Path | None,
) -> None:
    """Measure the latency of ARTIFACT (out.json, out.onnx or out.plan), dense and pruned side by side.

    Several artifacts of one checkpoint, e.g. its precisions, are compared with the first: latency, size, answers and
    tokens.

    On a machine that others share, only --against-engine tells a slower artifact from a slower machine.

    \b
    Exit status: 0 no regression, 1 regression, 2 invalid input or machine, 3 undecided.
    """
    from export.artifact.outputs import files_of
    from export.bench import report
    from export.bench.measurement import MEASUREMENT, Measurement
    from export.bench.run import STAGES, BenchOptions, BenchResult, bench
    from export.bench.summary import to_json
    from export.bench.verdict import Verdict, overall, parse_regression
    from export.cli.bench_comparison import show_comparison
    from export.console import ConsoleProgress
    from madtp.files.outputs import Kind, check_outputs, write_output

    raise_interrupts()
    artifact, *others = artifacts
    options = BenchOptions(
        artifact,
        samples,
        synthetic,
        temperature,
        batch,
        seconds,
        threads,
        against,
        against_engine,
        parse_regression(max_regression),
        not no_profile,
        cuda_graphs,
        allow_outside,
        library,
        provider,
        against_library,
    )

    if others:
        one = {
            "--save": save,
            "--against": against,
            "--against-engine": against_engine,
            "--against-library": against_library,
            "--junit": junit,
        }
        for option in (option for option, given in one.items() if given is not None):
            what = f"{option} is of one artifact, and {len(artifacts)} are named"
            raise OptionError(
                what, "Several are compared with the first.", f"Leave {option} out, or name one artifact."
            )
        context.exit(WRONG_INPUT if show_comparison(options, others, json_file, markdown) else 0)

    def saved(measurement: Measurement) -> str:
        return json.dumps(measurement.to_json()) + "\n"

    def keep(measurement: Measurement) -> None:
        if save is not None:
            with suppress(OutputError):  # the rest is not lost, and the end of the run reports it
                write_output(save, saved(measurement), MEASUREMENT)

    texts: list[tuple[Path | None, Kind, Callable[[BenchResult], str]]] = [
        (save, MEASUREMENT, lambda result: saved(result.measurement)),
        (json_file, MEASUREMENT, lambda result: json.dumps(to_json(result), indent=1) + "\n"),
        (markdown, report.MARKDOWN, report.markdown),
        (junit, report.JUNIT, report.junit),
    ]
    inputs = [against, *files_of(artifact), *files_of(against_engine)]
    check_outputs([(path, kind) for path, kind, _ in texts], inputs)
    with ConsoleProgress(errors_console(), STAGES) as progress:
        result = bench(options, progress, keep)
        progress.detail("intervals and tables")
        tables, lines = report.tables(result), report.lines(result)
    output = output_console()

    def show() -> None:
        for table in tables:
            output.print(table)
        for line in lines:
            output.print(line, soft_wrap=True)

    def writer(kind: Kind, text: Callable[[BenchResult], str]) -> Callable[[Path], None]:
        return lambda path: write_output(path, text(result), kind)

    deliver(show, [(path, writer(kind, text)) for path, kind, text in texts])
    if result.interrupted:
        state = "what was measured is marked partial" if result.measurement.partial else "the measurement was complete"
        say(f"interrupted: {state}", err=True)
        context.exit(WRONG_INPUT)
    context.exit({Verdict.PASS: 0, Verdict.FAIL: FAILED, Verdict.UNDECIDED: UNDECIDED}[overall(result.verdicts)])
