"""Builds the targets of `tests/native`: kernels and plugins for the host, and the harness for plugin objects."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from export.engine.built_library import PRODUCT
from export.engine.plugin_build import find_headers
from tests.helpers.paths import ROOT

SOURCES = ROOT / "tests" / "native"
SANITIZE = (
    "MADTP_SANITIZE"  # environment variable: 1 takes the sanitized build (tests/plugins/test_sanitizers.py sets it)
)
PREBUILT = "MADTP_NATIVE"  # environment variable: a folder with a host build, for machines that cannot make one


@dataclass(frozen=True)
class Native:
    """The built libraries."""

    kernels: Path  # the C ABI of plugins/include/madtp/kernels.h on host memory, and the stand-in's switches
    plugins: Path  # the TensorRT plugin library, its kernels on host memory
    harness: Path  # drives plugin objects of any plugin library
    probe: Path  # tiny kernels that test the stand-in itself
    onnxruntime: Path  # the ops of ONNX Runtime, on CPUs
    cuda_ops: Path  # those of its CUDA provider on host memory, for the CPU's
    finder_plain: Path  # finds a logger as TensorRT 10 does
    finder_versioned: Path  # as TensorRT 11 does
    finder_unknown: Path  # does not say its version


def tool(name: str) -> str:
    beside_python = str(Path(sys.executable).parent)
    found = shutil.which(name) or shutil.which(name, path=beside_python)
    if found is None:
        raise FileNotFoundError(f"{name} is neither on PATH nor in {beside_python}; ./build.sh env installs it")
    return found


@cache
def build(sanitize: bool = os.environ.get(SANITIZE) == "1") -> Native:
    """Bring the host build up to date; with `sanitize`, one under AddressSanitizer and UndefinedBehaviorSanitizer.

    If MADTP_NATIVE names a folder of libraries, these are used as they are.
    """
    names = ("kernels_host", "plugins_host", "harness", "probe", "onnxruntime", "onnxruntime_host")
    names += ("finder_plain", "finder_versioned", "finder_unknown")
    if given := os.environ.get(PREBUILT):
        return Native(*(Path(given) / f"libmadtp_{name}.so" for name in names))
    folder = ROOT / "build" / ("host-sanitize" if sanitize else "host")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        defines = {
            "CMAKE_MAKE_PROGRAM": tool("ninja"),
            "TENSORRT_INCLUDE": find_headers(),
            "MADTP_SANITIZE": "ON" if sanitize else "OFF",
            "MADTP_VERSION": metadata.version(PRODUCT),
        }
        options = [f"-D{name}={value}" for name, value in defines.items()]
        _run([tool("cmake"), "-S", str(SOURCES), "-B", str(folder), "-G", "Ninja", *options])
        _run([tool("cmake"), "--build", str(folder), "--parallel", os.environ.get("MADTP_JOBS", "2")])
    return Native(*(folder / f"libmadtp_{name}.so" for name in names))


def _run(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # not for the compiler
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")


def cuda_library(name: str) -> Path | None:
    """libmadtp_<name>.so as compiled for CUDA, where that was done: kernels, plugins or onnxruntime."""
    given = os.environ.get(PREBUILT)
    places = (Path(given),) if given else (ROOT / "build" / "plugins", ROOT / "install" / "lib")
    return next((path for place in places if (path := place / f"libmadtp_{name}.so").is_file()), None)
