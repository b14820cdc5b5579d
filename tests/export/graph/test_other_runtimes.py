"""Standard ONNX of every task: nothing of ours is in it, and OpenVINO gives what ONNX Runtime gives."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
import torch

import export.build.traced_part
from export.build.options import ExportOptions
from export.build.prepare import prepare
from export.build.traced_part import trace_parts
from export.runtime.onnx_runner import OnnxRunner
from madtp.data.samples import collate
from madtp.models.config import CONFIGS
from madtp.tasks.requests import Outputs, Runner, run_request, token_counts
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.manifests import manifest_json
from tests.helpers.openvino_runner import OpenVinoRunner

TASKS = ("nlvr", "vqa", "caption", "retrieval", "clip")
ROUNDING = 1e-4  # between two runtimes, on outputs


@pytest.fixture(params=TASKS)
def folder(request: pytest.FixtureRequest, tiny_artifact: Path, task_artifacts: TaskArtifacts) -> Path:
    """Of an artifact with custom ops."""
    return tiny_artifact if request.param == "nlvr" else task_artifacts[request.param]


@pytest.fixture
def standard(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The parts of the same model exported with `--plugins none`; what was traced is taken from there."""
    options = ExportOptions(folder / "tiny.pt", tmp_path / "out.onnx", plugins="none")
    monkeypatch.setattr(
        export.build.traced_part, "write_part", lambda part, target, **_: shutil.copy(folder / target.name, target)
    )
    traced = trace_parts(prepare(options), tmp_path, lambda _: None)
    assert [part.custom_nodes for part in traced.values()] == [{}] * len(traced)
    return {name: part.source for name, part in traced.items()}


def test_every_task_is_standard_and_openvino_keeps_its_tokens(folder: Path, standard: dict[str, Path]) -> None:
    for path in standard.values():
        model = onnx.load(str(path))
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} == {""}
        assert [entry.domain for entry in model.opset_import] == [""]
        assert not model.functions
        assert b"madtp" not in path.read_bytes()
    expected = answers(folder, {name: OnnxRunner(folder / path.name) for name, path in standard.items()})
    found = answers(folder, {name: OpenVinoRunner(path) for name, path in standard.items()})
    assert found.keys() == expected.keys()
    assert token_counts(expected), "there are tokens to compare"
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING)
        else:
            assert torch.equal(found[name].long(), value.long()), name


def answers(folder: Path, runners: Mapping[str, Runner]) -> Outputs:
    """All outputs for the samples that the artifact was validated on, in one batch and pruned."""
    manifest = manifest_json(folder / "out.json")
    config = CONFIGS[manifest["task"]](**manifest["config"])
    samples = prepare(ExportOptions(folder / "tiny.pt", folder / "never.onnx")).samples
    return run_request(config, runners, collate(samples.requests[:3], config), manifest["temperature"])
