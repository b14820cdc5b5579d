"""How ONNX Runtime runs a file: what is chosen, and what is said of it."""

from pathlib import Path

import onnxruntime
import pytest
from onnx import TensorProto

import export.runtime.execution as execution
from export.engine.backends import Gpu
from export.errors import BackendError, OptionError, PluginError
from export.graph.inline import inline_functions
from export.runtime.artifact import Artifact
from export.runtime.execution import CUDA, Execution, choose_execution
from export.runtime.onnx_runner import OnnxRunner
from madtp.ops.spec import ALIGNED_ATTENTION, TOKEN_COMPACT
from tests.helpers.bench import as_plan
from tests.helpers.op_library import stand_in, write_op


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_op(TOKEN_COMPACT, tmp_path / "one.onnx", layer=0)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = stand_in(tmp_path / "libmadtp_onnxruntime.so")
    monkeypatch.setattr(execution, "installed_library", lambda: path)
    return path


def test_the_installed_library_runs_by_default(file: Path, installed: Path) -> None:
    chosen = choose_execution([file])
    assert chosen.library is not None
    assert chosen.library.path == installed
    assert str(chosen) == "kernels of libmadtp_onnxruntime.so 0.1.0 on the CPU"
    kernels = chosen.to_json()["kernels"]
    assert (kernels["file"], kernels["sha256"]) == (installed.name, chosen.library.sha256)


def test_none_runs_the_bodies(file: Path, installed: Path) -> None:
    chosen = choose_execution([file], "none")
    assert (chosen.library, str(chosen)) == (None, "function bodies (asked for) on the CPU")


def test_without_a_library_the_bodies_run(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "installed_library", lambda: None)
    assert str(choose_execution([file])) == "function bodies (no libmadtp_onnxruntime.so here) on the CPU"


def test_an_installed_library_that_does_not_fit_is_left_out_and_named(file: Path, installed: Path) -> None:
    stand_in(installed, version="0.0.9")
    chosen = choose_execution([file])
    assert chosen.library is None
    assert str(installed) in chosen.reason
    assert "0.0.9" in chosen.reason


def test_a_named_library_that_does_not_fit_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"0\.0\.9"):
        choose_execution([file], stand_in(tmp_path / "old.so", version="0.0.9"))


def test_a_file_without_custom_ops_needs_none(file: Path, installed: Path) -> None:
    inline_functions(file, file)
    chosen = choose_execution([file], installed)
    assert chosen.library is None
    assert "inlined" in chosen.reason


def test_types_without_kernels_run_the_bodies(installed: Path, tmp_path: Path) -> None:
    half = write_op(ALIGNED_ATTENTION, tmp_path / "half.onnx", TensorProto.FLOAT16, heads=2, causal=0)
    chosen = choose_execution([half])
    assert chosen.library is None
    assert "has no kernels for float16" in chosen.reason


def test_cuda_needs_another_onnxruntime(file: Path) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this is onnxruntime-gpu")
    with pytest.raises(BackendError, match="has no CUDA provider") as caught:
        choose_execution([file], provider="cuda")
    assert "onnxruntime-gpu" in str(caught.value)


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if onnxruntime-gpu were installed."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])


@pytest.mark.usefixtures("with_cuda")
def test_cuda_needs_a_gpu(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "find_gpus", list)
    with pytest.raises(BackendError, match="there is no GPU here"):
        choose_execution([file], provider="cuda")


@pytest.mark.usefixtures("with_cuda")
def test_cuda_takes_no_library_for_cpus(file: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "find_gpus", lambda: [Gpu("H100", (9, 0), "580")])
    stand_in(installed, sm="")
    with pytest.raises(PluginError, match="for CPUs alone"):
        choose_execution([file], installed, "cuda")
    assert choose_execution([file], provider="cuda").library is None


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_an_error_not_a_cpu(file: Path) -> None:
    """ONNX Runtime logs and goes on without a provider that it cannot load."""
    with pytest.raises(BackendError, match="on a GPU"):
        OnnxRunner(file, execution=Execution("cuda"))


def test_a_library_that_does_not_load_is_a_sentence(file: Path, installed: Path) -> None:
    with pytest.raises(PluginError, match="cannot register the op library") as caught:
        OnnxRunner(file, execution=choose_execution([file], installed))
    assert "--library none" in str(caught.value)


@pytest.mark.parametrize(("library", "provider"), [("some.so", "cpu"), (None, "cuda")])
def test_a_plan_takes_neither(library: str | None, provider: execution.Provider, tiny_artifact: Path) -> None:
    plan = as_plan(Artifact.open(tiny_artifact / "out.json"))
    assert plan.execution("none") is None
    with pytest.raises(OptionError, match="do not apply"):
        plan.execution(library, provider)
