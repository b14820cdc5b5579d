"""`python -m export validate`: hold an artifact to its checkpoint."""

from typing import Any

import click

from export.cli.common import FAILED, PATH, deliver, errors_console, output_console, raise_interrupts
from madtp.console.command import allow_outside


@click.command(short_help="Hold an artifact to its checkpoint.")
@click.option("--engine", type=PATH, required=True, help="The artifact: out.json, out.onnx or out.plan.")
@click.option("--ckpt", type=PATH, required=True, help="The checkpoint that it was made from.")
@click.option("--config", type=PATH, help="JSON of model sizes that win over inferred ones.")
@click.option("--samples", type=PATH, metavar="DIR", help="Samples to compare on; the demo's.")
@click.option("--data", type=PATH, metavar="DIR", help="Compare on a data set with its annotation file.")
@click.option("--split", help="Of the data set; test where it is there, else val.")
@allow_outside
@click.option("--synthetic", is_flag=True, help="Compare on random pixels and ids instead of real data.")
@click.option("--temperature", type=float, multiple=True, help="Compare here too, beside the manifest's and 0.")
@click.option("--limit", type=int, default=32, show_default=True, help="Most samples, evenly spread.")
@click.option("--tolerance", multiple=True, metavar="OUTPUT=VALUE", help="Largest |error| of an output. Repeatable.")
@click.option("--changed", is_flag=True, help="Judge files that a tool changed; the manifest stays as it is.")
@click.option("--junit", type=PATH, metavar="FILE", help="Write the checks as JUnit XML.")
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the whole verdict as JSON.")
@click.option("--repro", type=PATH, metavar="DIR", help="On failure, save the node at fault and its inputs.")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Hold an artifact to its checkpoint: outputs, answers, kept tokens.

    \b
    Exit status: 0 all that was run agrees, 1 something differs, 2 the input or the machine is at fault.
    """
    from export.artifact.outputs import files_of
    from export.console import ConsoleProgress
    from export.samples.choice import DataOptions
    from export.validate.run import STAGES, ValidateOptions, validate_artifact
    from export.validate.table import result_lines, result_table
    from export.validate.tolerances import parse_tolerances
    from export.validate.result import JUNIT, VERDICT, write_json, write_junit
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
    )
    written = [(given["json_file"], VERDICT), (given["junit"], JUNIT)]
    index = None if data.samples is None else data.samples / INDEX
    check_outputs(written, [options.checkpoint, options.config, index, *files_of(options.engine)])
    with ConsoleProgress(errors_console(), stages=STAGES) as progress:
        verdict, unwritten = validate_artifact(options, progress)

    def show() -> None:
        output = output_console()
        output.print(result_table(verdict, f"{options.engine} against {options.checkpoint}"))
        for line in (*result_lines(verdict), unwritten):
            if line:
                output.print(line, soft_wrap=True)

    deliver(
        show,
        [
            (given["json_file"], lambda path: write_json(verdict, path)),
            (given["junit"], lambda path: write_junit(verdict, path)),
        ],
    )
    context.exit(0 if verdict.passed else FAILED)
