"""Operating points in `python -m export report`."""

from collections.abc import Callable
from pathlib import Path

import pytest

import export.report.measurements as measure
from calibration.budget import Budget
from calibration.latency import Latency
from calibration.temperature_file import Interval, OperatingPoint, TemperatureFile, write_temperature
from calibration.tokens import Source
from madtp.files.inputs import sha256
from madtp.models.config import MAX_TEMPERATURE
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.pages import text_of

Command = Callable[..., Ran]


def written(path: Path, checkpoint_sha256: str) -> Path:
    """A file with the dense model and two temperatures, its data hostile."""
    points = tuple(
        OperatingPoint(tau, Interval(cost, cost - 1, cost + 1), 1 - cost / 20, Latency(3.0, 2.5, 4.0), 0.975, accuracy)
        for tau, cost, accuracy in ((0.0, 20.0, 0.9), (TAU, 8.0, 0.85), (MAX_TEMPERATURE, 4.0, None))
    )
    source = Source(checkpoint_sha256, "nlvr", TAU, "some <script>", None)
    write_temperature(TemperatureFile(source, Budget("reduction", 0.6), 0.02, 8, 2, points, ("few <b> samples",)), path)
    return path


def test_the_page_shows_them(
    tiny_artifact: Path, run_cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.0)
    points, page = written(tmp_path / "t.json", sha256(tiny_artifact / "tiny.pt")), tmp_path / "page.html"
    ran = run_cli("report", tiny_artifact / "out.json", "--operating-points", points, "-o", page)
    assert ran.status == 0, ran.err
    content = page.read_text(encoding="utf-8")
    assert "<script>" not in content
    text = text_of(content)
    for part in (
        "Operating points of the checkpoint",
        "some <script>",
        "For the budget of 60 % fewer GFLOPs than dense it found the temperature 2.",
        "Caveat: few <b> samples.",
        "2, found8 (7 to 9)60.0%3 (2.5 to 4)97.5%85.0%",
        "largest4 (3 to 5)80.0%",
    ):
        assert part in text, text[-3000:]


def test_points_of_another_checkpoint_are_refused(tiny_artifact: Path, run_cli: Command, tmp_path: Path) -> None:
    points, page = written(tmp_path / "t.json", "0" * 64), tmp_path / "page.html"
    given = ("report", tiny_artifact / "out.json", "-o", page, "--operating-points")
    run_cli(*given, points).refused("are of another checkpoint")
    run_cli(*given, tmp_path / "none.json").refused("cannot read the measured temperatures")
    assert not page.exists()
