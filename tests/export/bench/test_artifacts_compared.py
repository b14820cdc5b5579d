"""Several artifacts of one checkpoint in `bench`: their speed, size, answers and tokens beside the first one's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from export.bench.agreement import AnsweringRunners, agreement
from export.bench.calls import Case, calls_of
from export.bench.comparison import Comparison, Speed, compare
from export.bench.comparison_report import lines
from export.bench.instruments import Instruments
from export.bench.measure import Ended
from export.bench.run import BenchOptions, cases_and_samples
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from madtp.models.config import NlvrConfig
from madtp.tasks.requests import Runner
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.bench import FakeRunner, FakeTimer, Quiet
from tests.helpers.checkpoints import TAU, TINY
from tests.helpers.command_line import Ran
from tests.helpers.defects import rehash
from tests.helpers.manifests import edit_manifest

Cli = Callable[..., Ran]
DENSE, PRUNED = Case(0.0, 1), Case(TAU, 1)


@pytest.fixture
def others(tiny_artifact: Path, tmp_path: Path) -> list[Path]:
    """Two more artifacts of the checkpoint; one answers the opposite."""
    for name in ("same", "other"):
        shutil.copytree(tiny_artifact, tmp_path / name)
    rehash(tmp_path / "other" / "out.onnx", negate_logits)
    return [tmp_path / name / "out.json" for name in ("same", "other")]


def negate_logits(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.startswith("cls_head.2."):
            tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))


def fake_comparison(options: BenchOptions, others: list[Path], timer: FakeTimer, *factors: float) -> Comparison:
    """Compare with fake runners: times of each artifact by their factors, and answers of their own."""
    runners = [FakeRunner(timer, seed=number, factor=factor) for number, factor in enumerate(factors)]
    waiting = iter([*runners, *reversed(runners)])
    answering = AnsweringRunners(NlvrConfig(**TINY), {"model": FakeRunner(FakeTimer())})

    def opener(described: Artifact, how: RunnerOptions) -> dict[str, Runner]:
        return {"model": next(waiting)}

    tools = Instruments(timer, lambda: lambda: 0.0)
    return compare(options, others, Quiet(), opener, lambda artifact, how: answering, tools)


def test_an_artifact_is_faster_or_not_by_its_interval(options: BenchOptions, others: list[Path]) -> None:
    timer = FakeTimer()
    compared = fake_comparison(replace(options, seconds=100), others, timer, 1.0, 0.5, 1.2)
    assert compared.measurement.ended == Ended.SETTLED
    speeds = [[entry.speed for entry in artifact.cases.values()] for artifact in compared.compared]
    assert speeds[1:] == [[Speed.FASTER] * 2, [Speed.NOT_FASTER] * 2]
    assert compared.compared[1].cases[DENSE].speed_up.ratio == pytest.approx(2, rel=0.02)
    assert compared.compared[2].cases[PRUNED].speed_up.ratio == pytest.approx(1 / 1.2, rel=0.02)
    said = lines(compared)[-2:]
    assert "faster: dense, batch 1 2.0" in said[0]
    assert "not faster here: dense, batch 1 0.8" in said[1]


def test_two_percent_are_not_called_faster(options: BenchOptions, others: list[Path]) -> None:
    timer = FakeTimer()
    compared = fake_comparison(replace(options, seconds=1000), others[:1], timer, 1.0, 0.99)
    assert {entry.speed for entry in compared.compared[1].cases.values()} == {Speed.NOT_FASTER}


def test_p50s_that_deny_it_leave_it_undecided(options: BenchOptions, others: list[Path]) -> None:
    timer = FakeTimer()
    compared = fake_comparison(replace(options, seconds=100), others[:1], timer, 1.0, 0.5).compared[1]
    assert compared.cases[DENSE].speed == Speed.FASTER
    assert replace(compared.cases[DENSE], first_p50=0.1).speed == Speed.UNDECIDED


def test_few_rounds_leave_it_undecided(options: BenchOptions, others: list[Path]) -> None:
    timer = FakeTimer()
    compared = fake_comparison(replace(options, seconds=0.01), others[:1], timer, 1.0, 0.97)
    assert {entry.speed for entry in compared.compared[1].cases.values()} == {Speed.UNDECIDED}
    assert "undecided: dense, batch 1" in lines(compared)[-1]


def test_answers_tokens_and_sizes_are_compared(
    run_cli: Cli, tiny_artifact: Path, others: list[Path], samples_folder: Path, tmp_path: Path
) -> None:
    files = {"--json": tmp_path / "all.json", "--markdown": tmp_path / "all.md"}
    ran = run_cli(
        *("bench", tiny_artifact / "out.json", *others, "--samples", samples_folder, "--seconds", 0.05),
        *(entry for option in files.items() for entry in option),
    )
    assert ran.status == 0, ran.err
    written = json.loads(files["--json"].read_text())
    first, same, other = written["compared"]
    files_of_it = [path for path in others[0].parent.iterdir() if path.name != "tiny.pt"]
    assert same["bytes"] == sum(path.stat().st_size for path in files_of_it)
    assert len({entry["name"] for entry in written["compared"]}) == 3
    for case, changed in zip(same["cases"], other["cases"], strict=True):
        assert (case["equal"], case["requests"], case["layers_equal"], case["jaccard"]) == (8, 8, 1.0, 1.0)
        assert (changed["equal"], changed["layers_equal"], changed["jaccard"]) == (0, 1.0, 1.0)
    assert first["cases"][1]["tokens"] == same["cases"][1]["tokens"] > 0
    assert len(written["said"]) == 2
    for text in (ran.out, files["--markdown"].read_text()):
        assert "first / this" in text
        assert written["said"][0] in text


@pytest.mark.parametrize("task", ["retrieval", "vqa"])
def test_a_task_of_several_parts_agrees_with_itself(task: str, task_artifacts: TaskArtifacts) -> None:
    artifact = Artifact.open(task_artifacts[task] / "out.json")
    cases, samples = cases_and_samples(BenchOptions(artifact.path, synthetic=True), artifact)
    runners = AnsweringRunners.of_artifact(artifact, RunnerOptions(threads=1))
    found = runners.answers(calls_of(samples, artifact.config, 1)[:3], cases[-1])
    agreed = agreement(found, found)
    assert (agreed.equal, agreed.layers_equal, agreed.jaccard) == (agreed.requests, 1.0, 1.0)
    assert agreed.requests == 3


def test_another_checkpoint_task_or_layout_is_refused(
    run_cli: Cli, tiny_artifact: Path, others: list[Path], task_artifacts: TaskArtifacts
) -> None:
    first = tiny_artifact / "out.json"
    run_cli("bench", first, first).refused("is named twice")
    run_cli("bench", first, task_artifacts["clip"] / "out.json").refused("does not compare", "task is clip")

    def of_another(manifest: dict) -> None:
        manifest["checkpoint"]["sha256"] = manifest["parts"][0]["checkpoint_sha256"] = "0" * 64

    edit_manifest(others[0], of_another)
    run_cli("bench", first, others[0]).refused("does not compare", "checkpoint is 000000000000")


@pytest.mark.parametrize("option", ["--save", "--against", "--against-engine", "--junit"])
def test_options_of_one_artifact_are_refused(
    option: str, run_cli: Cli, tiny_artifact: Path, others: list[Path]
) -> None:
    run_cli("bench", tiny_artifact / "out.json", *others, option, "x").refused(f"{option} is of one artifact")


def test_outputs_take_the_place_of_no_artifact(run_cli: Cli, tiny_artifact: Path, others: list[Path]) -> None:
    run_cli("bench", tiny_artifact / "out.json", *others, "--json", others[1]).refused("would overwrite")
