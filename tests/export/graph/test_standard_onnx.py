"""`--plugins none` to an .onnx file: standard ONNX, nothing of ours in it, and the same answers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import export.build.files
from madtp.files.inputs import sha256
from tests.helpers.artifacts import TaskArtifacts
from tests.helpers.checkpoints import TAU, TINY
from tests.helpers.command_line import Ran
from tests.helpers.defects import change_weight, rehash
from tests.helpers.manifests import manifest_json

Run = Callable[..., Ran]
STANDARD = ("--plugins", "none")


@pytest.fixture
def standard(tiny_artifact: Path, tmp_path: Path, run_cli: Run, quick: pytest.MonkeyPatch) -> Path:
    """The tiny checkpoint as standard ONNX, beside it."""
    checkpoint = shutil.copyfile(tiny_artifact / "tiny.pt", tmp_path / "tiny.pt")
    ran = run_cli("--ckpt", checkpoint, "--engine", tmp_path / "std.onnx", *STANDARD)
    assert ran.status == 0, ran
    assert "standard ONNX ops only; runs in ONNX Runtime 1.17 and newer" in ran.out
    return tmp_path / "std.onnx"


def answers(path: Path, temperature: float) -> list[np.ndarray]:
    """All outputs of an ONNX file, on fixed inputs."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    size = TINY["image_size"]
    images = {name: random.normal(size=(2, 3, size, size)).astype(np.float32) for name in ("image0", "image1")}
    ids = random.integers(4, 20, (2, 7))
    texts = {"input_ids": ids, "attention_mask": np.ones_like(ids), "temperature": np.array(temperature, np.float32)}
    return session.run(None, images | texts)


def test_nothing_of_ours_is_in_the_file(standard: Path) -> None:
    model = onnx.load(str(standard))
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert model.ir_version == 9
    assert not model.functions
    assert not [node for node in model.graph.node if node.domain]
    assert b"madtp" not in standard.read_bytes()
    assert b"plugin" not in standard.read_bytes()
    (part,) = (manifest := manifest_json(standard.with_suffix(".json")))["parts"]
    assert part["custom_nodes"] == {}
    assert part["onnx_sha256"] == part["sha256"] == sha256(standard)
    assert manifest["plugins"] == {"mode": "none", "library": None}
    assert manifest["backend"]["oldest"] == "1.17"


@pytest.mark.parametrize("temperature", [TAU, 0.0])
def test_it_answers_as_the_file_with_functions_does(standard: Path, tiny_artifact: Path, temperature: float) -> None:
    pairs = zip(answers(standard, temperature), answers(tiny_artifact / "out.onnx", temperature), strict=True)
    for ours, theirs in pairs:
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_an_export_without_the_option_keeps_the_custom_ops(tiny_artifact: Path) -> None:
    model = onnx.load(str(tiny_artifact / "out.onnx"))
    assert {node.op_type for node in model.graph.node if node.domain} == {"AlignedAttention", "TokenCompact"}
    assert model.ir_version == 9, "an older ONNX Runtime reads it"


def test_weights_may_lie_beside_it(
    tiny_artifact: Path, tmp_path: Path, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(export.build.files, "EXTERNAL_DATA_LIMIT", 1000)
    path = tmp_path / "big.onnx"
    ran = run_cli("--ckpt", tiny_artifact / "tiny.pt", "--engine", path, *STANDARD)
    assert ran.status == 0, ran
    assert sorted(file.name for file in tmp_path.iterdir()) == ["big.json", "big.onnx", "big.onnx.data"]
    assert b"madtp" not in path.read_bytes()
    np.testing.assert_allclose(answers(path, TAU)[0], answers(tiny_artifact / "out.onnx", TAU)[0], rtol=0, atol=1e-6)


def test_validate_sees_the_tokens_and_names_the_node(standard: Path, run_cli: Run, tmp_path: Path) -> None:
    validate = ("validate", "--engine", standard, "--ckpt", tmp_path / "tiny.pt", "--limit", 2)
    ran = run_cli(*validate, "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    verdict: dict[str, Any] = json.loads((tmp_path / "v.json").read_text())
    assert [check["name"] for check in verdict["checks"] if "kept tokens" in check["name"]], verdict["notes"]
    rehash(standard, change_weight)
    ran = run_cli(*validate)
    assert ran.status == 1, ran
    assert "weight 'cls_head.2.bias' differs" in ran.out


def test_inspect_and_report_know_it(standard: Path, tiny_artifact: Path, run_cli: Run, tmp_path: Path) -> None:
    ran = run_cli("inspect", standard)
    assert ran.status == 0, ran
    assert "standard ONNX only" in ran.out
    assert "1.17 and newer" in ran.out
    for artifact, page in ((standard, "standard.html"), (tiny_artifact / "out.onnx", "usual.html")):
        assert run_cli("report", artifact, "-o", tmp_path / page).status == 0
    pictures = [(tmp_path / page).read_text().count("<img") for page in ("standard.html", "usual.html")]
    assert pictures[0] == pictures[1] > 0, "what was pruned is shown"


def test_a_library_has_no_use_for_it(tiny_artifact: Path, tmp_path: Path, run_cli: Run) -> None:
    arguments = ("--ckpt", tiny_artifact / "tiny.pt", "--engine", tmp_path / "out.onnx")
    run_cli(*arguments, "--plugins", tmp_path / "x.so").refused("--plugins", "use none")


def test_no_op_of_a_type_that_old_runtimes_lack(task_artifacts: TaskArtifacts) -> None:
    """ONNX Runtime 1.17 to 1.19 have no ArgMax of int64, and are said to run every task's files."""
    graph = onnx.load(str(task_artifacts["clip"] / "out.text.onnx")).graph
    makers = {name: node for node in graph.node for name in node.output}
    chosen = [makers[node.input[0]] for node in graph.node if node.op_type == "ArgMax"]
    assert [node.op_type for node in chosen] == ["Cast"]
    assert onnx.helper.get_attribute_value(chosen[0].attribute[0]) == onnx.TensorProto.INT32
