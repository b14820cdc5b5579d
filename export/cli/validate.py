"""`python -m export validate`: compare an artifact with its checkpoint."""

from functools import partial
from typing import Any

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
from madtp.console.command import allow_outside


@click.command(short_help="Compare an artifact with its checkpoint.")
@click.option("--engine", type=PATH, required=True, help="Artifact: out.json, out.onnx or out.plan.")
@click.option("--ckpt", type=PATH, required=True, help="Checkpoint that the artifact was exported from.")
@click.option("--config", type=PATH, help="JSON file of model sizes (default: inferred from the checkpoint).")
@click.option("--samples", type=PATH, metavar="DIR", help="Folder of samples (default: the demo's samples).")
@click.option("--data", type=PATH, metavar="DIR", help="Data set folder to take samples from instead.")
@click.option("--split", help="Data set split (default: test if present, else val).")
@allow_outside
@click.option("--synthetic", is_flag=True, help="Use random pixels and token ids instead of samples.")
@click.option(
    "--temperature",
    type=float,
    multiple=True,
    help="Additional temperature to compare at (default: the manifest's and 0). Repeatable.",
)
@click.option("--limit", type=int, default=32, show_default=True, help="Maximum number of samples, evenly spaced.")
@click.option(
    "--tolerance",
    multiple=True,
    metavar="OUTPUT=VALUE",
    help="Largest allowed |error| of an output (default: from its precision). Repeatable.",
)
@click.option("--changed", is_flag=True, help="Accept files that a tool changed; the manifest is not updated.")
@execution_options
@click.option("--junit", type=PATH, metavar="FILE", help="Write the checks as JUnit XML.")
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the full result as JSON.")
@click.option("--repro", type=PATH, metavar="DIR", help="On failure, save the first divergent node and its inputs.")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Compare an artifact with its checkpoint: outputs, answers, kept tokens and batch invariance.

    An .onnx file is run on its function bodies and, where an op library is there, on its kernels too.

    \b
    Exit status: 0 passed, 1 failed, 2 the input or the machine is at fault.
    """
    from export.artifact.outputs import files_of
    from export.console import ConsoleProgress
    from export.samples.choice import DataOptions
    from export.validate.result import JUNIT, RESULT, write_json, write_junit
    from export.validate.run import STAGES, ValidateOptions, validate_artifact
    from export.validate.table import result_lines, result_table
    from export.validate.tolerances import parse_tolerances
    from madtp.data.samples import INDEX
    from madtp.files.outputs import check_outputs

    raise_interrupts()
    names = ("samples", "data", "synthetic", "split", "limit", "allow_outside")
    data = DataOptions(**{name: given[name] for name in names})
    tolerances = parse_tolerances(given["tolerance"])
    options = ValidateOptions(
        given["engine"],
        given["ckpt"],
        given["config"],
        data,
        tolerances,
        given["repro"],
        given["temperature"],
        given["changed"],
        given["library"],
        given["provider"],
    )
    written = [(given["json_file"], RESULT), (given["junit"], JUNIT)]
    index = None if data.samples is None else data.samples / INDEX
    check_outputs(written, [options.checkpoint, options.config, index, *files_of(options.engine)])
    with ConsoleProgress(errors_console(), stages=STAGES) as progress:
        result, unwritten = validate_artifact(options, progress)

    def show() -> None:
        output = output_console()
        output.print(result_table(result, f"{options.engine} against {options.checkpoint}"))
        for line in (*result_lines(result), unwritten):
            if line:
                output.print(line, soft_wrap=True)

    writers = [(given["json_file"], partial(write_json, result)), (given["junit"], partial(write_junit, result))]
    deliver(show, writers)
    context.exit(0 if result.passed else FAILED)
