"""The command line: `python -m export`, or `madtp-export`."""

import importlib
from contextlib import suppress
from typing import Any

import click

from export.build.options import ExportOptions
from export.cli.common import FAILED, errors_console, export_options, output_console, parse_options, raise_interrupts
from madtp.console.command import run, version_option

COMMANDS = ("bench", "check", "evaluate", "inspect", "report", "run", "validate")  # modules of export.cli


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for: some take seconds to import."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"export.cli.{cmd_name}").command
        command.name = cmd_name
        return command


@click.group(cls=LazyGroup, invoke_without_command=True)
@version_option
@export_options
@click.pass_context
def cli(context: click.Context, /, **given: Any) -> None:
    """Export a trained MADTP checkpoint to an engine, and validate it against the checkpoint.

    \b
    python -m export --ckpt x.pt --engine out.plan                   a TensorRT engine
    python -m export --ckpt x.pt --engine out.onnx                   for ONNX Runtime, 1.17 or newer
    python -m export --ckpt x.pt --engine out.onnx --plugins none    standard ONNX, no custom domain
    python -m export COMMAND --help                                  commands for exported artifacts

    \b
    Exit status: 0 written, 1 validation failed and nothing was written, 2 the input or the machine is at fault.
    """
    if context.invoked_subcommand is None:
        context.exit(_export(parse_options(given)))
    elif given["ckpt"] or given["engine"]:
        raise click.UsageError(f"options go after the command: {context.invoked_subcommand} --ckpt ... --engine ...")


def _export(options: ExportOptions) -> int:
    from export.build.pipeline import export
    from export.build.table import EXPORT_STAGES, closing_lines, validation_table
    from export.console import ConsoleProgress

    raise_interrupts()
    stages = EXPORT_STAGES[options.engine.suffix] + 1 + options.quantization.measures
    with ConsoleProgress(errors_console(), stages) as progress:
        result = export(options, progress)
    output = output_console()
    with suppress(KeyboardInterrupt):  # the export has ended; only its report is cut short
        output.print(validation_table(result.validation, f"{options.checkpoint.name} -> {options.engine.name}"))
        for line in closing_lines(result):
            output.print(line, soft_wrap=True)
    return 0 if result.written else FAILED


def main() -> int:
    """Run the command line; returns the exit status."""
    return run(cli, "interrupted: nothing was written, earlier outputs are as they were")
