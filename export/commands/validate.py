"""`python -m export validate`: hold an artifact to its checkpoint."""

from pathlib import Path
from typing import Any

import click

from export.commands.common import FAILED, PATH, errors_console, output_console, raise_interrupts
from madtp.command import allow_outside
from madtp.errors import OutputError


@click.command()
@click.option("--engine", type=PATH, required=True, help="The artifact; its manifest lies beside it.")
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
@click.option("--junit", type=PATH, metavar="FILE", help="Write the checks as JUnit XML.")
@click.option("--json", "json_file", type=PATH, metavar="FILE", help="Write the whole verdict as JSON.")
@click.option("--repro", type=PATH, metavar="DIR", help="On failure, save the node at fault and its inputs.")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Hold an artifact to its checkpoint: outputs, answers, kept tokens. Exit 1 where they differ."""
    from export.manifest import check_outputs
    from export.report import ConsoleProgress
    from export.validate import STAGES, ValidateOptions, validate_artifact
    from export.validation.data import DataOptions
    from export.validation.table import verdict_lines, verdict_table
    from export.validation.tolerances import parse_tolerances
    from export.validation.verdict import write_json, write_junit

    raise_interrupts()
    names = ("samples", "data", "synthetic", "split", "limit", "allow_outside")
    data = DataOptions(**{name: given[name] for name in names})
    tolerances = parse_tolerances(given["tolerance"])
    options = ValidateOptions(
        given["engine"], given["ckpt"], given["config"], data, tolerances, given["repro"], given["temperature"]
    )
    reports: list[tuple[Path | None, Any]] = [(given["json_file"], write_json), (given["junit"], write_junit)]
    outputs = [path for path, _ in reports if path is not None]
    check_outputs(outputs, [options.checkpoint, options.config, data.samples, data.data], [options.engine])
    if options.repro is not None and options.repro.exists() and not options.repro.is_dir():
        raise OutputError(f"'{options.repro}' is no folder", "--repro names one.", "Name another.")
    with ConsoleProgress(errors_console(), stages=STAGES) as progress:
        verdict, unwritten = validate_artifact(options, progress)
    for path, write in reports:
        if path is not None:
            write(verdict, path)
    output = output_console()
    output.print(verdict_table(verdict, f"{options.engine} against {options.checkpoint}"))
    for line in (*verdict_lines(verdict), unwritten):
        if line:
            output.print(line, soft_wrap=True)
    context.exit(0 if verdict.passed else FAILED)
