"""Printing what others wrote: names, keys and texts may hold characters that rewrite the screen, or hide."""

import click

from madtp.errors import MadtpError, one_line, printable


def error_text(error: MadtpError) -> str:
    """An error as it is printed; a line feed in a name, which stands in its first line, begins no other."""
    return printable("\n".join(part for part in (one_line(error.what), error.why, error.fix) if part))


def say(text: str, err: bool = False) -> None:
    """Print a line, on standard error if asked to."""
    click.echo(printable(text), err=err)
