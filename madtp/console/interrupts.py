"""Ctrl-C and SIGTERM as KeyboardInterrupt, which unwinds what was begun."""

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

AGAIN = 0.05  # seconds until a lost interrupt is raised again


def raise_interrupts() -> None:
    """Let both signals raise KeyboardInterrupt from here on, unless they are ignored, as under nohup."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    if not isinstance(sys.unraisablehook, _LostInterrupts):
        sys.unraisablehook = _LostInterrupts(sys.unraisablehook)


def _interrupt(*_: object) -> None:
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
