"""Ctrl-C and SIGTERM as KeyboardInterrupt, which unwinds what was begun."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

AGAIN = 0.05  # seconds until a lost interrupt is raised again


def raise_interrupts() -> None:
    """Let both signals raise KeyboardInterrupt from here on, unless they are ignored, as under nohup."""
    interrupt = _Interrupt()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
    if not isinstance(sys.unraisablehook, _LostInterrupts):
        sys.unraisablehook = _LostInterrupts(sys.unraisablehook)


def raise_swallowed() -> None:
    """Raise an interrupt that did not unwind the work; to be called between its steps.

    Python 3.11's `PyObject_HasAttr` drops whatever is raised meanwhile, and torch calls it everywhere.

    Raises:
        KeyboardInterrupt: there was one since `raise_interrupts`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if isinstance(handler, _Interrupt) and handler.seen:
            handler()


class _Interrupt:
    """A signal handler that remembers that it was called."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt


class _LostInterrupts:
    """Raises an interrupt again that Python dropped because it cannot be raised there, e.g. in a callback."""

    def __init__(self, usual: Callable[[Any], object]) -> None:
        self._usual = usual

    def __call__(self, lost: Any) -> None:
        if lost.exc_type is not KeyboardInterrupt:
            self._usual(lost)
            return
        timer = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        timer.daemon = True
        timer.start()
