from pathlib import Path

import pytest

from export.bench.run import BenchOptions
from tests.helpers.bench import FakeRunner, FakeTimer, fake_bench, save


@pytest.fixture
def options(tiny_artifact: Path) -> BenchOptions:
    return BenchOptions(tiny_artifact / "out.json", seconds=10)


@pytest.fixture
def saved(options: BenchOptions, tmp_path: Path) -> Path:
    """A baseline whose artifact is not at hand."""
    timer = FakeTimer()
    measurement = fake_bench(options, timer, FakeRunner(timer)).measurement
    return save(measurement, tmp_path / "base.json", path="/gone/out.json")
