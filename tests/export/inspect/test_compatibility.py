"""What an inspection says of this machine: whether an artifact runs on it."""

from pathlib import Path
from typing import Any

import pytest

import export.inspect.compatibility as compatibility
from export.engine.backends import Gpu
from tests.helpers.artifact_files import plan_artifact
from tests.helpers.inspections import H200, RTX, Inspect, Machines, found


def test_versions_of_onnx_runtime(vqa: Path, inspect: Inspect, machine: Machines) -> None:
    machine(onnxruntime="1.9.0")
    assert "is older" in str(found(inspect, vqa)["verdict"])
    machine(onnxruntime="1.33.0")
    assert found(inspect, vqa)["verdict"]["runs"] is True
    machine(onnxruntime=None)
    assert found(inspect, vqa)["verdict"] == {"runs": False, "because": ["onnxruntime is not installed"]}


@pytest.mark.parametrize(
    ("gpus", "installed", "runs", "reason"),
    [
        ((), {}, False, "there is no GPU"),
        ((RTX,), {}, True, ""),
        ((H200, RTX), {}, True, ""),
        ((H200,), {}, False, "H200 has 9.0"),
        ((H200,), {}, False, "no code for compute capability 9.0"),
        ((Gpu("RTX 5090", (12, 0), "580.1"),), {}, False, "no code for compute capability 12.0"),
        ((RTX,), {"tensorrt_rtx": "1.8.0"}, False, "1.8.0 is installed; it needs the same version"),
        ((RTX,), {"tensorrt_rtx": None}, False, "not installed"),
        ((Gpu("RTX 4090", (8, 9), "570.2"),), {"cuda13": ("tensorrt-rtx",)}, False, "needs 580 or later"),
        ((Gpu("RTX 4090", (8, 9), "570.2"),), {}, True, ""),
    ],
)
def test_verdict_on_plans_of_tensorrt_rtx(
    gpus: tuple[Gpu, ...],
    installed: dict[str, Any],
    runs: bool,
    reason: str,
    tmp_path: Path,
    inspect: Inspect,
    machine: Machines,
) -> None:
    path = plan_artifact(tmp_path)
    machine(*gpus, **installed)
    verdict = found(inspect, path)["verdict"]
    assert verdict["runs"] is runs
    assert reason in "; ".join(verdict["because"])
    assert ("yes" in inspect(path)[1]) is runs


def test_verdict_on_turing_and_on_plans_of_tensorrt(tmp_path: Path, inspect: Inspect, machine: Machines) -> None:
    machine(Gpu("T4", (7, 5), "580.1"))
    assert found(inspect, plan_artifact(tmp_path, plugins=False))["verdict"]["runs"] is False
    path = plan_artifact(tmp_path, "tensorrt", plugins=False)
    assert "yes, if it was built on a GPU of the same architecture" in " ".join(inspect(path)[1].split())
    machine(H200, tensorrt="10.15.0")
    assert "10.14.1 and 10.15.0 is installed" in found(inspect, path)["verdict"]["because"][0]


def test_this_machine_names_the_installed_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[Gpu]:
        raise compatibility.pynvml.NVMLError_GpuIsLost

    assert compatibility.this_machine().packages["onnxruntime"] is not None
    monkeypatch.setattr(compatibility, "find_gpus", lambda: [RTX])
    assert compatibility.this_machine().gpus == (RTX,)
    monkeypatch.setattr(compatibility, "find_gpus", refuse)
    assert compatibility.this_machine().gpus == ()
