"""`python -m export inspect`: what a file is, whether it is intact, and whether it runs here."""

import json
from pathlib import Path

import click

from export.cli.common import FAILED, errors_console, output_console, raise_interrupts
from madtp.console.heartbeat import Heartbeat


@click.command(short_help="Show what a file is, and whether it runs here.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.pass_context
def command(context: click.Context, file: Path, as_json: bool) -> None:
    """Show what FILE is (out.plan, out.onnx, out.json, ...), whether it is intact, and whether it runs here.

    Nothing in the file is run.

    \b
    Exit status: 0 shown, 1 shown but damaged, 2 the file cannot be read.
    """
    from export.inspect.compatibility import this_machine
    from export.inspect.reader import inspect_file
    from export.inspect.table import inspection_table

    raise_interrupts()
    with Heartbeat(errors_console(), "reading files and checking their sha256"):
        found = inspect_file(file, this_machine())
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        output_console().print(inspection_table(found))
    context.exit(FAILED if found.damage else 0)
