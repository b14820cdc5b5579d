"""Exports in INT8 and FP8: what is written, and that a wrong one is not taken for a good one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.helpers.artifacts import quick_exports
from tests.helpers.checkpoints import TINY, save_checkpoint, state_of
from tests.helpers.command_line import Ran, run_export
from tests.helpers.defects import rehash
from tests.helpers.manifests import manifest_json
from tests.helpers.samples import write_samples

Run = Callable[..., Ran]
PATCHES = "visual_encoder.patch_embed.proj.weight"
OUTSIDE = {"space_dict", PATCHES, "cls_head.0.weight", "cls_head.2.weight"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_program: torch.onnx.ONNXProgram) -> Path:
    """The tiny checkpoint, samples for it, and what was exported from it in INT8; not to be changed."""
    folder = tmp_path_factory.mktemp("int8")
    save_checkpoint(folder / "tiny.pt", state_of(TINY))
    write_samples(folder / "samples")
    with quick_exports(tiny_program) as patch:
        options = ("--precision", "int8", "--samples", folder / "samples")
        assert run_export(patch, "--ckpt", folder / "tiny.pt", "--engine", folder / "out.onnx", *options) == 0
    return folder


def validate(folder: Path) -> tuple[object, ...]:
    return ("validate", "--engine", folder / "out.onnx", "--ckpt", folder / "tiny.pt", "--samples", folder / "samples")


def test_an_onnx_file_is_quantized_dynamically(folder: Path, run_cli: Run) -> None:
    manifest = manifest_json(folder / "out.json")
    found = manifest["quantization"]
    assert (manifest["precision"], found["mode"]) == ("int8", "dynamic")
    assert set(found["kept"]) == OUTSIDE
    assert "calibration" not in found
    ops = [node.op_type for node in onnx.load(str(folder / "out.onnx")).graph.node]
    assert ops.count("QuantizedLinear") + ops.count("QuantizedLinearGelu") > 20
    shown = run_cli("inspect", folder / "out.onnx").out
    assert "dynamic" in shown
    assert "visual_encoder.patch_embed.proj.weight" in shown


def test_what_it_costs_is_in_the_manifest_and_printed(folder: Path, run_cli: Run) -> None:
    for parity in manifest_json(folder / "out.json")["validation"]["parity"]:
        cost = parity["cost"]
        assert cost["equal"] + cost["tied"] <= cost["decisions"] == parity["requests"]
        assert cost["explained"] <= cost["flips"]
    ran = run_cli(*validate(folder))
    assert ran.status == 0, ran
    assert "answers of the fp64 reference" in ran.out


FIRST_WORDS = "text_encoder.encoder.layer.0.attention.self"
JOINED = "+".join(f"{FIRST_WORDS}.{name}.weight" for name in ("query", "key", "value"))


@pytest.mark.parametrize("weight", ["visual_encoder.blocks.0.mlp.fc2.weight", JOINED])
def test_a_wrongly_scaled_weight_fails_and_is_named(folder: Path, tmp_path: Path, run_cli: Run, weight: str) -> None:
    scale = f"{weight}.T.scale"

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == scale)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), scale))

    copy = shutil.copytree(folder, tmp_path / "copy")
    rehash(copy / "out.onnx", change)
    ran = run_cli(*validate(copy))
    assert ran.status == 1, ran
    assert "first divergent node: QuantizedLinear" in ran.out
    assert scale in ran.out


def test_a_measured_table_serves_the_next_export(
    folder: Path, tmp_path: Path, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    options = ("--ckpt", folder / "tiny.pt", "--precision", "int8", "--quantization", "static", "--samples")
    data = folder / "samples"
    ran = run_cli(*options, data, "--engine", tmp_path / "out.onnx", "--calib", data, "--calib-method", "percentile")
    assert ran.status == 0, ran
    found = manifest_json(tmp_path / "out.json")["quantization"]
    assert (found["mode"], found["ranges_file"]) == ("static", "out.ranges.json")
    assert found["calibration"]["method"] == "percentile"
    assert (found["calibration"]["samples"], found["calibration"]["synthetic"]) == (8, False)
    table = tmp_path / "out.ranges.json"
    limits = json.loads(table.read_text())["ranges"]
    assert all(list(limits[name]["percentile"]) == ends for name, ends in found["ranges"].items())
    ran = run_cli(*options, data, "--engine", tmp_path / "two.onnx", "--calib", table, "--calib-method", "percentile")
    assert ran.status == 0, ran
    assert (tmp_path / "two.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    assert not (tmp_path / "two.ranges.json").exists()


def test_random_ranges_are_named_so(folder: Path, tmp_path: Path, run_cli: Run, quick: pytest.MonkeyPatch) -> None:
    options = ("--precision", "fp8", "--synthetic", "--samples", folder / "samples")
    ran = run_cli("--ckpt", folder / "tiny.pt", "--engine", tmp_path / "out.onnx", *options)
    assert ran.status == 0, ran
    assert "RANDOM data" in ran.out
    assert manifest_json(tmp_path / "out.json")["quantization"]["calibration"]["synthetic"] is True


def test_a_keep_file_decides_and_scores_are_quantized_on_request(
    folder: Path, tmp_path: Path, run_cli: Run, quick: pytest.MonkeyPatch
) -> None:
    checkpoint = manifest_json(folder / "out.json")["checkpoint"]["sha256"]
    kept = "visual_encoder.blocks.0.attn.qkv.weight"
    fields = {"schema": 1, "checkpoint_sha256": checkpoint, "task": "nlvr", "precision": "int8", "agreement": 0.99}
    (tmp_path / "keep.json").write_text(json.dumps(fields | {"keep": [kept]}))
    options = ("--precision", "int8", "--keep", tmp_path / "keep.json", "--quantize-scores")
    ran = run_cli(
        *("--ckpt", folder / "tiny.pt", "--engine", tmp_path / "out.onnx", "--samples", folder / "samples"), *options
    )
    assert ran.status == 0, ran
    found = manifest_json(tmp_path / "out.json")["quantization"]
    assert (set(found["kept"]), found["kept_by"]) == ({kept, *OUTSIDE - {"space_dict", PATCHES}}, "keep.json")
