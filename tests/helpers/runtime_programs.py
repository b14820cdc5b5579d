"""Programs in C++ that use the engine: those of `tests/native/runtime`, and those of `plugins/examples`."""

import filecmp
import os
import shutil
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from export.engine.built_library import PRODUCT
from export.engine.plugin_build import find_headers
from export.engine.runtime_build import build_runtime, find_json_header, runtime_folders
from tests.helpers.native_build import tool
from tests.helpers.paths import ROOT
from tests.helpers.runtime_library import onnxruntime_library

GENERATED = ROOT / "build" / "runtime-generated"  # by `tests.helpers.fake_tensorrt`
SOURCES, EXAMPLES = ROOT / "tests" / "native" / "runtime", ROOT / "plugins" / "examples"
NO_CUDA = ("-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON", "-DCUDAToolkit_ROOT=/nowhere")


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program, which finds ONNX Runtime as one that is installed would be found."""
    given = {**os.environ, "MADTP_ONNXRUNTIME": str(onnxruntime_library()), **environment}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, env=given)


@cache
def programs(sanitize: str, *targets: str) -> Path:
    """The folder with targets of `tests/native/runtime`, built with a sanitizer: "address" or "thread"."""
    folder = ROOT / "build" / f"runtime-{sanitize}"
    plans = {"TENSORRT_INCLUDE": find_headers(), "MADTP_GENERATED": GENERATED} if sanitize == "address" else {}
    options = {
        **plans,
        "MADTP_SANITIZE": sanitize,
        "MADTP_VERSION": metadata.version(PRODUCT),
        "NLOHMANN_JSON_INCLUDE": find_json_header(),
    }
    _build(SOURCES, folder, [f"-D{name}={value}" for name, value in options.items()], targets)
    return folder


@cache
def examples() -> Path:
    """The folder with the examples."""
    return build_with_package(EXAMPLES, ROOT / "build" / "examples")


def build_with_package(sources: Path, folder: Path) -> Path:
    """Build a CMake project with the installed package, after that was moved elsewhere, in `folder`."""
    build_runtime()
    moved = ROOT / "build" / "moved"
    moved.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{moved}.lock"):
        shutil.copytree(runtime_folders()[1], moved, dirs_exist_ok=True, copy_function=renew)
    _build(sources, folder, [f"-DCMAKE_PREFIX_PATH={moved}", *NO_CUDA], ())
    return folder


def renew(source: str, target: str) -> str:
    """Put a copy of a file in place, unless there is one.

    Writing into a library that a process has mapped takes its relocations from it, and the process crashes some time
    later in dlopen; so another file takes its name.
    """
    if not (os.path.exists(target) and filecmp.cmp(source, target, shallow=False)):
        fresh = f"{target}.new"
        shutil.copy2(source, fresh)
        os.replace(fresh, target)
    return target


def _build(sources: Path, folder: Path, options: list[str], targets: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ninja = ("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}")
    wanted: list[Any] = ["--target", *targets] if targets else []
    with FileLock(f"{folder}.lock"):
        for step in (("-S", sources, "-B", folder, *ninja, *options), ("--build", folder, *wanted)):
            made = run(tool("cmake"), *step)
            assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
