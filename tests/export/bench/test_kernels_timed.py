"""Kernels of the op library against function bodies: one artifact, side by side or with what was saved."""

from dataclasses import replace
from pathlib import Path

import pytest

import export.runtime.execution
from export.bench.instruments import Instruments
from export.bench.measurement import read_measurement
from export.bench.report import lines
from export.bench.run import BenchOptions, bench
from export.errors import BaselineError, OptionError
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from madtp.tasks.requests import Runner
from tests.helpers.bench import FakeRunner, FakeTimer, Quiet, fake_bench, save
from tests.helpers.op_library import stand_in


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that passes for one as long as nobody loads it, which fake runners do not."""
    path = stand_in(tmp_path / "libmadtp_onnxruntime.so")
    monkeypatch.setattr(export.runtime.execution, "installed_library", lambda: path)
    return path


def test_kernels_run_beside_the_bodies_of_the_same_artifact(options: BenchOptions, installed: Path) -> None:
    timer, opened = FakeTimer(), list[RunnerOptions]()

    def opener(described: Artifact, how: RunnerOptions) -> dict[str, Runner]:
        opened.append(how)
        return {"model": FakeRunner(timer, len(opened))}

    against = replace(options, against_library="none", profile=False)
    result = bench(against, Quiet(), opener=opener, instruments=lambda _: Instruments(timer, lambda: lambda: 0.0))
    libraries = [how.execution.library is not None for how in opened if how.execution is not None]
    assert libraries == [True, False, False, True]  # and in the other order
    assert result.method == "side by side with function bodies (asked for) on the CPU"
    said = lines(result)
    assert "runs kernels of libmadtp_onnxruntime.so 0.1.0 on the CPU" in said
    assert any("in the baseline function bodies" in line for line in said)


def test_a_saved_measurement_says_what_ran(options: BenchOptions, installed: Path, tmp_path: Path) -> None:
    timer = FakeTimer()
    measured = fake_bench(options, timer, FakeRunner(timer)).measurement
    read = read_measurement(save(measured, tmp_path / "base.json"))
    assert read.execution == measured.execution
    assert read.execution is not None
    assert read.execution["kernels"]["file"] == installed.name


def test_a_baseline_of_bodies_is_refused_for_kernels(options: BenchOptions, installed: Path, tmp_path: Path) -> None:
    timer = FakeTimer()
    base = save(fake_bench(replace(options, library="none"), timer, FakeRunner(timer)).measurement, tmp_path / "b.json")
    with pytest.raises(BaselineError, match="custom ops 'function bodies', now 'kernels'"):
        fake_bench(replace(options, against=base), timer, FakeRunner(timer))


def test_another_build_of_the_library_is_noted(options: BenchOptions, installed: Path, tmp_path: Path) -> None:
    timer = FakeTimer()
    base = save(fake_bench(options, timer, FakeRunner(timer)).measurement, tmp_path / "base.json")
    stand_in(installed, sm="90")
    result = fake_bench(replace(options, against=base), timer, FakeRunner(timer))
    assert any("the op library is 0.1.0" in note for note in result.notes)


def test_one_baseline_is_enough(options: BenchOptions) -> None:
    with pytest.raises(OptionError, match="--against-engine and --against-library exclude each other"):
        replace(options, against_engine=options.artifact, against_library="none")
