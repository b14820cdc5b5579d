"""Kernels and plugins under AddressSanitizer and UndefinedBehaviorSanitizer: a selection of their tests, run again on a
host build with both, in which shared memory is a heap block of exactly the size that the launch asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.native_build import SANITIZE, build
from tests.helpers.paths import ROOT

# Not whether fused multiplications give other bits: unoptimised code has none.
SELECTION = (
    "(test_plugin and not symbols) or any_size or leading_or_all or not_finite or batch_mates "
    "or (larger_tiles and dtype0) or any_bytes or a_bound_leaves or mostly_decided or test_kernel_contract "
    "or any_ends or varlen_attention_is or beyond_a_capacity "
    "or test_onnxruntime_gpu_ops or test_quantized_linear "
    "or (test_onnxruntime_ops and not recorded and not can_be_chosen) or test_onnxruntime_packed"
)


def sanitized(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the sanitizer's runtime loaded first, as a library that is loaded later needs it; and with C++'s,
    whose exceptions it can only follow if they are there from the beginning."""
    build(True)
    names = ["-print-file-name=libasan.so", "-print-file-name=libstdc++.so.6"]
    found = [subprocess.run(["g++", name], capture_output=True, text=True, check=True).stdout.strip() for name in names]
    environment = {
        **os.environ,
        SANITIZE: "1",
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself never frees everything
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_kernels_and_plugins_pass_their_tests_under_the_sanitizers() -> None:
    # Without conftest.py, which would load all of the project, and without the CUDA build, which has no sanitizer.
    options = ("-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:randomly")
    files = (
        "tests/plugins/test_plugins.py",
        "tests/plugins/test_plugin_errors.py",
        "tests/plugins/test_plugin_logger.py",
        "tests/plugins/test_kernels.py",
        "tests/plugins/test_kernel_contract.py",
        "tests/plugins/test_packed_kernels.py",
        "tests/plugins/test_onnxruntime_gpu_ops.py",
        "tests/plugins/test_onnxruntime_ops.py",
        "tests/plugins/test_onnxruntime_packed_errors.py",
        "tests/plugins/test_onnxruntime_packed_ops.py",
        "tests/plugins/test_quantized_linear.py",
    )
    result = sanitized(*options, *files, "-k", f"({SELECTION}) and not cuda")
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert result.stdout.count(".") > 100, result.stdout


@pytest.mark.parametrize(
    ("call", "error"), [("probe_overrun(32)", None), ("probe_overrun(31)", "heap-buffer-overflow")]
)
def test_a_write_behind_shared_memory_is_noticed(call: str, error: str | None) -> None:
    script = "import ctypes; from tests.helpers.native_build import build; ctypes.CDLL(str(build().probe))."
    result = sanitized("-c", script + call)
    if error is None:
        assert result.returncode == 0, result.stderr[-4000:]
    else:
        assert result.returncode != 0
        assert error in result.stderr
