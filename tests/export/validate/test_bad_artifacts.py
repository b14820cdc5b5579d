"""Artifacts that `validate` refuses to look at, and its samples."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import export.engine.backends
from export.artifact.reader import manifest_path
from madtp.files.inputs import sha256
from tests.helpers.command_line import Ran
from tests.helpers.manifests import edit_manifest

Run = Callable[..., Ran]
Write = Callable[..., Path]


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda artifact: edit_manifest(manifest_path(artifact), change)


def resize(name: str, index: int, shape: list[int]) -> Callable[[Path], object]:
    return edited(lambda manifest: manifest["parts"][0]["profile"][name].__setitem__(index, shape))


def append(name: str) -> Callable[[Path], object]:
    return lambda artifact: artifact.with_name(name).open("ab").write(b"\0")


def unusable(artifact: Path) -> None:
    """A damaged artifact whose manifest agrees."""
    artifact.write_bytes(artifact.read_bytes()[:1000])
    edit_manifest(manifest_path(artifact), lambda manifest: manifest["parts"][0].update(sha256=sha256(artifact)))


MANIFESTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no manifest": (
        lambda artifact: manifest_path(artifact).unlink(),
        ("cannot read the manifest", "Keep artifact and manifest together"),
    ),
    "no json": (lambda artifact: manifest_path(artifact).write_text("{"), ("cannot read the manifest",)),
    "no text": (lambda artifact: manifest_path(artifact).write_bytes(b"\xff"), ("cannot read the manifest",)),
    "list": (lambda artifact: manifest_path(artifact).write_text("[1]"), ("is of schema None", "reads schema 3 and 4")),
    "later schema": (edited(lambda manifest: manifest.update(schema=5)), ("is of schema 5", "reads schema 3 and 4")),
    "field missing": (
        edited(lambda manifest: manifest.pop("temperature")),
        ("malformed", "'temperature' is a required"),
    ),
    "field of another type": (
        edited(lambda manifest: manifest.update(temperature="warm")),
        ("$.temperature", "'warm'"),
    ),
    "temperature below zero": (edited(lambda manifest: manifest.update(temperature=-1)), ("$.temperature", "minimum")),
    "temperature too large": (
        edited(lambda manifest: manifest.update(temperature=10**39)),
        ("$.temperature", "maximum"),
    ),
    "not a number": (edited(lambda manifest: manifest.update(temperature=math.nan)), ("cannot read", "not JSON")),
    "infinite": (edited(lambda manifest: manifest["config"].update(extra=math.inf)), ("cannot read", "not JSON")),
    "half a character": (edited(lambda manifest: manifest.update(created="\ud800")), ("cannot read", "surrogates")),
    "unknown field": (edited(lambda manifest: manifest.update(extra=1)), ("malformed", "extra")),
    "no parts": (edited(lambda manifest: manifest.update(parts=[])), ("malformed", "$.parts")),
    "profile missing": (
        edited(lambda manifest: manifest["parts"][0]["profile"].pop("input_ids")),
        ("malformed", "profile and inputs differ"),
    ),
    "profile of another rank": (resize("input_ids", 0, [1]), ("malformed", "profile and inputs differ")),
    "profile descends": (resize("image0", 0, [9, 3, 32, 32]), ("9:1:8",)),
    "artifact changed": (append("out.onnx"), ("out.onnx' is not the file", "sha256 is another", "export again")),
    "checkpoint changed": (append("tiny.pt"), ("tiny.pt' is not the file", "sha256 is another")),
    "artifact missing": (Path.unlink, ("is not the file that the manifest", "No such file")),
    "artifact of another name": (
        edited(lambda manifest: manifest["parts"][0].update(artifact="other.onnx")),
        ("other.onnx' is not the file", "No such file"),
    ),
    "manifest of another name": (
        edited(lambda manifest: manifest.update(artifact="other.onnx")),
        ("is the manifest of 'other.onnx', not of 'out.onnx'", "Keep artifact and manifest together"),
    ),
    "part missing": (
        edited(lambda manifest: manifest["parts"][0].update(name="encoder")),
        ("lists the parts encoder", "A nlvr model has model"),
    ),
    "part of another checkpoint": (
        edited(lambda manifest: manifest["parts"][0].update(checkpoint_sha256="0" * 64)),
        ("the part 'model' was made from another checkpoint",),
    ),
    "weights missing": (
        edited(lambda manifest: manifest["parts"][0].update(external_data={"file": "w.data", "sha256": "0" * 64})),
        ("w.data' is not the file", "No such file"),
    ),
    "artifact unusable": (unusable, ("onnxruntime", "cannot load", "a tool changed it so; export again")),
    "text over the artifact's": (
        lambda artifact: (resize("input_ids", 1, [1, 4])(artifact), resize("input_ids", 2, [8, 5])(artifact)),
        ("sentences of 7 to 9 tokens do not fit the text length 2:4:5",),
    ),
    "fewer samples than the artifact's batch": (
        edited(lambda manifest: manifest["parts"][0]["profile"].update(image0=[[20, 3, 32, 32]] * 3)),
        ("needs 20 samples at once", "There are 16"),
    ),
}


@pytest.mark.parametrize(("damage", "parts"), MANIFESTS.values(), ids=MANIFESTS)
def test_validate_refuses(
    damage: Callable[[Path], object], parts: tuple[str, ...], exported: tuple[Path, Path], run_cli: Run
) -> None:
    artifact, checkpoint = exported
    damage(artifact)
    before = {path: path.read_bytes() for path in artifact.parent.iterdir()}
    run_cli("validate", "--engine", artifact, "--ckpt", checkpoint).refused(*parts)
    assert {path: path.read_bytes() for path in artifact.parent.iterdir()} == before


def test_validate_refuses_another_checkpoint_and_config(
    exported: tuple[Path, Path], tiny_checkpoint: Write, tmp_path: Path, run_cli: Run
) -> None:
    artifact, checkpoint = exported
    other = tiny_checkpoint("other.pt", temperature=0.5)
    for given in (other, tmp_path / "missing.pt"):
        run_cli("validate", "--engine", artifact, "--ckpt", given).refused(
            f"'{given}' is not the file", "of one export"
        )
    config = tmp_path / "config.json"
    config.write_text('{"vit_heads": 3}')
    run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, "--config", config).refused("cannot be split")
    ran = run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, "--samples", tmp_path / "missing")
    ran.refused("there is no folder")


def test_validate_on_synthetic_samples_keeps_to_the_artifact_s_sizes(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    artifact, checkpoint = exported

    def narrow(manifest: dict[str, Any]) -> None:
        profile = manifest["parts"][0]["profile"]
        profile["input_ids"] = profile["attention_mask"] = [[9, 3], [9, 4], [10, 5]]
        profile["image0"] = profile["image1"] = [[size, 3, 32, 32] for size in (9, 9, 10)]

    edit_manifest(manifest_path(artifact), narrow)
    ran = run_cli("validate", "--engine", artifact, "--ckpt", checkpoint, "--synthetic")
    assert ran.status == 0, ran
    assert "9 synthetic samples" in ran.out


def test_validate_a_plan_where_its_runtime_is_missing(
    exported: tuple[Path, Path], run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    """A plan of TensorRT on a machine without a GPU: the ONNX traced from the checkpoint is compared, and said so."""
    quick.setattr(export.engine.backends, "find_gpus", list)
    artifact, checkpoint = exported
    plan = artifact.rename(artifact.with_suffix(".plan"))

    def as_plan(manifest: dict[str, Any]) -> None:
        manifest["backend"]["name"] = "tensorrt"
        manifest["artifact"] = manifest["parts"][0]["artifact"] = plan.name

    edit_manifest(manifest_path(plan), as_plan)
    ran = run_cli("validate", "--engine", plan, "--ckpt", checkpoint)
    assert ran.status == 0, ran
    assert "the plan was not run" in ran.out
