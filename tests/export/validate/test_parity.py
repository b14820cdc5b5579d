"""Artifacts that answer otherwise than their checkpoint: they are not written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import export.build.built_artifact
import export.engine.backends
import madtp
from export.artifact.reader import manifest_path
from export.engine.builder import BuildResult
from export.engine.range import Range
from export.runtime.onnx_runner import OnnxRunner
from export.validate.comparator import Comparator, compare_samples
from export.validate.model_runner import TorchModelRunner
from export.validate.tolerances import TOLERANCES, Bounds
from madtp.data.synthetic import synthetic_samples
from madtp.files.inputs import sha256
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest
from tests.helpers.outputs import Outputs

Run = Callable[..., Ran]
Write = Callable[..., Path]


def shifted(name: str, difference: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda answer: answer.update({name: answer[name] + torch.tensor(difference, dtype=answer[name].dtype)})


def swapped(answer: dict[str, torch.Tensor]) -> None:
    answer["logits"] = answer["logits"].flip(1)


DIFFERENCES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], tuple[str, ...]]] = {
    "logits": (shifted("logits", 1.0), ("logits differ by 1.00e+00",)),
    "logits, slightly": (shifted("logits", 1e-3), ("logits differ by 1.0", "allowed")),
    "nan": (shifted("logits", np.nan), ("logits differ by nan",)),
    "infinity": (shifted("logits", np.inf), ("logits differ by inf",)),
    "decisions": (swapped, ("decisions differ",)),
    "vision tokens": (shifted("vision_token_counts", 1), ("token counts differ first at vision layer 0",)),
    "text tokens": (shifted("text_token_counts", -1), ("token counts differ first at text layer 0",)),
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[dict[str, torch.Tensor]], object]], None]:
    """Make artifacts give other answers than they do."""

    def change(alter: Callable[[dict[str, torch.Tensor]], object]) -> None:
        run = OnnxRunner.run

        def altered(self: OnnxRunner, inputs: Any, temperature: float) -> dict[str, torch.Tensor]:
            answer = run(self, inputs, temperature)
            alter(answer)
            return answer

        monkeypatch.setattr(OnnxRunner, "run", altered)

    return change


@pytest.mark.parametrize(("alter", "parts"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_an_artifact_that_answers_otherwise_is_not_written(
    alter: Callable[[dict[str, torch.Tensor]], object],
    parts: tuple[str, ...],
    answers: Callable[..., None],
    tiny_checkpoint: Write,
    outputs: Outputs,
    run_cli: Run,
    quick: pytest.MonkeyPatch,
) -> None:
    answers(alter)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    assert ran.status == 1, ran
    assert "FAILED" in ran.out
    assert "parity FAILED, nothing was written" in ran.out
    assert "wrote" not in ran.out
    for part in parts:
        assert part in ran.out
    outputs.untouched()


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in batches"])
@pytest.mark.parametrize("dense", [False, True], ids=["pruned", "dense"])
def test_an_artifact_that_is_wrong_only_alone_or_in_batches_is_not_written(
    together: bool,
    dense: bool,
    tiny_checkpoint: Write,
    outputs: Outputs,
    run_cli: Run,
    quick: pytest.MonkeyPatch,
) -> None:
    run = OnnxRunner.run

    def altered(self: OnnxRunner, inputs: Any, temperature: float) -> dict[str, torch.Tensor]:
        answer = run(self, inputs, temperature)
        if (len(inputs["input_ids"]) > 1) == together and (temperature <= 0) == dense:
            answer["logits"][-1] += 1e-3
        return answer

    quick.setattr(OnnxRunner, "run", altered)
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx")
    assert ran.status == 1, ran
    assert "parity FAILED, nothing was written" in ran.out
    outputs.untouched()


def test_a_plan_whose_onnx_answers_otherwise_is_not_written(
    answers: Callable[..., None], tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    def build(backend: object, source: Path, plan: Path, cache: Path, *_: object) -> BuildResult:
        plan.write_text("plan")
        cache.write_text("cache")
        return BuildResult(1, {}, timing_cache_reused=False, shown=[])

    quick.setattr(export.build.built_artifact, "build_plan", build)
    quick.setattr(export.engine.backends, "find_gpus", list)
    answers(shifted("logits", 1.0))
    ran = run_cli("--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan", "--backend", "tensorrt-rtx")
    assert ran.status == 1, ran
    assert "parity FAILED, nothing was written" in ran.out
    outputs.untouched()


def test_a_model_that_answers_nan_fails(tiny_checkpoint: Write) -> None:
    """Finite weights whose products overflow: the artifact agrees with torch, but on nothing."""
    last = torch.tensor([[3e38], [-3e38]]).repeat(1, 16)
    model = madtp.load(
        tiny_checkpoint(state={"cls_head.0.weight": torch.full((16, 16), 3e38), "cls_head.2.weight": last})
    )
    samples = synthetic_samples(model.config, 1, (2, 16))
    fp64 = TorchModelRunner("torch fp64", model, torch.float64)
    runners = [TorchModelRunner(name, model, torch.float32) for name in ("torch", "onnx")]
    comparator = Comparator(runners[0], fp64, runners[1:], Bounds(TOLERANCES["fp32"]), always_fp64=False)
    compare_samples(comparator, model.config, samples, [1.0], Range(1, 1, 2), lambda _: None)
    (result,) = comparator.results.values()
    assert not result.passed
    assert "logits differ by nan" in result.failures[0].text


def test_validate_finds_an_artifact_with_other_weights(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    artifact, checkpoint = exported
    model = onnx.load(str(artifact))
    for tensor in model.graph.initializer:
        if tensor.name == "cls_head.2.bias":
            values = onnx.numpy_helper.to_array(tensor) + np.float32(0.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(artifact))
    run_cli("validate", "--engine", artifact, "--ckpt", checkpoint).refused("sha256 is another")
    edit_manifest(manifest_path(artifact), lambda manifest: manifest["parts"][0].update(sha256=sha256(artifact)))
    ran = run_cli("validate", "--engine", artifact, "--ckpt", checkpoint)
    assert ran.status == 1, ran
    assert "FAILED" in ran.out
    assert "logits differ by 1.00e-02" in ran.out
