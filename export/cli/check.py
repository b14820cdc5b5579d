"""`python -m export check`: the preflight of an export."""

from typing import Any

import click

from export.cli.common import errors_console, export_options, output_console, parse_options, raise_interrupts
from madtp.console.heartbeat import Heartbeat


@click.command(short_help="Preflight of an export: writes nothing.")
@export_options
def command(**given: Any) -> None:
    """Preflight of an export: read and check everything, write nothing.

    \b
    Exit status: 0 everything is available, 2 the input or the machine is at fault.
    """
    from export.build.prepare import prepare
    from export.build.table import preflight_table

    raise_interrupts()
    options = parse_options(given)
    with Heartbeat(errors_console(), "reading checkpoint and samples"):
        prepared = prepare(options)
    output_console().print(preflight_table(prepared))
