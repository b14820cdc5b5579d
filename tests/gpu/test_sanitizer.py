"""compute-sanitizer finds no bad access, no race and no misused barrier in the kernels of three small cases."""

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.gpu.compile import ROOT
from export.engine.plugin_build import find_nvcc
from export.errors import PluginError
from tests.helpers.gpu import gpu_only
from tests.helpers.gpu_cases import SANITIZED

pytestmark = gpu_only

FOUND = 86  # exit status that compute-sanitizer is told to give where it finds something
REFUSAL = "Device not supported"  # e.g. on a virtual machine that hides what the tool needs
SECONDS = 60  # a tool
# Our kernels alone are looked at, and what the driver asks of it in vain (torch probes a lot) is no finding.
OPTIONS = ("--kernel-name", "kns=madtp", "--report-api-errors", "no", "--error-exitcode", str(FOUND))


def find_sanitizer() -> Path | None:
    """compute-sanitizer of PATH, or of the CUDA toolkit that nvcc is in."""
    if on_path := shutil.which("compute-sanitizer"):
        return Path(on_path)
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))]
    with suppress(PluginError):
        homes.append(find_nvcc().resolve().parent.parent)
    for home in homes:
        for place in ("bin/compute-sanitizer", "compute-sanitizer/compute-sanitizer"):
            if (home / place).is_file():
                return home / place
    return None


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = find_sanitizer()
    if sanitizer is None:
        pytest.skip("there is no compute-sanitizer on PATH or in the CUDA toolkit")
    # Each tensor is an allocation of its own, so that a step beyond its end is seen.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [sanitizer, "--tool", tool, *OPTIONS, sys.executable, "-m", "tests.gpu.driver", *SANITIZED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
    output = done.stdout + done.stderr
    if REFUSAL in output:
        pytest.skip(f"compute-sanitizer cannot work here: {output[-300:]}")
    assert done.returncode == 0, output[-5000:]
    # It has to have seen the kernels run: nothing is found in a program that stops early, too.
    assert "calls ran:" in output, output[-5000:]
    assert int(output.split("calls ran:")[1].split()[0]) == len(SANITIZED)
