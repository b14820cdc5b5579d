"""What a person sees while a command works: stages, a progress bar, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from madtp.console.heartbeat import SILENCE, Heartbeat, draws


class Progress(Protocol):
    """Told what a command is doing; see `ConsoleProgress` for the one that people see."""

    def stage(self, description: str) -> None:
        """A new stage begins."""
        ...

    def detail(self, text: str) -> None:
        """Something within the stage."""
        ...


class ConsoleProgress:
    """A progress bar on a terminal; elsewhere a plain line a stage, and one whenever it was silent. Use as a context.

    Args:
        console: where to; standard error, so that standard output holds the result alone.
        stages: how many stages will be announced.
        silence: seconds without a line after which one says what is being done, see `madtp.console.heartbeat`.
    """

    def __init__(self, console: Console, stages: int, silence: float = SILENCE) -> None:
        self._console, self._stages, self._done = console, stages, 0
        self._stage = "starting"
        self._heartbeat = Heartbeat(console, self._stage, silence)
        self._bar = ProgressBar(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[detail]}"),
            console=console,
            transient=True,
            disable=not draws(console),
        )
        self._task = self._bar.add_task(self._stage, total=stages, detail="")
        self._begin = time.perf_counter()

    def __enter__(self) -> "ConsoleProgress":
        self._bar.start()
        self._heartbeat.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._heartbeat.__exit__(kind, error, trace)
        self.stop()

    def stop(self) -> None:
        """Take the bar away: something is to be printed."""
        self._bar.stop()

    def stage(self, description: str) -> None:
        """Announce a stage."""
        self._bar.update(self._task, description=description, completed=self._done, detail="")
        self._done += 1
        self._stage = description
        self._heartbeat.doing(description)
        if not draws(self._console):
            elapsed = time.perf_counter() - self._begin
            self._console.print(f"[{self._done}/{self._stages}] {description} ({elapsed:.0f} s)", markup=False)
            self._heartbeat.told()

    def detail(self, text: str) -> None:
        """Say what happens within the stage: beside the bar, or in the next line after a silence."""
        self._bar.update(self._task, detail=text)
        self._heartbeat.doing(f"{self._stage}: {text}")
