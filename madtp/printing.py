"""Printing what others wrote: names, keys and texts may hold characters that rewrite the screen, or hide."""

from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from madtp.errors import MadtpError, one_line, printable


def error_text(error: MadtpError) -> str:
    """An error as it is printed; a line feed in a name, which stands in its first line, begins no other."""
    return printable("\n".join(part for part in (one_line(error.what), error.why, error.fix) if part))


def say(text: str, err: bool = False) -> None:
    """Print a line, on standard error if asked to."""
    click.echo(printable(text), err=err)


class PlainConsole(Console):
    """A console that shows text as it is: no markup or emoji codes in it, and nothing that the terminal obeys.

    Args:
        stderr: standard error in place of standard output.
        width: of the terminal; None asks it.
    """

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """Text as rich measures and wraps it."""
        return super().render_str(printable(text), **how)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed in the end: also of text that was never a string of ours, such as a table's title."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
