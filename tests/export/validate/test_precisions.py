"""Exports in fp16 and bf16: every task is what torch is in that precision, judged as `validate` judges."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onnxscript import ir

import madtp
import madtp.data.samples
from export.engine.range import Range
from export.graph.precision import precision_pass
from export.runtime.onnx_runner import OnnxRunner
from export.validate.comparator import Comparator, compare_samples
from export.validate.intermediates import kept_ids_runners, open_onnx_intermediates
from export.validate.model_runner import ArtifactRunner, TorchModelRunner
from export.validate.narrow_model import narrow_model, overflowing
from export.validate.tolerances import Bounds, tolerance_of
from madtp.data.samples import load_samples
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import TAU
from tests.helpers.manifests import manifest_json

TASKS = ("nlvr", "vqa", "caption", "retrieval", "clip")
COMPARED = 2  # requests


def float32_files(folder: Path) -> dict[str, Path]:
    """The float32 graph of every part, from an artifact: tracing takes most of the time."""
    manifest = manifest_json(folder / "out.json")
    return {part["name"]: folder / part["artifact"] for part in manifest["parts"]}


@pytest.fixture(scope="module")
def folders(task_artifacts: TaskArtifacts, tiny_artifact: Path) -> Callable[[str], Path]:
    return lambda task: tiny_artifact if task == "nlvr" else task_artifacts[task]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_torch_in_that_precision(
    task: str, precision: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = folders(task)
    model = madtp.load(folder / "tiny.pt")
    files = {}
    for part, path in float32_files(folder).items():
        graph = ir.load(path)
        precision_pass(precision, runnable=True)(graph)
        files[part] = tmp_path / path.name
        ir.save(graph, files[part])
    reference = TorchModelRunner("torch", model, tolerance_of(precision).dtype)
    runners = {part: OnnxRunner(path) for part, path in files.items()}
    ids = kept_ids_runners(files, open_onnx_intermediates(files))
    artifact = ArtifactRunner("onnx", model.config, reference.parts, runners, ids)
    fp64 = TorchModelRunner("torch fp64", model, torch.float64)
    comparator = Comparator(reference, fp64, [artifact], Bounds(tolerance_of(precision)), always_fp64=False)
    samples = load_samples(None, folder / "tiny.pt", model.config)
    few = replace(samples, requests=samples.requests[:COMPARED])
    compare_samples(comparator, model.config, few, [TAU, 0.0], Range(1, 1, 1), lambda _: None)
    for pair in comparator.results.values():
        assert not pair.failures
        assert pair.passed


def test_layers_whose_weights_overflow_float16_stay_float32_in_torch_too() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(1e5)
    assert overflowing(model, torch.float16) == ["0.weight"]
    narrow = narrow_model(model, torch.float16)
    assert [layer.weight.dtype for layer in narrow] == [torch.float32, torch.float16]
    x = torch.full((1, 2), 1e-2)
    assert torch.allclose(narrow(x.half()).float(), model(x), rtol=1e-2)
    assert overflowing(model, torch.bfloat16) == []


def test_in_bfloat16_tokens_stay_float32_in_torch_too(tiny_artifact: Path) -> None:
    """Layers are narrow, but for the first of pixels and of words; nothing else is."""
    narrow = narrow_model(madtp.load(tiny_artifact / "tiny.pt"), torch.bfloat16)
    held = {name: weight.dtype for name, weight in narrow.named_parameters() if weight.dim() >= 2}
    block, layer = "visual_encoder.blocks.0", "text_encoder.encoder.layer"
    for name in (f"{block}.attn.qkv", f"{block}.mlp.fc2", f"{layer}.1.attention.self.query"):
        assert held[f"{name}.weight"] == torch.bfloat16
    for name in ("visual_encoder.patch_embed.proj", f"{layer}.0.attention.self.query"):
        assert held[f"{name}.weight"] == torch.float32
    assert held["space_dict"] == torch.float32
