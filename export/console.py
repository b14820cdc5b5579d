"""What the commands of the export show while they work."""

from typing import Protocol

from madtp.console.progress import ConsoleProgress

__all__ = ["ConsoleProgress", "Progress", "Silence"]


class Progress(Protocol):
    """Told what a command is doing; see `ConsoleProgress` for the one that people see."""

    def stage(self, description: str) -> None:
        """A new stage begins."""
        ...

    def detail(self, text: str) -> None:
        """Something within the stage."""
        ...


class Silence:
    """A `Progress` that nobody watches."""

    def stage(self, description: str) -> None:
        """Show nothing."""

    def detail(self, text: str) -> None:
        """Show nothing."""
