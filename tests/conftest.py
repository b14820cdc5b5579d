"""Fixtures for tests of the command line: a tiny model's checkpoint, samples that fit it, and outputs to protect.

Fixtures import `export` themselves: the tests for a GPU have to start where what it needs is not installed
(`tests/helpers/bare_machine.py`).
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.register_assert_rewrite("tests.helpers")

from madtp import NlvrConfig, NlvrModel
from madtp.models.parts import parts_of
from madtp.ops.tf32 import forbid_tf32
from tests.helpers.artifacts import TaskArtifacts, quick_exports
from tests.helpers.checkpoints import TINY, save_checkpoint, state_of
from tests.helpers.command_line import Ran, run_export
from tests.helpers.outputs import Outputs
from tests.helpers.samples import write_samples

forbid_tf32()

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs so, and commands under test would inherit it and rightly ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_state() -> dict[str, torch.Tensor]:
    """Weights of the tiny model; copy the dictionary before changing it."""
    return state_of(TINY)


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_state: dict[str, torch.Tensor]) -> Callable[..., Path]:
    """Write the tiny checkpoint; `state` changes or (value None) removes tensors, other keywords change entries."""

    def write(name: str = "tiny.pt", state: Mapping[str, Any] | None = None, **entries: Any) -> Path:
        return save_checkpoint(tmp_path / name, {**tiny_state, **(state or {})}, **entries)

    return write


@pytest.fixture(scope="session")
def samples_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of the tiny model; not to be changed."""
    return write_samples(tmp_path_factory.mktemp("data") / "samples")


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """Run the command line in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = run_export(monkeypatch, *arguments)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    """Earlier artifacts out.onnx and trt.plan, with their manifests, to write over."""
    folder = tmp_path / "outputs"
    folder.mkdir()
    earlier = {name: f"earlier {name}".encode() for name in ("out.onnx", "trt.plan")}
    for name in list(earlier):
        manifest = {"schema": 1, "artifact": name, "parts": [{"artifact": name}]}
        earlier[f"{Path(name).stem}.json"] = json.dumps(manifest).encode()
    for name, content in earlier.items():
        (folder / name).write_bytes(content)
    return Outputs(folder, earlier)


@pytest.fixture(scope="session")
def tiny_program(tiny_state: dict[str, torch.Tensor]) -> torch.onnx.ONNXProgram:
    """The tiny model, traced once."""
    from export.graph.trace import trace_part

    model = NlvrModel(NlvrConfig(**TINY))
    model.load_state_dict(tiny_state)
    return trace_part(parts_of(model.eval())["model"])


@pytest.fixture
def quick(tiny_program: torch.onnx.ONNXProgram) -> Iterator[pytest.MonkeyPatch]:
    """Exports of the tiny checkpoint take its trace from the session and measure latency briefly."""
    with quick_exports(tiny_program) as patch:
        yield patch


@pytest.fixture(scope="session")
def tiny_artifact(tmp_path_factory: pytest.TempPathFactory, tiny_program: torch.onnx.ONNXProgram) -> Path:
    """A folder with a checkpoint and what was exported from it; not to be changed."""
    folder = tmp_path_factory.mktemp("artifact")
    checkpoint = save_checkpoint(folder / "tiny.pt", state_of(TINY))
    with quick_exports(tiny_program) as patch:
        assert run_export(patch, "--ckpt", checkpoint, "--engine", folder / "out.onnx") == 0
    return folder


@pytest.fixture
def exported(tiny_artifact: Path, tmp_path: Path) -> tuple[Path, Path]:
    """An artifact with its manifest, and the checkpoint that it was made from; copies, to be damaged."""
    folder = shutil.copytree(tiny_artifact, tmp_path / "exported")
    return folder / "out.onnx", folder / "tiny.pt"


@pytest.fixture(scope="session")
def task_artifacts(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> TaskArtifacts:
    """Artifacts of the other tasks; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    return TaskArtifacts(base if worker_id == "master" else base.parent)


@pytest.fixture(scope="session")
def traced(tiny_program: torch.onnx.ONNXProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's ONNX file; not to be changed."""
    from export.graph.trace import save_onnx

    path = tmp_path_factory.mktemp("traced") / "tiny.onnx"
    save_onnx(tiny_program, path)
    return path
