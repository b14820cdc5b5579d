"""Printing what others wrote: names, keys and texts may hold characters that rewrite the screen, or hide."""

import re
from collections.abc import Iterable
from typing import Any

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from madtp.errors import MadtpError

# Control characters but the line feed, line separators, directions of writing, halves of surrogate pairs.
_HIDDEN = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with every character that a terminal would obey, rather than show, as an escape: "\\x1b" and the like.

    Line feeds stay: messages have several lines.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """The same of what has to be one line: line feeds are escaped too."""
    return printable(text).replace("\n", "\\n")


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
