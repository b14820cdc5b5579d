"""Function bodies and kernels as two runners: each beside torch, and beside each other."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from export.runtime.execution import BODIES, Execution
from export.runtime.onnx_runner import OnnxRunner
from madtp.tasks.requests import Outputs
from tests.helpers.command_line import Ran
from tests.helpers.op_library import real_library

Validate = Callable[[], tuple[Ran, dict[str, Any]]]


@pytest.fixture
def validate(
    exported: tuple[Path, Path], samples_folder: Path, tmp_path: Path, run_cli: Callable[..., Ran]
) -> Validate:
    def run() -> tuple[Ran, dict[str, Any]]:
        engine, checkpoint = exported
        named = ["--library", real_library().path, "--limit", 2, "--json", tmp_path / "result.json"]
        ran = run_cli("validate", "--engine", engine, "--ckpt", checkpoint, "--samples", samples_folder, *named)
        return ran, json.loads((tmp_path / "result.json").read_text())

    return run


def test_kernels_and_bodies_are_compared(validate: Validate) -> None:
    ran, result = validate()
    assert ran.status == 0
    pairs = {pair["pair"]: pair for pair in result["pairs"]}
    assert set(pairs) == {"torch/onnx", "torch/kernels", "onnx/kernels"}
    assert all(pair["passed"] for pair in pairs.values())
    assert result["execution"]["kernels"]["sha256"] == real_library().sha256
    assert "kernels: the same file on kernels of libmadtp_onnxruntime.so" in ran.out


def test_kernels_that_differ_fail_and_the_file_is_not_blamed(
    validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, run = OnnxRunner.__init__, OnnxRunner.run
    on_kernels = set[int]()

    def noted(self: OnnxRunner, path: Path, threads: int | None = None, execution: Execution = BODIES) -> None:
        opened(self, path, threads, execution)
        if execution.library is not None:
            on_kernels.add(id(self))

    def altered(self: OnnxRunner, inputs: dict[str, Tensor], temperature: float) -> Outputs:
        outputs = run(self, inputs, temperature)
        return {**outputs, "logits": outputs["logits"] + 1} if id(self) in on_kernels else outputs

    monkeypatch.setattr(OnnxRunner, "__init__", noted)
    monkeypatch.setattr(OnnxRunner, "run", altered)
    ran, result = validate()
    assert ran.status == 1
    failed = {check["group"] for check in result["checks"] if check["status"] == "failed"}
    assert {"torch/kernels", "onnx/kernels"} <= failed
    assert "torch/onnx" not in failed
    assert "the file is right and the op library is not" in result["bisected"]
