"""Bad input to a quantized export: one clear error, nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import export.build.prepare
import export.engine.backends
from export.engine.backends import Gpu
from madtp.files.inputs import sha256
from tests.helpers.checkpoints import TINY
from tests.helpers.command_line import Ran
from tests.helpers.outputs import Outputs

Run = Callable[..., Ran]
Write = Callable[..., Path]

OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "calib for fp32": ("--calib=data", ("--calib is given, but nothing is quantized", "precision is fp32")),
    "keep for fp32": ("--keep=keep.json", ("--keep is given, but nothing is quantized",)),
    "scores for fp32": ("--quantize-scores", ("--quantize-scores is given, but nothing is quantized",)),
    "synthetic for fp32": ("--synthetic", ("--synthetic is given, but nothing is quantized",)),
    "mode for fp32": ("--quantization=static", ("--quantization is given, but nothing is quantized",)),
    "plan without data": (
        "--engine={folder}/trt.plan --precision=int8",
        ("--precision int8 needs calibration data", "--calib DIR"),
    ),
    "fp8 without data": ("--precision=fp8", ("--precision fp8 needs calibration data",)),
    "static without data": ("--precision=int8 --quantization=static", ("needs calibration data",)),
    "dynamic plan": (
        "--engine={folder}/trt.plan --precision=int8 --quantization=dynamic --calib=x",
        ("--quantization dynamic does not work for a TensorRT plan",),
    ),
    "dynamic fp8": ("--precision=fp8 --quantization=dynamic", ("dynamic does not work for fp8",)),
    "dynamic with data": (
        "--precision=int8 --quantization=dynamic --calib=x",
        ("--calib is given, but ranges are measured while the model runs",),
    ),
    "method without data": ("--precision=int8 --calib-method=entropy", ("--calib-method is given",)),
    "unknown method": ("--precision=int8 --calib-method=best", ("Invalid value for '--calib-method'",)),
    "real and random data": ("--precision=int8 --calib=x --synthetic", ("both --calib and --synthetic",)),
    "no data": ("--precision=int8 --calib=nowhere", ("nowhere",)),
    "no table": ("--precision=int8 --calib=nowhere.json", ("cannot read the range table 'nowhere.json'",)),
    "no keep file": ("--precision=int8 --keep=nowhere.json", ("cannot read the keep file 'nowhere.json'",)),
}


@pytest.mark.parametrize(("options", "parts"), OPTIONS.values(), ids=OPTIONS)
def test_bad_option(
    options: str, parts: tuple[str, ...], tiny_checkpoint: Write, outputs: Outputs, run_cli: Run
) -> None:
    given = options.format(folder=outputs.folder).split()
    run_cli("check", "--ckpt", tiny_checkpoint(), "--engine", outputs / "out.onnx", *given).refused(*parts)
    outputs.untouched()


@pytest.fixture
def refused(tiny_checkpoint: Write, outputs: Outputs, run_cli: Run) -> Callable[..., None]:
    """Check that an INT8 export with some options is refused with some words."""

    def check(options: list[object], *parts: str) -> None:
        checkpoint = tiny_checkpoint()
        run_cli("--ckpt", checkpoint, "--engine", outputs / "out.onnx", "--precision=int8", *options).refused(*parts)
        outputs.untouched()

    return check


def write_json(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps({"schema": 1, "task": "nlvr", "temperature": 2.0, **content}))
    return path


def table(path: Path, digest: str = "0" * 64, **changes: Any) -> Path:
    ranges = {"cls_head.0.weight": {"minmax": [0, 1], "entropy": [0, 1], "percentile": [0, 1]}}
    fields = {"checkpoint_sha256": digest, "data": "x", "data_sha256": None, "samples": 9, "synthetic": False}
    return write_json(path, **(fields | {"ranges": ranges} | changes))


def test_a_range_table_of_another_checkpoint(refused: Callable[..., None], tmp_path: Path) -> None:
    refused(["--calib", table(tmp_path / "ranges.json")], "is of another checkpoint", "python -m calibration ranges")


def test_a_range_table_of_another_task(refused: Callable[..., None], tmp_path: Path) -> None:
    refused(["--calib", table(tmp_path / "ranges.json", task="vqa")], "is of another checkpoint", "vqa")


def test_a_range_table_of_random_data(refused: Callable[..., None], tmp_path: Path, tiny_checkpoint: Write) -> None:
    path = table(tmp_path / "ranges.json", sha256(tiny_checkpoint()), synthetic=True)
    refused(["--calib", path], "is of random data", "--synthetic")


def test_a_range_table_with_nan(refused: Callable[..., None], tmp_path: Path) -> None:
    ranges = {"cls_head.0.weight": {"minmax": [float("nan"), 1], "entropy": [0, 1], "percentile": [0, 1]}}
    refused(["--calib", table(tmp_path / "ranges.json", ranges=ranges)], "range table", "calibration ranges")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoint_sha256": "0" * 64}, "is of another checkpoint"),
        ({"precision": "fp8"}, "is for fp8, not for int8"),
        ({"keep": ["made.up"]}, "no weight product of the model"),
        ({"keep": 3}, "is malformed"),
    ],
)
def test_a_keep_file_of_something_else(
    changes: dict[str, Any], words: str, refused: Callable[..., None], tmp_path: Path, tiny_checkpoint: Write
) -> None:
    fields: dict[str, Any] = {"checkpoint_sha256": sha256(tiny_checkpoint()), "precision": "int8", "agreement": 0.9}
    refused(["--keep", write_json(tmp_path / "keep.json", **(fields | {"keep": []} | changes))], words)


def test_data_of_another_task(refused: Callable[..., None], samples_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(samples_folder, tmp_path / "vqa")
    entries = [{"question": "a digit", "image": entry["images"][0]} for entry in entries_of(folder)]
    (folder / "samples.json").write_text(json.dumps(entries))
    refused(["--calib", folder], "samples.json")


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples(count: int, refused: Callable[..., None], samples_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(samples_folder, tmp_path / "few")
    (folder / "samples.json").write_text(json.dumps(entries_of(folder)[:count]))
    refused(["--calib", folder], "samples.json", "needs at least 8" if count else "")


def entries_of(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text())
    return entries


def test_activations_that_are_nan(tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, samples_folder: Path) -> None:
    bias = torch.full([TINY["vit_dim"]], 3e38)  # finite, but its square is not
    checkpoint = tiny_checkpoint(state={"visual_encoder.norm.bias": bias})
    ran = run_cli("--ckpt", checkpoint, "--engine", outputs / "out.onnx", "--precision=int8", "--calib", samples_folder)
    ran.refused("is NaN or infinite")
    outputs.untouched()


@pytest.mark.parametrize(("gpus", "sm"), [([Gpu("old GPU", (8, 6), "580")], "89"), ([], "80,86")])
def test_fp8_where_no_gpu_has_it(
    gpus: list[Gpu], sm: str, tiny_checkpoint: Write, outputs: Outputs, run_cli: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.engine.backends, "find_gpus", lambda: gpus)
    monkeypatch.setattr(export.build.prepare, "check_tools", lambda: None)
    monkeypatch.setenv("MADTP_SM", sm)
    options = ["--precision=fp8", "--synthetic", "--backend=tensorrt-rtx"]
    ran = run_cli("check", "--ckpt", tiny_checkpoint(), "--engine", outputs / "trt.plan", *options)
    ran.refused("fp8 needs 8.9 or newer", "--precision fp16")
    outputs.untouched()
