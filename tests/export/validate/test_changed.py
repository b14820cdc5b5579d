"""`validate --changed`: files that a tool made of an export are judged as they are; nothing is blessed by it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

import export.engine.backends
from export.artifact.files import check_files
from export.artifact.reader import manifest_path
from export.errors import ManifestError
from export.samples.choice import DataOptions
from export.validate.run import ValidateOptions, validate_artifact
from tests.helpers.command_line import Ran
from tests.helpers.defects import change_weight, edit
from tests.helpers.manifests import manifest_json

Run = Callable[..., Ran]


@pytest.fixture
def validate(exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch) -> Run:
    """Validate the tiny artifact by its manifest, on two samples."""
    artifact, checkpoint = exported
    return lambda *arguments: run_cli(
        "validate", "--engine", manifest_path(artifact), "--ckpt", checkpoint, "--limit", 2, *arguments
    )


def change(path: Path, how: Callable[[onnx.ModelProto], None]) -> None:
    """Change an ONNX file and leave the manifest as it is."""
    model = onnx.load(str(path))
    how(model)
    onnx.save(model, str(path))


def describe_otherwise(model: onnx.ModelProto) -> None:
    """What no answer depends on."""
    model.doc_string = "opened and saved by a tool"


def test_a_file_that_was_changed_is_refused_unless_asked_for(exported: tuple[Path, Path], validate: Run) -> None:
    change(exported[0], describe_otherwise)
    validate().refused("is not the file that the manifest of", "validate --changed")


def test_a_harmless_change_passes_and_is_said(exported: tuple[Path, Path], validate: Run, tmp_path: Path) -> None:
    artifact, _ = exported
    before = manifest_path(artifact).read_bytes()
    change(artifact, describe_otherwise)
    ran = validate("--changed", "--json", tmp_path / "v.json", "--junit", tmp_path / "v.xml")
    assert ran.status == 0, ran
    assert "changed since the export: out.onnx" in ran.out
    assert "validation passed" in ran.out
    verdict: dict[str, Any] = json.loads((tmp_path / "v.json").read_text())
    assert (verdict["changed"], verdict["status"]) == (["out.onnx"], "passed")
    assert [check["name"] for check in verdict["checks"] if "kept tokens" in check["name"]]
    properties = {
        entry.get("name"): entry.get("value") for entry in ElementTree.parse(tmp_path / "v.xml").iter("property")
    }
    assert properties["changed"] == "out.onnx"
    assert manifest_path(artifact).read_bytes() == before, "it describes the file that was exported"
    assert "the verdict was not written" in ran.out


def test_without_a_change_the_option_changes_nothing(
    exported: tuple[Path, Path], validate: Run, tmp_path: Path
) -> None:
    ran = validate("--changed", "--json", tmp_path / "v.json")
    assert ran.status == 0, ran
    assert "changed since" not in ran.out
    assert json.loads((tmp_path / "v.json").read_text())["changed"] == []
    assert "verdict" in manifest_json(manifest_path(exported[0]))["validation"]


def test_a_weight_that_a_tool_scaled_is_named(exported: tuple[Path, Path], validate: Run, tmp_path: Path) -> None:
    change(exported[0], change_weight)
    ran = validate("--changed", "--repro", tmp_path / "repro")
    assert ran.status == 1, ran
    assert "changed since the export: out.onnx" in ran.out
    assert "weight 'cls_head.2.bias' differs" in ran.out
    assert (tmp_path / "repro" / "node.onnx").is_file()


def test_a_quantised_file_is_judged(exported: tuple[Path, Path], validate: Run, tmp_path: Path) -> None:
    artifact, _ = exported
    change(artifact, lambda model: model.graph.ClearField("value_info"))
    quantize_dynamic(artifact, tmp_path / "int8.onnx", weight_type=QuantType.QInt8)
    (tmp_path / "int8.onnx").replace(artifact)
    ran = validate("--changed")
    assert ran.status == 1, ran
    assert "first node that differs given identical inputs" in ran.out


def test_an_optimised_file_is_judged(exported: tuple[Path, Path], validate: Run, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(exported[0], options, providers=["CPUExecutionProvider"])
    (tmp_path / "optimised.onnx").replace(exported[0])
    ran = validate("--changed")
    assert ran.status == 0, ran


def test_a_manifest_that_was_edited_is_named_and_stays_so(exported: tuple[Path, Path], validate: Run) -> None:
    path = manifest_path(exported[0])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.0}))
    before = path.read_bytes()
    ran = validate("--changed")
    assert ran.status == 0, ran
    assert "changed since the export: out.json" in ran.out
    assert path.read_bytes() == before


def test_one_that_no_runtime_opens_is_not_judged(exported: tuple[Path, Path], validate: Run) -> None:
    exported[0].write_bytes(b"not a model")
    validate("--changed").refused("cannot load", "a tool changed it")


def test_a_checkpoint_is_never_another(exported: tuple[Path, Path], validate: Run) -> None:
    _, checkpoint = exported
    checkpoint.write_bytes(checkpoint.read_bytes() + b" ")
    validate("--changed").refused("tiny.pt' is not the file")


@pytest.mark.parametrize("gone", [False, True])
def test_a_plugin_library_is_never_taken(exported: tuple[Path, Path], gone: bool) -> None:
    """It is code; that of another export would run."""
    artifact, _ = exported
    library = {"file": "out.plugins.so", "embedded": False, "version": "1", "sha256": "0" * 64}
    edit(artifact, lambda manifest: manifest["plugins"].update(library=library | {"source_sha256": "", "sm": [90]}))
    manifest = json.loads(manifest_path(artifact).read_text())
    if not gone:
        (artifact.parent / "out.plugins.so").write_bytes(b"another")
    with pytest.raises(ManifestError, match=r"out\.plugins\.so"):
        check_files(manifest, artifact.parent, changed=True)


def test_weights_that_a_tool_moved_into_the_graph_are_noted(exported: tuple[Path, Path]) -> None:
    artifact, _ = exported
    manifest = manifest_json(manifest_path(artifact))
    manifest["parts"][0]["external_data"] = {"file": "out.onnx.data", "sha256": "0" * 64}
    assert check_files(manifest, artifact.parent, changed=True) == ["out.onnx.data"]
    with pytest.raises(ManifestError, match=r"out\.onnx\.data"):
        check_files(manifest, artifact.parent)


def test_a_changed_plan_is_judged_where_it_runs_alone(
    exported: tuple[Path, Path], validate: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that was exported, its ONNX is compared; that says nothing about another plan."""
    artifact, _ = exported
    monkeypatch.setattr(export.engine.backends, "find_gpus", list)
    artifact.rename(artifact.with_suffix(".plan"))
    backend = {"name": "tensorrt-rtx", "version": "1", "reason": ""}

    def as_plan(manifest: dict[str, Any]) -> None:
        manifest.update(artifact="out.plan", backend=backend)
        manifest["parts"][0].update(artifact="out.plan", sha256="0" * 64)

    edit(artifact, as_plan)
    validate("--changed").refused("the changed plan", "cannot be judged here")


def test_from_python(exported: tuple[Path, Path], quick: pytest.MonkeyPatch) -> None:
    class Silent:
        def stage(self, description: str) -> None: ...

        def detail(self, text: str) -> None: ...

    artifact, checkpoint = exported
    change(artifact, describe_otherwise)
    options = ValidateOptions(
        manifest_path(artifact), checkpoint, data=DataOptions(synthetic=True, limit=1), changed=True
    )
    verdict, unwritten = validate_artifact(options, Silent())
    assert (verdict.changed, verdict.passed, verdict.artifact) == (["out.onnx"], True, "out.onnx")
    assert "not written" in unwritten
    assert np.isfinite(verdict.results[0].outputs["logits"].worst)


def test_other_names_are_refused(exported: tuple[Path, Path], run_cli: Run) -> None:
    artifact, checkpoint = exported
    run_cli("validate", "--engine", artifact.with_suffix(".txt"), "--ckpt", checkpoint).refused("Name out.json")


@pytest.mark.parametrize("renamed", [False, True])
def test_a_changed_file_of_another_name_is_told_where_to_go(
    renamed: bool, exported: tuple[Path, Path], run_cli: Run
) -> None:
    artifact, checkpoint = exported
    other = artifact.rename(artifact.with_name("int8.onnx"))
    if renamed:
        artifact.with_suffix(".json").rename(other.with_suffix(".json"))
    ran = run_cli("validate", "--engine", other, "--ckpt", checkpoint, "--changed")
    ran.refused(f"'{other.with_suffix('.json')}'")
