"""A line now and then from whatever works in silence: a log without one looks like a program that hangs."""

import threading
import time

from rich.console import Console

SILENCE = 5.0  # seconds; a line every 15 is promised, and writing a model of 1 GB keeps threads waiting for up to 10


def draws(console: Console) -> bool:
    """Whether bars are drawn: on a terminal that moves its cursor, and in no file, not even one that takes colours."""
    return console.file.isatty() and console.is_terminal and not console.is_dumb_terminal


class Heartbeat:
    """Prints what is being done and for how long, whenever nothing was printed for a while. Use as a context.

    A thread does it: what it waits for may be a call into a library, or another process. Where a bar is drawn it prints
    nothing.

    Args:
        console: standard error, so that standard output holds the result alone.
        silence: seconds without a line after which one is printed.
    """

    def __init__(self, console: Console, doing: str, silence: float = SILENCE) -> None:
        self._console, self._doing, self._silence = console, doing, silence
        self._began = self._told = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        if not draws(self._console):
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()  # no line after the end

    def doing(self, what: str) -> None:
        """Something else is being done from now on."""
        self._doing = what

    def told(self) -> None:
        """A line was printed by someone else just now."""
        self._told = time.monotonic()

    def _run(self) -> None:
        while not self._ended.wait(max(self._told + self._silence - time.monotonic(), 0.0)):
            if time.monotonic() - self._told < self._silence:
                continue  # another line came meanwhile
            elapsed = time.monotonic() - self._began
            try:
                self._console.print(
                    f"      {self._doing} ({elapsed:.0f} s)", markup=False, highlight=False, soft_wrap=True
                )
            except (OSError, ValueError):  # standard error is closed
                return
            self.told()
