"""`python -m export bench` on the tiny artifact: what it measures, writes, compares and refuses."""

import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import junitparser
import onnx
import psutil
import pytest
import torch
from torch import Tensor

import export.bench.run
from export.bench.artifact import synchronisations
from export.bench.calls import Case, Inputs
from export.bench.environment import Activity, Machine, pinned, warnings
from export.bench.instruments import Instruments
from export.bench.measure import Ended
from export.bench.measurement import ONE_SAMPLE, Measurement, read_measurement
from export.bench.operators import Operators, turns, typical
from export.bench.report import latency_table, lines, operator_table
from export.bench.run import BenchOptions, bench
from export.bench.summary import case_summaries
from export.errors import BaselineError
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from export.samples.choice import DataOptions
from madtp.files.inputs import sha256
from madtp.tasks.requests import Outputs, Runner
from tests.helpers.artifact_samples import samples_of
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.bench import FakeRunner, FakeTimer, Quiet, as_plan, fake_bench, save
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran
from tests.helpers.defects import edit

Cli = Callable[..., Ran]
QUICK = ("--seconds", 0.05, "--no-profile")


CASES = [Case(0.0, 1), Case(TAU, 1), Case(0.0, 2), Case(TAU, 2)]


@pytest.fixture
def measured(run_cli: Cli, tiny_artifact: Path, samples_folder: Path, tmp_path: Path) -> tuple[dict[str, Path], str]:
    """Files of every kind that bench wrote of CASES, and what it printed."""
    files = {name: tmp_path / name for name in ("base.json", "all.json", "bench.md", "bench.xml")}
    options = zip(("--save", "--json", "--markdown", "--junit"), files.values(), strict=True)
    ran = run_cli(
        *("bench", tiny_artifact / "out.onnx", "--samples", samples_folder, "--seconds", 0.2, "--threads", 1),
        *("--batch", 1, "--batch", 2, *(entry for option in options for entry in option)),
    )
    assert ran.status == 0, ran.err
    return files, ran.out


def test_every_case_is_measured_and_saved(measured: tuple[dict[str, Path], str]) -> None:
    files, _ = measured
    base = read_measurement(files["base.json"])
    assert read_measurement(files["all.json"]) == base
    assert list(base.cases) == CASES
    assert base.machine.threads == 1
    assert base.artifact["backend"]["name"] == "onnxruntime"
    assert base.samples["requests"] == 8
    assert [len(kept.total) for kept in base.kept.values()] == [8, 8, 4, 4]


def test_the_json_has_summaries_and_operators(measured: tuple[dict[str, Path], str]) -> None:
    files, _ = measured
    everything = json.loads(files["all.json"].read_text())
    assert [summary["case"]["batch"] for summary in everything["summaries"]] == [1, 1, 2, 2]
    assert len(everything["speed_ups"]) == 2
    assert all(0 < speed_up["efficiency"] < math.inf for speed_up in everything["speed_ups"])
    assert [Case(**entry["case"]) for entry in everything["operators"]] == CASES
    for entry, summary in zip(everything["operators"], everything["summaries"], strict=True):
        assert {"AlignedAttention", "TokenCompact", "MatMul"} <= entry["milliseconds"].keys()
        assert summary["gflops"] == entry["gflops"] > 0
        assert (summary["runs"], summary["synchronisations"]) == ({"model": 1}, {"model": 0})
    dense, pruned = everything["operators"][:2]
    assert everything["gflops_from"] == "profile"
    assert sum(everything["lost_milliseconds"].values()) == pytest.approx(
        sum(pruned["milliseconds"].values()) - sum(dense["milliseconds"].values()) * pruned["gflops"] / dense["gflops"]
    )


def test_the_other_reports_have_every_case(measured: tuple[dict[str, Path], str]) -> None:
    files, out = measured
    assert files["bench.md"].read_text().count("| dense, batch") == 2
    assert len(list(next(iter(junitparser.JUnitXml.fromfile(str(files["bench.xml"])))))) == 4
    for words in (
        "Dense over pruned",
        "efficiency",
        "host synchronisations per call, by the manifest: model 0",
        "load",
    ):
        assert words in out


@pytest.mark.parametrize("external", [False, True])
def test_profiled_gflops_are_those_of_the_manifest(external: bool, tiny_artifact: Path, tmp_path: Path) -> None:
    folder = tiny_artifact
    if external:  # weights in a file of their own
        folder = shutil.copytree(tiny_artifact, tmp_path / "external")
        path, weights = folder / "out.onnx", folder / "out.onnx.data"
        onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location=weights.name)
        entry = {"sha256": sha256(path), "external_data": {"file": weights.name, "sha256": sha256(weights)}}
        edit(path, lambda manifest: manifest["parts"][0].update(entry))
    result = bench(BenchOptions(folder / "out.json", seconds=0.01), Quiet())
    assert {"AlignedAttention", "TokenCompact"} <= result.operators[Case(TAU, 1)].milliseconds.keys()
    counted = result.described.manifest.validation.gflops.dense
    # The manifest counts layer norms too, but no alignment products where nothing is pruned.
    assert result.operators[Case(0.0, 1)].gflops == pytest.approx(counted, rel=0.25)


def test_calls_are_grouped_by_the_tokens_they_keep(options: BenchOptions, samples_folder: Path) -> None:
    timer = FakeTimer()
    result = fake_bench(replace(options, samples=samples_folder), timer, FakeRunner(timer))
    dense, pruned = case_summaries(result)
    assert len(dense.groups) == 1
    assert [(group.fewest, group.most) for group in pruned.groups] == [(8, 8), (12, 12), (16, 16)]
    medians = [group.latency.p50 for group in pruned.groups]
    assert medians == pytest.approx([8, 12, 16], rel=0.05)
    assert sum(group.latency.calls for group in pruned.groups) == pruned.latency.calls
    assert dense.requests_per_second == pytest.approx(50, rel=0.05)


def test_measuring_settles_on_a_quiet_machine(options: BenchOptions, samples_folder: Path) -> None:
    timer = FakeTimer()
    patient = replace(options, samples=samples_folder, seconds=100)
    assert fake_bench(patient, timer, FakeRunner(timer)).measurement.ended == Ended.SETTLED


class FakeMeter:
    """The GPU is busy for half of what the clock shows."""

    def __init__(self, timer: FakeTimer) -> None:
        self.timer, self.since = timer, 0.0

    def take(self) -> float:
        milliseconds, self.since = 500 * (self.timer.seconds - self.since), self.timer.seconds
        return milliseconds


def test_gpu_time_is_shown_beside_the_clock_s(options: BenchOptions) -> None:
    timer = FakeTimer()
    result = fake_bench(options, timer, FakeRunner(timer), meter=FakeMeter(timer))
    for measured in result.measurement.cases.values():
        assert measured.device == pytest.approx([value / 2 for value in measured.milliseconds], abs=1e-4)
    for summary in case_summaries(result):
        assert summary.device is not None
        assert summary.device.p50 == pytest.approx(summary.latency.p50 / 2, abs=1e-4)
    assert "GPU p50" in [column.header for column in latency_table(result).columns]
    without = fake_bench(options, timer, FakeRunner(timer))
    assert "GPU p50" not in [column.header for column in latency_table(without).columns]
    assert without.measurement.to_json()["cases"][0]["device_milliseconds"] is None


def test_what_was_measured_is_kept_while_measuring(options: BenchOptions, tmp_path: Path) -> None:
    timer, kept, rounds = FakeTimer(), list[Measurement](), list[int]()

    def keep(measurement: Measurement) -> None:
        kept.append(measurement)
        rounds.append(len(next(iter(measurement.cases.values())).milliseconds))

    slow = FakeRunner(timer, factor=30)
    whole = fake_bench(replace(options, seconds=60), timer, slow, keep=keep).measurement
    assert 3 <= len(kept) <= 7  # at once, then every ten seconds of a minute
    for measurement in kept:
        assert measurement.partial
        with pytest.raises(BaselineError, match="is partial"):
            read_measurement(save(measurement, tmp_path / "killed.json"))
    assert rounds[0] == 1
    assert rounds == sorted(set(rounds))
    assert not whole.partial


def test_layers_of_a_plan_are_profiled_by_kind(options: BenchOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    described = as_plan(Artifact.open(options.artifact))
    monkeypatch.setattr(Artifact, "open", lambda path: described)
    monkeypatch.setattr(export.bench.run, "choose_samples", lambda *given, **named: samples)
    where = (described.manifest, described.folder, described.config)
    samples = samples_of(*where, DataOptions(), demos=3)
    timer, opened = FakeTimer(), list[RunnerOptions]()

    class Profiled(FakeRunner):
        def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
            times = opened[-1].layer_milliseconds
            if times is not None:
                for layer, milliseconds in (("block_0/matmul_1", 2.0), ("block_1/matmul_2", 1.0), ("copy", 0.5)):
                    times[layer] += milliseconds * (2 if temperature == 0 else 1)
            return super().run(inputs, temperature)

    def opener(described: Artifact, how: RunnerOptions) -> dict[str, Runner]:
        opened.append(how)
        return {"model": Profiled(timer)}

    result = bench(options, Quiet(), opener=opener, instruments=lambda _: Instruments(timer))
    dense, pruned = result.operators.values()
    assert dense.milliseconds == {"block_#/matmul_#": 6.0, "copy": 1.0}
    assert pruned.milliseconds == {"block_#/matmul_#": 3.0, "copy": 0.5}
    table = operator_table(result)
    assert "TensorRT's layer profiler" in str(table.title)
    assert table.row_count == 3
    assert table.columns[-1].header == "lost"
    waits = [summary.synchronisations for summary in case_summaries(result)]
    assert waits == 2 * [synchronisations(result.described.manifest)]
    assert any("GFLOPs are the manifest's, of the export's samples: " in line for line in lines(result))
    counted = described.manifest.validation.gflops
    assert [summary.gflops for summary in case_summaries(result)] == [counted.dense, counted.pruned]


def test_a_decoder_s_runs_are_counted(task_artifacts: TaskArtifacts) -> None:
    result = bench(BenchOptions(task_artifacts["caption"] / "out.json", seconds=0.01, profile=False), Quiet())
    plan = replace(result, described=as_plan(result.described))
    each = synchronisations(plan.described.manifest)
    for summary in case_summaries(plan):
        assert summary.runs["encoder"] == 1
        assert summary.runs["decoder"] > 1
        assert summary.synchronisations == {part: summary.runs[part] * each[part] for part in ("encoder", "decoder")}
    assert any(re.search(r"by the manifest: .*encoder 2, decoder \d.* runs\)", line) for line in lines(plan))


def test_what_is_profiled_stands_for_all_calls() -> None:
    def operators(milliseconds: dict[str, float], gflops: float | None) -> Operators:
        return Operators("a profiler", milliseconds, gflops)

    calls = [operators({"a": 1.0, "b": 3.0}, 2.0), operators({"a": 99.0, "b": 4.0}, 4.0), operators({"b": 5.0}, 6.0)]
    found = typical(calls)
    assert (found.milliseconds, found.gflops) == ({"b": 4.0, "a": 1.0}, 4.0)  # one disturbed call does not show
    assert typical([operators({"a": 1.0}, None)]).gflops is None
    one: Inputs = {}
    dense, pruned, large = Case(0.0, 1), Case(0.5, 1), Case(0.5, 8)
    assert turns({dense: [one] * 2, pruned: [one] * 2, large: [one]}) == [
        *((dense, 0), (pruned, 0), (large, 0)),
        *((dense, 1), (pruned, 1)),
    ]


def test_a_measurement_of_schema_3_is_read_without_its_reference_workload(saved: Path) -> None:
    expected = read_measurement(saved)
    content = json.loads(saved.read_text()) | {"schema": 3, "yardstick": "2 layers"}
    for case in content["cases"]:
        case |= {"yardstick_milliseconds": case["milliseconds"], "yardstick_repetitions": 2}
    saved.write_text(json.dumps(content))
    assert read_measurement(saved) == expected


def test_an_interrupt_keeps_what_was_measured_and_says_that_it_is_partial(
    run_cli: Cli, tiny_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = FakeTimer()
    runner = FakeRunner(timer, interrupt_at=150)
    monkeypatch.setattr(export.bench.run, "bench", lambda options, progress, keep: fake_bench(options, timer, runner))
    files = [tmp_path / name for name in ("base.json", "all.json", "bench.xml")]
    ran = run_cli(*("bench", tiny_artifact / "out.json", "--save", files[0], "--json", files[1], "--junit", files[2]))
    assert ran.status == 2
    assert "interrupted: what was measured is marked partial" in ran.err
    assert json.loads(files[0].read_text())["partial"]
    assert json.loads(files[1].read_text())["measurement"]["partial"]
    assert "skipped" in files[2].read_text()
    monkeypatch.undo()
    run_cli("bench", tiny_artifact / "out.json", "--against", files[0]).refused("is partial")


def test_an_interrupt_before_the_first_round_writes_nothing(options: BenchOptions) -> None:
    timer = FakeTimer()
    with pytest.raises(KeyboardInterrupt):
        fake_bench(options, timer, FakeRunner(timer, interrupt_at=60))


def test_one_sample_is_measured_and_remarked_on(
    run_cli: Cli, tiny_artifact: Path, samples_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(samples_folder, tmp_path / "one")
    entries = json.loads((folder / "samples.json").read_text())
    (folder / "samples.json").write_text(json.dumps(entries[:1]))
    ran = run_cli("bench", tiny_artifact / "out.json", "--samples", folder, *QUICK)
    assert ran.status == 0, ran.err
    assert ONE_SAMPLE in " ".join(ran.out.split())
    (folder / "samples.json").write_text("[]")
    run_cli("bench", tiny_artifact / "out.json", "--samples", folder, *QUICK).refused("lists 0 samples")
    (folder / "samples.json").write_text(json.dumps(entries[:1]))
    (folder / "vocab.txt").unlink()
    run_cli("bench", tiny_artifact / "out.json", "--samples", folder, *QUICK).refused("vocab.txt", "has none")


def test_generated_samples(run_cli: Cli, tiny_artifact: Path) -> None:
    ran = run_cli("bench", tiny_artifact / "out.json", "--synthetic", *QUICK)
    assert ran.status == 0, ran.err
    assert "synthetic" in ran.out


def test_what_disturbs_a_measurement_is_said() -> None:
    machine = Machine("cpu", "x86_64", 2, ["GPU"], "600", 2, "Linux")
    quiet = Activity(0.1, 2000.0, None, [])
    assert warnings(machine, quiet, quiet, 0.05) == []
    gpu = {"sm_megahertz": 1000, "memory_megahertz": 1000, "celsius": 80, "held_back_by": ["software power cap"]}
    found = warnings(machine, Activity(3.0, None, "powersave", []), Activity(0.1, None, None, [gpu]), 0.2)
    assert len(found) == 4
    for text, word in zip(found, ("took 20 %", "load 3 on 2 cores", "powersave", "software power cap"), strict=True):
        assert word in text


def test_threads_are_given_back() -> None:
    def cpus() -> set[frozenset[int]]:
        return {frozenset(os.sched_getaffinity(thread.id)) for thread in psutil.Process().threads()}

    before, all_cpus = torch.get_num_threads(), os.sched_getaffinity(0)
    running = threading.Event()
    earlier = threading.Thread(target=running.wait)  # as torch has, from preparing samples
    earlier.start()
    with pinned(1):
        assert torch.get_num_threads() == 1
        assert cpus() == {frozenset([min(all_cpus)])}
    assert torch.get_num_threads() == before
    assert cpus() == {frozenset(all_cpus)}
    running.set()
    earlier.join()
    with pinned(None):
        assert torch.get_num_threads() == before
