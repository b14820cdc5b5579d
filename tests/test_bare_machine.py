"""The tests for a GPU start on a machine that has one and nothing of ours installed."""

import re
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

GPU_TESTS = (
    "tests/plugins/test_kernels.py",
    "tests/plugins/test_kernel_contract.py",
    "tests/plugins/test_packed_kernels.py",
    "tests/gpu",
    "tests/export/runtime/test_gpu.py",
)


def bare_pytest(*arguments: str) -> subprocess.CompletedProcess[str]:
    """pytest where nothing else can be imported."""
    command = [sys.executable, "-m", "tests.helpers.bare_machine", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_tests_for_a_gpu_are_collected() -> None:
    result = bare_pytest("-q", "-m", "gpu", "--collect-only", *GPU_TESTS)
    assert result.returncode == 0, result.stdout + result.stderr
    collected = {file.rpartition("/")[2]: int(count) for file, count in re.findall(r"(\S+\.py): (\d+)", result.stdout)}
    names = ("kernels", "kernel_contract", "packed_kernels", "graphs", "packed_graphs", "sanitizer")
    assert collected.keys() >= {f"test_{name}.py" for name in names}
    assert collected["test_kernels.py"] > 50
    assert collected["test_gpu.py"] == 1


def test_plans_are_skipped_for_a_reason_where_there_is_no_tensorrt() -> None:
    result = bare_pytest("-rs", "tests/export/runtime/test_gpu.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SKIPPED [1]" in result.stdout
    assert "tensorrt-rtx is not installed" in result.stdout


@pytest.mark.parametrize("script", ["import ftfy", "import export.artifact.seal", "import rich.console"])
def test_what_is_not_there_is_noticed(script: str) -> None:
    prelude = "import sys; from tests.helpers import bare_machine; bare_machine.hide_the_rest(); import torch, pytest; "
    command = [sys.executable, "-c", prelude + script]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "ModuleNotFoundError: No module named" in result.stderr
