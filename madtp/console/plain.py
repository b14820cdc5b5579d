"""A console for tables and progress that shows what others wrote, and obeys none of it."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from madtp.errors import printable


class PlainConsole(Console):
    """A console that shows text as it is: no markup or emoji codes in it, and nothing that the terminal obeys."""

    def __init__(self, *, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False)

    def render_str(self, text: str, **arguments: Any) -> Text:
        """Text as rich measures and wraps it."""
        return super().render_str(printable(text), **arguments)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed in the end: also of text that was never a string of ours, such as a table's title."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
