"""What a person sees while a command works: a progress bar on a terminal, plain lines elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from madtp.console.heartbeat import SILENCE, Heartbeat, draws
from madtp.console.interrupts import raise_swallowed

BAR_WIDTH = 24


class ConsoleProgress:
    """A progress bar on a terminal; elsewhere a line for each stage or every tenth of the steps, and one after silence.

    Work is announced either as `stages` (`stage`, `detail`) or as counted steps (`count`). Use as a context.

    Args:
        stages: how many stages will be announced; 0 where steps are counted.
    """

    def __init__(self, console: Console, stages: int = 0, silence: float = SILENCE, doing: str = "starting") -> None:
        self._console, self._stages, self._done = console, stages, 0
        self._stage, self._tenths = doing, 0
        self._heartbeat = Heartbeat(console, doing, silence)
        self._bar = Progress(*_columns(stages), console=console, transient=True, disable=not draws(console))
        self._task = self._bar.add_task(doing, total=stages or None, detail="")
        self._begin = time.perf_counter()

    def __enter__(self) -> "ConsoleProgress":
        self._bar.start()
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._heartbeat.__exit__(*error)
        self.stop()

    def stop(self) -> None:
        """Remove the bar before something is printed."""
        self._bar.stop()

    def doing(self, what: str) -> None:
        """Name work that is neither a stage nor counted; it is printed only after silence."""
        self._bar.update(self._task, description=what)
        self._heartbeat.doing(what)

    def stage(self, description: str) -> None:
        """Announce the next stage."""
        raise_swallowed()
        self._bar.update(self._task, completed=self._done, detail="")
        self._done += 1
        self._stage = description
        self.doing(description)
        elapsed = time.perf_counter() - self._begin
        self._print(f"[{self._done}/{self._stages}] {description} ({elapsed:.0f} s)")

    def detail(self, text: str) -> None:
        """Say what happens within the stage: beside the bar, or in the next line after silence."""
        self._bar.update(self._task, detail=text)
        self._heartbeat.doing(f"{self._stage}: {text}")

    def count(self, description: str, done: int, total: int) -> None:
        """Say how many of the steps of `description` are done; the first call for them may begin in the middle."""
        raise_swallowed()
        tenths = 10 * done // total
        if total != self._bar.tasks[0].total or done < self._done:
            self._bar.reset(self._task, total=total)
            self._tenths = tenths
        self._done = done
        self._bar.update(self._task, description=description, completed=done)
        text = f"{description}: {done} of {total}"
        self._heartbeat.doing(text)
        if tenths > self._tenths:
            self._tenths = tenths
            self._print(f"{10 * tenths:3d} %  {text}")

    def _print(self, line: str) -> None:
        """A line, where no bar is drawn."""
        if not draws(self._console):
            self._console.print(line, markup=False, highlight=False)
            self._heartbeat.told()


def _columns(stages: int) -> tuple[ProgressColumn, ...]:
    description, bar, elapsed = TextColumn("{task.description}"), BarColumn(BAR_WIDTH), TimeElapsedColumn()
    if stages:
        return SpinnerColumn(), description, bar, elapsed, TextColumn("[dim]{task.fields[detail]}")
    return description, bar, MofNCompleteColumn(), elapsed, TimeRemainingColumn()
