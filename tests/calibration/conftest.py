"""Runs the command line of calibration in this process."""

import signal
import sys
from collections.abc import Callable

import pytest

from tests.helpers.command_line import Ran


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    from calibration import __main__ as command

    def call(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["calibration", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            status = command.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        return Ran(status, *capsys.readouterr())

    return call


@pytest.fixture(autouse=True)
def coarse_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's search for the least entropy takes most of the time of a tiny model's table."""
    from calibration import histograms

    monkeypatch.setattr(histograms, "ENTROPY_BINS", 128)
