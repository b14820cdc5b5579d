"""The main job, end to end: a checkpoint becomes an artifact with a true manifest, and both formats are real."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import export.graph.trace
from export.cli import main as cli
from export.graph.trace import trace_part
from madtp.files.inputs import sha256
from madtp.models.parts import Part
from tests import golden
from tests.helpers.manifests import manifest_json
from tests.helpers.paths import CARRIED

TAU = 0.5


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["export", *map(str, arguments)])
    return cli.main()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = golden.load_model(CARRIED)
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    config = json.loads((CARRIED / "config.json").read_text())
    torch.save({"model": model.state_dict(), "epoch": 7, "temperature": TAU, "config": config}, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    """Exports after the first take its trace: they are of the same checkpoint, and a trace is most of their time."""
    programs: dict[tuple[str, bool, bool], torch.onnx.ONNXProgram] = {}

    def trace(part: Part) -> torch.onnx.ONNXProgram:
        key = (part.name, part.module.packed, part.module.sized)
        if key not in programs:
            programs[key] = trace_part(part)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.graph.trace, "trace_part", trace)
        yield


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both artifacts, of the published layout, and what was printed."""
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        for suffix in ("onnx", "plan"):
            options = ("--batch", "1:2:4", "--layout", "dynamic")
            assert run(patch, "--ckpt", checkpoint, "--engine", folder / f"{suffix}-out.{suffix}", *options) == 0
    return {suffix: folder / f"{suffix}-out.{suffix}" for suffix in ("onnx", "plan")}


def manifest_of(artifact: Path) -> dict[str, Any]:
    return manifest_json(artifact.with_suffix(".json"))


@pytest.mark.parametrize("suffix", ["onnx", "plan"])
def test_manifest_describes_the_part(suffix: str, exported: dict[str, Path]) -> None:
    artifact = exported[suffix]
    (part,) = manifest_of(artifact)["parts"]
    assert part["artifact"] == artifact.name
    assert part["sha256"] == sha256(artifact)
    assert part["bytes"] == artifact.stat().st_size
    assert part["custom_nodes"] == {"AlignedAttention": 13, "TokenCompact": 13}
    assert part["profile"]["image0"] == [[1, 3, 96, 96], [2, 3, 96, 96], [4, 3, 96, 96]]
    assert part["profile"]["input_ids"] == [[1, 2], [2, 24], [4, 64]]


@pytest.mark.parametrize("suffix", ["onnx", "plan"])
def test_manifest_describes_the_checkpoint(suffix: str, exported: dict[str, Path], checkpoint: Path) -> None:
    manifest = manifest_of(exported[suffix])
    assert manifest["checkpoint"] == {
        "file": "tiny.pt",
        "sha256": sha256(checkpoint),
        "bytes": checkpoint.stat().st_size,
        "epoch": 7,
    }
    assert manifest["temperature"] == TAU
    assert manifest["task"] == "nlvr"


def test_an_onnx_file_needs_no_library(exported: dict[str, Path]) -> None:
    manifest = manifest_of(exported["onnx"])
    (part,) = manifest["parts"]
    assert manifest["plugins"]["mode"] == "none"
    assert manifest["plugins"]["library"] is None
    assert part["plugin_layers"] == {}
    assert part["tokens"] is None


def test_a_plan_names_its_library_and_token_sizes(exported: dict[str, Path]) -> None:
    artifact = exported["plan"]
    manifest = manifest_of(artifact)
    (part,) = manifest["parts"]
    library = manifest["plugins"]["library"]
    assert manifest["plugins"]["mode"] == "library"
    assert part["plugin_layers"] == part["custom_nodes"]
    assert library["file"] == "plan-out.plugins.so"
    assert not library["embedded"]
    assert sha256(artifact.with_name(library["file"])) == library["sha256"]
    assert part["tokens"]["source"] == "guessed"  # no vocabulary lies beside this checkpoint
    assert all(opt <= largest == 37 for opt, largest in part["tokens"]["opt_max"]["vision"])


@pytest.mark.parametrize("suffix", ["onnx", "plan"])
def test_check_compared_real_samples_at_both_temperatures(suffix: str, exported: dict[str, Path]) -> None:
    validation = manifest_of(exported[suffix])["validation"]
    assert [entry["temperature"] for entry in validation["parity"]] == [TAU, 0.0]
    for entry in validation["parity"]:
        assert entry["requests"] >= 16 + 16  # alone, and in batches of the largest size
        assert entry["decisions_equal"] == entry["requests"] - entry["explained"]
        assert entry["worst"] <= entry["tolerance"]
        assert not entry["failures"]
    pruned, dense = validation["parity"]
    assert dense["mean_tokens"]["vision"] == [37.0] * 5
    assert pruned["mean_tokens"]["vision"][-1] < 37
    assert validation["gflops"]["pruned"] < validation["gflops"]["dense"]
    assert {"torch dense", "torch pruned", "artifact dense", "artifact pruned"} == validation["latency"].keys()


def test_onnx_artifact_answers_in_plain_onnx_runtime(exported: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(str(exported["onnx"]), providers=["CPUExecutionProvider"])
    case = next(c for c in golden.load_cases(CARRIED, 96) if c.name == "b3_pad_prune")
    feed = {name: tensor.numpy() for name, tensor in case.inputs.items()}
    (logits,) = session.run(["logits"], {**feed, "temperature": np.array(case.temperature, np.float32)})
    np.testing.assert_allclose(logits, case.recorded.outputs["logits"].numpy(), atol=1e-4)


def test_a_plan_that_cannot_run_here_is_reported_as_built_not_run(exported: dict[str, Path]) -> None:
    from export.engine.backends import choose_backend

    manifest = manifest_of(exported["plan"])
    assert manifest["parts"][0]["layers"] > 1000
    if choose_backend("auto", ".plan").can_run:
        assert manifest["validation"]["artifact"] == "passed"
        return
    assert manifest["validation"]["artifact"] == "not run"
    assert manifest["validation"]["validated"] == "onnx"
    assert manifest["backend"]["name"] == "tensorrt-rtx"
    assert "no GPU" in manifest["backend"]["reason"]


def test_plan_is_one_that_tensorrt_wrote(exported: dict[str, Path]) -> None:
    assert exported["plan"].read_bytes()[1:4] == b"trt"  # "vtrt": TensorRT for RTX


def test_a_second_build_uses_the_timing_cache_again_and_replaces_the_outputs(
    exported: dict[str, Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = exported["plan"]
    first = manifest_of(plan)
    assert first["parts"][0]["timing_cache"] == {"file": "plan-out.timing", "reused": False}
    assert (plan.parent / "plan-out.timing").is_file()
    arguments = ["--ckpt", checkpoint, "--engine", plan, "--temperature", "0", "--batch", "2", "--layout", "dynamic"]
    assert run(monkeypatch, *arguments) == 0
    second = manifest_of(plan)
    assert second["parts"][0]["timing_cache"]["reused"]
    assert second["temperature"] == 0
    assert second["parts"][0]["profile"]["input_ids"][0] == [2, 2]
    assert [entry["temperature"] for entry in second["validation"]["parity"]] == [0.0]
    captured = capsys.readouterr()
    assert "the plan was built, not run" in captured.out or second["validation"]["artifact"] == "passed"
    assert "[3/4] building the engine" in captured.err
    left = sorted(path.name for path in plan.parent.iterdir())
    names = ("onnx-out.json", "onnx-out.onnx")
    assert left == [*names, *(f"plan-out.{suffix}" for suffix in ("json", "plan", "plugins.so", "timing"))]


def test_validate_holds_an_artifact_to_its_checkpoint(
    exported: dict[str, Path], checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["validate", "--engine", exported["onnx"], "--ckpt", checkpoint]
    assert run(monkeypatch, *arguments) == 0
    assert run(monkeypatch, *arguments, "--synthetic") == 0
    assert "synthetic samples" in capsys.readouterr().out


def test_preflight_writes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "check", "--ckpt", checkpoint, "--engine", tmp_path / "out.plan") == 0
    assert "tensorrt" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
