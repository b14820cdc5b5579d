"""Torch's results on an export's samples: each batch runs once, dense ones are put together where they can be."""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

import madtp
from export.build import validation
from export.build.gflops import mean_gflops
from export.build.prepare import Prepared
from export.build.torch_results import Batch, TorchResults, joined_results
from export.validate.comparator import run_batch
from export.validate.model_runner import TorchModelRunner
from madtp.checkpoint.loading import Model
from madtp.data.samples import Request, SampleSet, load_samples
from madtp.data.synthetic import synthetic_samples
from madtp.models.parts import parts_of
from tests.helpers.checkpoints import TAU, write_task_checkpoint
from tests.helpers.command_line import Ran

COUNT = 4


@pytest.fixture(scope="module")
def model(tiny_artifact: Path) -> Model:
    return madtp.load(tiny_artifact / "tiny.pt")


@pytest.fixture(scope="module")
def samples(model: Model) -> SampleSet:
    """Four samples with texts of different lengths."""
    made = synthetic_samples(model.config, lengths=(2, 16))
    return SampleSet(made.requests[:COUNT], "synthetic", fits=False)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Requests and temperature of every run in torch."""
    found: list[tuple[int, float]] = []
    run = TorchModelRunner.run

    def noted(self: TorchModelRunner, inputs: Any, temperature: float) -> Any:
        found.append((len(next(iter(inputs.values()))), temperature))
        return run(self, inputs, temperature)

    monkeypatch.setattr(TorchModelRunner, "run", noted)
    return found


def results_of(model: Model, samples: SampleSet, loads: list[int] | None = None) -> TorchResults:
    def load() -> Model:
        if loads is not None:
            loads.append(1)
        return model

    return TorchResults(load, torch.float32, model.config, samples)


def all_batches() -> list[Batch]:
    """Every sample alone and all together, pruned and dense."""
    together = tuple(range(COUNT))
    groups = [*((index,) for index in together), together]
    return [Batch(group, temperature) for temperature in (TAU, 0.0) for group in groups]


def test_dense_batches_run_where_activations_share_a_scale(
    model: Model, samples: SampleSet, runs: list[tuple[int, float]]
) -> None:
    context = lambda _: nullcontext  # noqa: E731
    results = TorchResults(lambda: model, torch.float32, model.config, samples, context, counts=False)
    for batch in all_batches():
        results.result(batch)
    assert runs.count((COUNT, 0.0)) == 1


def test_every_batch_runs_once_and_dense_requests_alone_only(
    model: Model, samples: SampleSet, runs: list[tuple[int, float]]
) -> None:
    results = results_of(model, samples)
    results.outputs_alone(TAU)
    for batch in all_batches():
        results.result(batch)
    results.gflops(TAU)
    assert sorted(runs) == sorted([(1, TAU)] * COUNT + [(COUNT, TAU)] + [(1, 0.0)] * COUNT)


def test_the_model_is_not_loaded_for_what_is_known(model: Model, samples: SampleSet) -> None:
    loads: list[int] = []
    results = results_of(model, samples, loads)
    batch = all_batches()[0]
    results.result(batch)
    results.free_model()
    results.result(batch)
    assert len(loads) == 1
    results.result(all_batches()[1])
    assert len(loads) == 2


def test_gflops_are_those_of_the_requests_alone(model: Model, samples: SampleSet) -> None:
    results = results_of(model, samples)
    for temperature in (0.0, TAU):
        counted = mean_gflops(model.config, parts_of(model), samples, temperature)
        assert results.mean_gflops(temperature) == pytest.approx(counted, rel=1e-12)


def same_length(samples: SampleSet) -> SampleSet:
    """The samples, but all with the text of the first."""
    requests = [Request(request.images, samples.requests[0].ids) for request in samples.requests]
    return SampleSet(requests, samples.origin, fits=False)


@pytest.mark.parametrize(("task", "joins"), [("nlvr", True), ("vqa", True), ("caption", None), ("retrieval", False)])
def test_a_joined_result_is_that_of_the_dense_batch(
    task: str, joins: bool | None, model: Model, samples: SampleSet, tmp_path: Path
) -> None:
    """Texts of nlvr may differ in length; those that caption writes may too, and then nothing is joined."""
    if task != "nlvr":
        checkpoint = write_task_checkpoint(task, tmp_path / "tiny.pt")
        model = madtp.load(checkpoint)
        loaded = load_samples(None, checkpoint, model.config)
        samples = same_length(SampleSet(loaded.requests[:COUNT], "defaults", fits=False))
    results = results_of(model, samples)
    together = Batch(tuple(range(COUNT)), 0.0)
    joined = joined_results([results.result(batch) for batch in together.requests])
    assert joins is None or (joined is not None) == joins
    if joined is None:
        return
    run = run_batch(TorchModelRunner("torch", model, torch.float32), results.inputs(together), 0.0)
    assert [(layer.encoder, layer.index, layer.tokens) for layer in joined.layers] == [
        (layer.encoder, layer.index, layer.tokens) for layer in run.layers
    ]
    for name, value in joined.outputs.items():
        torch.testing.assert_close(value, run.outputs[name], atol=1e-5, rtol=1e-5, msg=name)


def test_no_batch_is_joined_of_requests_that_were_not_run(model: Model, samples: SampleSet, runs: Any) -> None:
    results = results_of(model, samples)
    results.result(Batch((0,), 0.0))
    results.result(Batch((0, 1), 0.0))
    assert runs == [(1, 0.0), (2, 0.0)]


def test_no_model_of_torch_is_in_memory_when_the_artifact_opens(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, run_cli: Callable[..., Ran], quick: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Model]] = []
    alive: list[int] = []
    load, open_copy, open_artifact = Prepared.load_model, validation.kept_ids_runners, validation._open

    def noted_load(self: Prepared) -> Model:
        model = load(self)
        models.append(weakref.ref(model))
        return model

    def counted(open_it: Callable[..., Any]) -> Callable[..., Any]:
        def opened(*arguments: Any) -> Any:
            alive.append(sum(model() is not None for model in models))
            return open_it(*arguments)

        return opened

    quick.setattr(Prepared, "load_model", noted_load)
    quick.setattr(validation, "kept_ids_runners", counted(open_copy))
    quick.setattr(validation, "_open", counted(open_artifact))
    assert run_cli("--ckpt", tiny_checkpoint(), "--engine", tmp_path / "out.onnx").status == 0
    assert models
    assert len(alive) >= 2  # once more with a copy on the op library, where there is one
    assert not any(alive)
