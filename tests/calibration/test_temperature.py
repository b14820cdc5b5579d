"""`calibration temperature`: costs counted right, resumed, repeated, and refused where nothing can be found."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import madtp
from calibration import temperature_command
from calibration.budget import Budget
from calibration.latency import Latency, measure_latencies
from calibration.requests import DataChoice
from calibration.runs import DENSE, Runs
from calibration.setup import prepare
from calibration.temperature_command import by_latency, doubts
from calibration.temperature_file import read_temperature, write_temperature
from calibration.tokens import Source, partial_path
from madtp.data.samples import Request, collate, load_samples
from madtp.data.synthetic import synthetic_samples
from madtp.errors import TemperatureError
from madtp.files.inputs import sha256
from madtp.models.parts import parts_of
from madtp.ops.flops import count_call
from madtp.tasks.requests import run_request, torch_runners
from tests.helpers.checkpoints import TAU, save_checkpoint, write_task_checkpoint

Write = Callable[..., Path]
Reads = list[Callable[[], Request]]


@pytest.fixture(autouse=True)
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temperature_command, "ROUNDS", 1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_state: dict[str, Any]) -> Path:
    """A folder for the tiny checkpoint and its file, which is written once."""
    folder = tmp_path_factory.mktemp("temperature")
    save_checkpoint(folder / "tiny.pt", tiny_state)
    return folder


SHARED = ("--reduction", "0.1", "--tolerance", "0.05")


@pytest.fixture
def written(made: Path, samples_folder: Path, tmp_path: Path, run: Any) -> Path:
    """A copy of that file."""
    output, copy = made / "temperature.json", tmp_path / "temperature.json"
    if not output.exists():
        ran = run("temperature", "--ckpt", made / "tiny.pt", "--data", samples_folder, "-o", output, *SHARED)
        assert ran.status == 0, ran
        assert "100 %" in ran.err
        assert "fewer than dense" in ran.out
        assert not partial_path(output).exists()
    shutil.copyfile(output, copy)
    return copy


def without_times(path: Path) -> Any:
    content = json.loads(path.read_text())
    for point in content["points"]:
        del point["latency"]
    return content


def test_the_file_holds_what_every_temperature_costs_and_is_worth(
    written: Path, made: Path, samples_folder: Path
) -> None:
    found, checkpoint = read_temperature(written), made / "tiny.pt"
    assert found.source.checkpoint_sha256 == sha256(checkpoint)
    assert found.samples == 8
    dense, *pruned = found.points
    assert (dense.temperature, dense.reduction, dense.agreement) == (0.0, 0.0, 1.0)
    assert found.found.reduction == pytest.approx(0.1, abs=0.05)
    assert [point.temperature for point in pruned] == sorted(point.temperature for point in pruned)
    model = madtp.load(checkpoint)
    requests = load_samples(samples_folder, checkpoint, model.config).requests
    costs, answers, runners = [], [], torch_runners(parts_of(model))
    for request in requests:
        inputs = collate([request], model.config)
        call = partial(run_request, model.config, runners, inputs, found.source.temperature)
        costs.append(count_call(call).giga)
        answers.append(int(call()["logits"].argmax()))
    assert found.found.gflops.mean == pytest.approx(np.mean(costs))
    assert found.found.accuracy == np.mean(
        [answer == request.label for answer, request in zip(answers, requests, strict=True)]
    )
    assert found.found.latency.low > 0


def test_the_same_command_writes_the_same_but_for_times(
    written: Path, made: Path, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    again = tmp_path / "again.json"
    given = ("--ckpt", made / "tiny.pt", "--data", samples_folder, "-o", again)
    assert run("temperature", *given, *SHARED).status == 0
    assert without_times(again) == without_times(written)


def requests_of(model: Any) -> Reads:
    return [lambda request=request: request for request in synthetic_samples(model.config).requests]


@pytest.mark.parametrize("task", ["vqa", "caption", "retrieval", "clip"])
def test_decisions_of_every_task_are_compared(task: str, tmp_path: Path) -> None:
    """An interrupted run goes on to what a whole one gives, decisions over all requests included."""
    model = madtp.load(write_task_checkpoint(task, tmp_path / "tiny.pt"))
    source, reads = Source("a" * 64, task, TAU, "random", None), requests_of(model)[:4]

    def stop() -> Request:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Runs(model, [*reads[:2], stop, stop], source, tmp_path / "out.json").at(TAU)
    resumed = Runs(model, [stop, stop, *reads[2:]], source, tmp_path / "out.json").at(TAU)
    whole = Runs(model, reads, source, tmp_path / "whole.json").at(TAU)
    assert resumed == whole
    assert len(whole.gflops) == 4
    assert len(whole.decisions) == {"vqa": 4, "caption": 4, "retrieval": 12, "clip": 8}[task]


def test_measured_temperatures_are_not_measured_again(tiny_checkpoint: Write, tmp_path: Path) -> None:
    model, output = madtp.load(tiny_checkpoint()), tmp_path / "out.json"
    source, reads = Source("a" * 64, "nlvr", TAU, "random", None), requests_of(model)[:3]
    first = Runs(model, reads, source, output)
    before = [first.at(DENSE), first.at(TAU)]
    later = Runs(model, reads, source, output)
    assert later.runs == before
    assert later.labels == first.labels
    with pytest.raises(TemperatureError, match="of something else"):
        Runs(model, reads, replace(source, data="others"), output)
    with pytest.raises(TemperatureError, match="of something else"):
        Runs(model, reads[:2], source, output)


@pytest.mark.parametrize(
    ("content", "part"),
    [("{", "cannot read"), ('{"schema": 7}', "schema 7"), ('{"schema": 1, "begun": null}', "malformed")],
)
def test_a_damaged_partial_file_is_refused(content: str, part: str, tiny_checkpoint: Write, tmp_path: Path) -> None:
    model = madtp.load(tiny_checkpoint())
    partial_path(tmp_path / "out.json").write_text(content)
    with pytest.raises(TemperatureError, match=part):
        Runs(model, requests_of(model), Source("a" * 64, "nlvr", TAU, "", None), tmp_path / "out.json")


def test_latencies_are_of_every_temperature(tiny_checkpoint: Write) -> None:
    model, rounds = madtp.load(tiny_checkpoint()), list[int]()
    inputs = [collate([read()], model.config) for read in requests_of(model)[:2]]
    found = measure_latencies(model, inputs, [DENSE, TAU], 1, lambda done, _: rounds.append(done))
    assert list(found) == [DENSE, TAU]
    assert all(0 < one.low <= one.high and one.median > 0 for one in found.values())
    assert rounds == [1, 2]


def test_a_latency_is_searched_for_in_what_is_measured(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that is exactly as fast as this curve: 10 ms dense, 6 to 2 ms pruned."""

    def measure(_: Any, inputs: Sequence[Any], temperatures: Sequence[float], *__: Any, **___: Any) -> Any:
        assert len(inputs) == 8
        curve = {tau: 10.0 if tau == 0 else 2 + 4 / (1 + tau) for tau in temperatures}
        return {tau: Latency(value, value, value) for tau, value in curve.items()}

    monkeypatch.setattr(temperature_command, "measure_latencies", measure)
    output, given = tmp_path / "t.json", ("--ckpt", tiny_checkpoint(), "--data", samples_folder)
    assert run("temperature", *given, "--latency", "3ms", "-o", output).status == 0
    found = read_temperature(output)
    assert found.source.temperature == pytest.approx(3.0, rel=0.05)
    assert found.doubts == ()
    for asked, part in (("8ms", "no temperature meets"), ("1500us", "reach 6 to 2 ms"), ("0.01s", "the dense model")):
        run("temperature", *given, "--latency", asked, "-o", output).refused(part)


def test_a_machine_that_becomes_faster_is_followed(tiny_checkpoint: Write, tmp_path: Path) -> None:
    """Latencies halve while the search goes on."""
    model = madtp.load(tiny_checkpoint())
    runs = Runs(model, requests_of(model)[:2], Source("a" * 64, "nlvr", TAU, "random", None), tmp_path / "t.json")
    calls: list[int] = []

    def measure(temperatures: Sequence[float], rounds: int) -> dict[float, Latency]:
        calls.append(rounds)
        speed = 1.0 if len(calls) < 4 else 0.5
        curve = {tau: speed * (10.0 if tau == 0 else 2 + 4 / (1 + tau)) for tau in temperatures}
        return {tau: Latency(value, value, value) for tau, value in curve.items()}

    best, final = by_latency(measure, runs, Budget("latency", 0.0025), 0.02, TAU)
    assert final[best].median == pytest.approx(2.5, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--data", "nowhere"), "there is no folder 'nowhere'"),
        (("--gflops", "nan"), "--gflops is nan"),
        (("--gflops", "1e9"), "no less than what the dense model takes"),
        (("--reduction", "0.99"), "Temperatures reach"),
        (("--latency", "3"), "a duration with its unit"),
        (("--limit", "1"), "1 sample cannot be calibrated with"),
        (("--ckpt", "nowhere.pt"), "nowhere.pt"),
    ],
)
def test_bad_input(
    arguments: tuple[str, str], part: str, tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    given = {"--ckpt": tiny_checkpoint(), "--data": samples_folder, "-o": tmp_path / "t.json"} | dict([arguments])
    if not {"--gflops", "--reduction", "--latency"} & given.keys():
        given["--reduction"] = "0.1"
    run("temperature", *(entry for pair in given.items() for entry in pair)).refused(part)
    assert not (tmp_path / "t.json").exists()


def test_an_empty_folder_and_a_foreign_output_are_refused(
    tiny_checkpoint: Write, samples_folder: Path, tmp_path: Path, run: Any
) -> None:
    empty, foreign = tmp_path / "empty", tmp_path / "notes.json"
    empty.mkdir()
    foreign.write_text('{"mine": 1}')
    given = ("temperature", "--ckpt", tiny_checkpoint(), "--reduction", "0.1")
    run(*given).refused("Missing option '--data'")
    run(*given, "--data", empty).refused("nlvr_test.json")
    run(*given, "--data", samples_folder, "-o", foreign).refused("is not a file of measured temperatures")
    assert foreign.read_text() == '{"mine": 1}'


def test_a_checkpoint_without_a_temperature_begins_elsewhere(tiny_checkpoint: Write, samples_folder: Path) -> None:
    choice = DataChoice(samples_folder)
    begun = [
        prepare(tiny_checkpoint(temperature=tau), None, None, choice, otherwise=1.0).source.temperature
        for tau in (0.0, TAU)
    ]
    assert begun == [1.0, TAU]


def test_a_file_is_read_as_it_was_written(written: Path, tmp_path: Path) -> None:
    found = read_temperature(written)
    write_temperature(found, tmp_path / "again.json")
    assert read_temperature(tmp_path / "again.json") == found


@pytest.mark.parametrize(
    "change",
    [{"points": []}, {"points": [{}]}, {"budget": {"kind": "gflops"}}, {"temperature": 77.0}, {"schema": 2}],
)
def test_malformed_files_are_refused(change: dict[str, Any], written: Path) -> None:
    written.write_text(json.dumps(json.loads(written.read_text()) | change))
    with pytest.raises(TemperatureError, match=r"malformed|schema 2"):
        read_temperature(written)
    written.write_text(written.read_text()[:99])
    with pytest.raises(TemperatureError, match="cannot read"):
        read_temperature(written)


def test_few_samples_and_missed_budgets_are_said(written: Path) -> None:
    found = replace(read_temperature(written), tolerance=1e-4)
    missed, few = doubts(found, [])
    assert "there the curve is steep" in missed
    assert "8 samples know the mean to" in few
    assert doubts(replace(found, tolerance=0.5), []) == []
