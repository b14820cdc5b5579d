"""The op library in an export's own check: it runs the file as its function bodies do, or that is said."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import export.build.kernels
import export.build.validation
from export.build.kernels import KernelsResult
from export.errors import PluginError
from export.runtime.onnx_runner import OnnxRunner
from tests.helpers.artifacts import quick_exports
from tests.helpers.checkpoints import TINY, save_checkpoint, state_of
from tests.helpers.command_line import run_export
from tests.helpers.manifests import manifest_json
from tests.helpers.op_library import real_library
from tests.helpers.samples import write_samples

SAMPLES = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    save_checkpoint(folder / "tiny.pt", state_of(TINY))
    write_samples(folder / "samples")
    real_library()
    return folder


@pytest.fixture
def patch(tiny_program: torch.onnx.ONNXProgram) -> Iterator[pytest.MonkeyPatch]:
    with quick_exports(tiny_program) as patch:
        yield patch


def exported(patch: pytest.MonkeyPatch, source: Path, folder: Path, *options: str) -> dict[str, Any]:
    """What the manifest says of the kernels."""
    arguments = ("--ckpt", source / "tiny.pt", "--engine", folder / "out.onnx", "--samples", source / "samples")
    assert run_export(patch, *arguments, *options) == 0
    entry: dict[str, Any] = manifest_json(folder / "out.json")["validation"]["kernels"]
    return entry


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_every_sample_is_compared_by_the_ids_of_its_tokens(
    patch: pytest.MonkeyPatch, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    found: list[KernelsResult] = []
    run = export.build.validation.run_kernels
    patch.setattr(export.build.validation, "run_kernels", lambda *given: found.append(run(*given)) or found[-1])
    entry = exported(patch, source, tmp_path, "--precision", precision)
    assert (entry["status"], entry["requests"]) == ("passed", 2 * SAMPLES)
    assert entry["sha256"] == real_library().sha256
    pruned = [result for batch, result in found[0].answers.items() if batch.temperature > 0]
    assert len(pruned) == SAMPLES
    assert all(layer.source_ids is not None for result in pruned for layer in result.layers)
    assert f"passed on {2 * SAMPLES} requests" in capsys.readouterr().out


class WrongKernels(OnnxRunner):
    """Logits that are off by one."""

    def run(self, *given: Any) -> Any:
        outputs = super().run(*given)
        return {name: value + 1 if name == "logits" else value for name, value in outputs.items()}


def no_kernels(*_: Any, **__: Any) -> OnnxRunner:
    """A library that ONNX Runtime refuses."""
    raise PluginError("it cannot be registered", "The test says so.", "")


@pytest.mark.parametrize(
    ("runner", "reason"),
    [(WrongKernels, "logits differ by"), (no_kernels, "it cannot be registered: The test says so.")],
)
def test_kernels_that_fail_do_not_fail_the_file(
    patch: pytest.MonkeyPatch,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    runner: Any,
    reason: str,
) -> None:
    patch.setattr(export.build.kernels, "OnnxRunner", runner)
    entry = exported(patch, source, tmp_path)
    assert entry["status"] == "failed"
    assert reason in entry["failures"][0]
    shown = " ".join(capsys.readouterr().out.split())
    assert "FAILED on this file; run it with --library none" in shown
    assert manifest_json(tmp_path / "out.json")["validation"]["artifact"] == "passed"
