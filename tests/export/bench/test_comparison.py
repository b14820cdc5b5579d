"""An artifact beside another, or beside what was recorded of one."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import junitparser
import numpy as np
import pytest

import export.bench.run
from export.bench.baseline import UNTRUSTED
from export.bench.calls import Case
from export.bench.instruments import Instruments
from export.bench.measure import Ended
from export.bench.measurement import read_measurement
from export.bench.report import lines, verdict_table
from export.bench.run import BenchOptions, BenchResult, bench
from export.bench.summary import to_json
from export.bench.verdict import Verdict, overall
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from madtp.tasks.requests import Runner
from tests.helpers.bench import FakeRunner, FakeTimer, Quiet, fake_bench, save
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.defects import change_weight, rehash

Cli = Callable[..., Ran]


@pytest.mark.parametrize(("factor", "expected"), [(1.0, Verdict.PASS), (1.15, Verdict.FAIL), (1.05, Verdict.UNDECIDED)])
def test_two_artifacts_side_by_side(
    factor: float, expected: Verdict, options: BenchOptions, tiny_artifact: Path
) -> None:
    timer = FakeTimer()
    other = replace(options, against_engine=tiny_artifact / "out.onnx")
    result = fake_bench(other, timer, FakeRunner(timer, 1, factor), FakeRunner(timer, 2))
    assert overall(result.verdicts) == expected
    assert {verdict.case for verdict in result.verdicts} == {Case(0.0, 1), Case(TAU, 1)}
    for entry, verdict in zip(to_json(result)["comparison"]["earlier"], result.verdicts, strict=True):
        assert Case(**entry["case"]) == verdict.case
        ratio = np.divide(result.measurement.cases[verdict.case].milliseconds, entry["milliseconds"])
        assert np.median(ratio) == pytest.approx(verdict.slowdown.ratio, rel=0.01)  # which is of both orders
        assert entry["latency"]["p50"] == np.median(entry["milliseconds"])
    assert verdict_table(result).row_count == 2
    assert (result.measurement.ended == Ended.BUDGET) == (expected == Verdict.UNDECIDED)


def test_what_the_order_of_opening_does_is_no_slow_down(
    tiny_artifact: Path, options: BenchOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened last is faster, as ONNX Runtime's sessions were found to be; here by a fifth."""
    beside = replace(options, against_engine=tiny_artifact / "out.onnx", profile=False, seconds=60)
    for factor, outcome in ((1.0, Verdict.PASS), (1.15, Verdict.FAIL)):
        timer, opened = FakeTimer(), list[FakeRunner]()

        def opener(
            described: Artifact,
            how: RunnerOptions,
            timer: FakeTimer = timer,
            opened: list[FakeRunner] = opened,
            factor: float = factor,
        ) -> dict[str, Runner]:
            last, new = len(opened) % 2 == 1, len(opened) in (0, 3)
            opened.append(FakeRunner(timer, len(opened), (factor if new else 1.0) * (0.8 if last else 1.0)))
            return {"model": opened[-1]}

        instruments = Instruments(timer, lambda: lambda: 0.0)
        result = bench(beside, Quiet(), opener=opener, instruments=lambda _, found=instruments: found)
        assert len(opened) == 4
        assert overall(result.verdicts) == outcome
        assert all(verdict.slowdown.ratio == pytest.approx(factor, rel=0.03) for verdict in result.verdicts)


def test_an_interrupt_while_opening_again_keeps_what_was_measured(options: BenchOptions) -> None:
    timer = FakeTimer()
    beside = replace(options, against_engine=options.artifact)
    runners = [FakeRunner(timer, 1), FakeRunner(timer, 2)]

    def opener(described: Artifact, how: RunnerOptions) -> dict[str, Runner]:
        if not runners:
            raise KeyboardInterrupt
        return {"model": runners.pop()}

    instruments = Instruments(timer, lambda: lambda: 0.0)
    result = bench(beside, Quiet(), opener=opener, instruments=lambda _: instruments)
    assert result.interrupted
    assert result.measurement.partial
    assert all(len(measured.milliseconds) >= 40 for measured in result.measurement.cases.values())


@pytest.mark.parametrize(("factor", "expected"), [(0.8, Verdict.PASS), (1.4, Verdict.FAIL)])
def test_against_recorded_latencies(factor: float, expected: Verdict, options: BenchOptions, saved: Path) -> None:
    timer = FakeTimer()
    result = fake_bench(replace(options, against=saved), timer, FakeRunner(timer, 3, factor))
    assert overall(result.verdicts) == expected
    assert "latencies in" in result.method
    assert all(verdict.noise_floor > 0 for verdict in result.verdicts)


@pytest.mark.parametrize(("now", "then"), [(0.5, 0.0), (0.0, 0.5)])
@pytest.mark.parametrize("factor", [0.8, 1.4])
def test_the_cpus_that_others_took_are_noise(
    factor: float, now: float, then: float, options: BenchOptions, saved: Path
) -> None:
    save(replace(read_measurement(saved), neighbours=then), saved)
    timer = FakeTimer()
    result = fake_bench(replace(options, against=saved), timer, FakeRunner(timer, 3, factor), neighbours=now)
    assert overall(result.verdicts) == Verdict.UNDECIDED
    assert {verdict.noise_floor for verdict in result.verdicts} == {0.5}


def test_recorded_latencies_are_said_to_be_weak(options: BenchOptions, saved: Path) -> None:
    timer = FakeTimer()
    assert UNTRUSTED in fake_bench(replace(options, against=saved), timer, FakeRunner(timer)).notes
    beside = replace(options, against_engine=options.artifact)
    assert UNTRUSTED not in fake_bench(beside, timer, FakeRunner(timer), FakeRunner(timer)).notes


@pytest.mark.parametrize("factor", [0.85, 1.0, 1.3])
def test_a_machine_that_drifts_decides_nothing_of_recorded_latencies(
    factor: float, options: BenchOptions, tmp_path: Path
) -> None:
    def drifting(seconds: float) -> float:
        return 1.5 if seconds % 4 > 2 else 1.0

    def measured(factor: float, **changes: Any) -> BenchResult:
        timer = FakeTimer()
        runner = FakeRunner(timer, 3, factor, slowness=drifting)
        result: BenchResult = fake_bench(replace(options, **changes), timer, runner)
        return result

    path = save(measured(1.0).measurement, tmp_path / "base.json", path="/gone/out.json")
    assert overall(measured(factor, against=path).verdicts) == Verdict.UNDECIDED


def test_the_baseline_s_artifact_runs_again_where_it_is_at_hand(
    options: BenchOptions, saved: Path, tiny_artifact: Path, tmp_path: Path
) -> None:
    timer = FakeTimer()
    here = tiny_artifact / "out.json"
    known = save(read_measurement(saved), saved, path=str(here))
    rehash(shutil.copytree(tiny_artifact, tmp_path / "new") / "out.onnx", change_weight)
    new = replace(options, against=known, artifact=tmp_path / "new" / "out.onnx")
    result = fake_bench(new, timer, FakeRunner(timer, 1), FakeRunner(timer, 2))
    assert "side by side" in result.method
    assert overall(result.verdicts) == Verdict.PASS
    same = replace(options, against=known, artifact=here)  # beside itself it could not be slower
    result = fake_bench(same, timer, FakeRunner(timer, 1, 1.4))
    assert "with the latencies in" in result.method
    assert overall(result.verdicts) == Verdict.FAIL


def test_a_runtime_that_changed_since_the_baseline_is_said(
    options: BenchOptions, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = read_measurement(saved)
    save(replace(then, machine=replace(then.machine, driver="1")), saved)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99.0" if name == "onnxruntime" else version(name))
    timer = FakeTimer()
    result = fake_bench(replace(options, against=saved), timer, FakeRunner(timer))
    assert result.measurement.artifact["backend"] == {"name": "onnxruntime", "version": "99.0"}
    assert f"onnxruntime is 99.0, in the baseline {then.artifact['backend']['version']}" in result.notes
    assert "the driver is None, in the baseline 1" in result.notes
    assert "the system is" not in " ".join(result.notes)


@pytest.mark.parametrize(("factor", "outcome"), [(1.0, Verdict.PASS), (1.15, Verdict.FAIL)])
def test_waiting_for_a_cpu_makes_nobody_slower(
    factor: float, outcome: Verdict, options: BenchOptions, tmp_path: Path
) -> None:
    beside = replace(options, against_engine=options.artifact, seconds=60)
    for lost, wanted in ((0.0, outcome), (None, Verdict.UNDECIDED)):
        timer = FakeTimer(lost=lost)
        runners = FakeRunner(timer, 1, factor, waits=True), FakeRunner(timer, 2, waits=True)
        result = fake_bench(beside, timer, *runners)
        assert overall(result.verdicts) == wanted
    timer = FakeTimer(lost=0.0)
    recorded = fake_bench(replace(options, seconds=60), timer, FakeRunner(timer, 3, waits=True)).measurement
    against = replace(options, against=save(recorded, tmp_path / "base.json", path="/gone/out.json"), seconds=60)
    timer = FakeTimer(lost=0.0)
    result = fake_bench(against, timer, FakeRunner(timer, 4, factor, waits=True))
    assert (overall(result.verdicts) == Verdict.FAIL) == (outcome == Verdict.FAIL)
    assert any("% of their time for a CPU that others had" in line for line in lines(result))
    timer = FakeTimer(lost=None)  # a kernel that does not tell: what is left out of one session only would decide
    unaware = fake_bench(against, timer, FakeRunner(timer, 5, factor))
    assert overall(unaware.verdicts) == Verdict.PASS


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.3, 1), (1.05, 3)])
def test_exit_status_and_reports_of_a_comparison(
    factor: float, status: int, run_cli: Cli, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = FakeTimer()
    runners = [FakeRunner(timer, 1, factor), FakeRunner(timer, 2)]
    monkeypatch.setattr(export.bench.run, "bench", lambda options, progress, keep: fake_bench(options, timer, *runners))
    files = tmp_path / "bench.xml", tmp_path / "bench.md"
    ran = run_cli(
        *("bench", tiny_artifact / "out.json", "--against-engine", tiny_artifact / "out.json", "--seconds", 10),
        *("--junit", files[0], "--markdown", files[1]),
    )
    assert ran.status == status, ran.err
    word = {0: "passed", 1: "FAILED", 3: "undecided"}[status]
    assert word in ran.out
    assert word in files[1].read_text()
    kind = {0: None, 1: junitparser.Failure, 3: junitparser.Skipped}[status]
    found = [entry for suite in junitparser.JUnitXml.fromfile(str(files[0])) for entry in suite]
    assert len(found) == 2
    assert all([type(result) for result in entry.result] == ([] if kind is None else [kind]) for entry in found)
