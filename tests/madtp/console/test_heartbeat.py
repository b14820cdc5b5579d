"""A line whenever nothing was printed for a while: while the work blocks, never on a terminal, never after the end."""

import io
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from madtp.console.heartbeat import Heartbeat, draws
from madtp.console.progress import ConsoleProgress

SOON = 0.01
LONG = 60.0  # seconds until a test that waits in vain gives up


class Log(io.StringIO):
    """Standard error in a file, or a terminal; tells when something was written."""

    def __init__(self, terminal: bool = False) -> None:
        super().__init__()
        self.terminal, self.written = terminal, threading.Event()

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        length = super().write(text)
        if text.strip():
            self.written.set()
        return length

    def wait(self) -> str:
        """What is there once something was written from now on."""
        self.written.clear()
        assert self.written.wait(LONG), "nothing was printed"
        return self.getvalue()


def console(log: Log) -> Console:
    return Console(file=log, width=100)


def test_lines_while_the_main_thread_is_blocked() -> None:
    log = Log()
    with Heartbeat(console(log), "building", SOON) as heartbeat:
        assert "building (0 s)" in log.wait()
        heartbeat.doing("checking")
        while "checking" not in log.wait():
            pass
    ended = log.getvalue()
    assert not threading.Event().wait(10 * SOON)
    assert log.getvalue() == ended, "a line after the end"
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_lines_while_another_process_works() -> None:
    log = Log()
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    with Heartbeat(console(log), "building", SOON):
        threading.Thread(target=lambda: (log.wait(), worker.communicate("\n"))).start()
        assert worker.wait(LONG) == 0
    assert "building" in log.getvalue()


def test_a_line_of_someone_else_puts_it_off() -> None:
    log = Log()
    with Heartbeat(console(log), "building", LONG) as heartbeat:
        heartbeat.told()
    assert not log.getvalue()


def test_an_error_ends_it() -> None:
    with pytest.raises(KeyboardInterrupt), Heartbeat(console(Log()), "building", SOON):
        raise KeyboardInterrupt
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


def test_a_closed_standard_error_ends_nothing() -> None:
    log = Log()
    with Heartbeat(console(log), "building", SOON):
        log.wait()
        log.close()
        threading.Event().wait(5 * SOON)


def test_a_terminal_has_a_bar_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    log = Log(terminal=True)
    with Heartbeat(console(log), "building", SOON):
        threading.Event().wait(5 * SOON)
    assert not log.getvalue()


@pytest.mark.parametrize(
    ("terminal", "kind", "colours", "expected"),
    [
        (True, "xterm", None, True),
        (True, "dumb", None, False),  # no bar is ever drawn there
        (True, "xterm", "", False),  # nor there
        (False, "xterm", None, False),
        (False, "xterm", "1", False),  # CI systems ask for colours in their logs
    ],
)
def test_where_bars_are_drawn(
    terminal: bool, kind: str, colours: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", kind)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if colours is not None:
        monkeypatch.setenv("FORCE_COLOR", colours)
    assert draws(console(Log(terminal))) == expected


def test_stages_and_what_happens_in_them() -> None:
    log = Log()
    with ConsoleProgress(console(log), 2, SOON) as progress:
        assert "starting" in log.wait()
        progress.stage("tracing")
        assert "[1/2] tracing" in log.getvalue()
        progress.detail("encoder")
        while "tracing: encoder (" not in log.wait():
            pass
        progress.stage("checking")
        while "      checking (" not in log.wait():  # without what happened in the stage before
            pass
    assert "      checking: encoder" not in log.getvalue()


def test_counted_steps_are_named_after_silence() -> None:
    log = Log()
    with ConsoleProgress(console(log), silence=SOON) as progress:
        progress.count("training", 1, 100)
        while "training: 1 of 100" not in log.wait():
            pass


def test_a_line_for_every_tenth_of_counted_steps() -> None:
    log = Log()
    with ConsoleProgress(console(log), silence=LONG) as progress:
        for done in range(15, 31):  # a run that goes on begins in the middle
            progress.count("answering", done, 100)
        for done in range(101):
            progress.count("matching", done, 100)
    lines = log.getvalue().splitlines()
    assert lines[:2] == [" 20 %  answering: 20 of 100", " 30 %  answering: 30 of 100"]
    assert lines[2:] == [f"{share:3d} %  matching: {share} of 100" for share in range(10, 101, 10)]
