"""`python -m export check`: the preflight of an export."""

from typing import Any

import click

from export.commands.common import errors_console, export_options, output_console, parse_options, raise_interrupts
from madtp.heartbeat import Heartbeat


@click.command()
@export_options
def command(**given: Any) -> None:
    """Preflight of an export: read and check everything, write nothing."""
    from export.pipeline import prepare
    from export.report import preflight_table

    raise_interrupts()
    options = parse_options(given)
    with Heartbeat(errors_console(), "reading checkpoint and samples"):
        prepared = prepare(options)
    output_console().print(preflight_table(prepared))
