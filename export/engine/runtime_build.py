"""Building the engine for programs in C and C++: `python -m export.engine.runtime_build`.

`libmadtp_runtime.so` is compiled from `plugins/runtime` and installed beside the other native libraries, with its
headers and the CMake package. It needs no CUDA, and changes of it do not touch those libraries. With TensorRT's headers
it runs plans too, in the TensorRT that they are of.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from export.engine.built_library import PRODUCT
from export.engine.plugin_build import LOG_LINES, SYSTEM_INCLUDES, build_tool, check_host_compiler, find_headers
from export.errors import PluginError
from madtp.console.printing import error_text, say
from madtp.errors import MadtpError
from madtp.files.inputs import sha256
from madtp.files.native import CHECKOUT, GET_COMPILER, IS_PACKAGE, RUNTIME_STAMP, SOURCES, cache_folder, runtime_hash
from madtp.files.staging import write_errors

RUNTIME_NAME = "libmadtp_runtime.so"
OPTIONAL = ("jpeglib.h", "png.h", "unicode/uchar.h")


def build_runtime(on_build: Callable[[str], None] = lambda _: None) -> Path:
    """Build and install the library, or take the one that is there if it was made from the same sources.

    Raises:
        PluginError: a compiler or nlohmann-json is missing, or the compiler failed.
        OutputError: the build folder cannot be written.
    """
    build, install = runtime_folders()
    library, stamp = install / "lib" / RUNTIME_NAME, install / RUNTIME_STAMP
    headers = _find_tensorrt()
    made_with = {"tensorrt": headers and _hash_of(headers), "found": _found()}
    wanted = {"source": runtime_hash(), "version": metadata.version(PRODUCT), **made_with}
    with write_errors(build):
        build.mkdir(parents=True, exist_ok=True)
        install.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{build}.lock"):
        if _is_current(library, stamp, wanted):
            return library
        on_build("compiling the engine for C and C++ (half a minute, once)")
        _run_cmake(build, install, wanted, headers)
        with write_errors(install):
            fresh = stamp.with_suffix(".new")
            fresh.write_text(json.dumps({**wanted, "sha256": sha256(library)}) + "\n")
            os.replace(fresh, stamp)
    return library


def runtime_folders() -> tuple[Path, Path]:
    """Where it is compiled, and where it is installed."""
    if not IS_PACKAGE:
        return CHECKOUT / "build" / "runtime", CHECKOUT / "install"
    cached = cache_folder() / f"runtime-{runtime_hash()[:16]}"
    return cached / "build", cached / "install"


def find_json_header() -> Path:
    """The folder of nlohmann/json.hpp: the system's, or of the wheel that carries it.

    Raises:
        PluginError: there is none.
    """
    places = [Path(place) for place in SYSTEM_INCLUDES]
    if (wheel := importlib.util.find_spec("nlohmann_json")) is not None and wheel.origin is not None:
        places.append(Path(wheel.origin).parent / "include")
    for place in places:
        if (place / "nlohmann" / "json.hpp").is_file():
            return place
    raise PluginError(
        "there is no header of nlohmann-json (nlohmann/json.hpp)",
        f"Looked in {', '.join(map(str, places))}.",
        f"{GET_COMPILER}, which installs the wheel that carries it, or apt-get install nlohmann-json3-dev.",
    )


def _find_tensorrt() -> Path | None:
    """The folder of TensorRT's headers, or of those of TensorRT for RTX in TENSORRT_ROOT; None: it runs no plans.

    Raises:
        PluginError: TENSORRT_ROOT is set, and has none.
    """
    if (root := os.environ.get("TENSORRT_ROOT")) is not None and (
        Path(root) / "include" / "NvInferRuntime.h"
    ).is_file():
        return Path(root) / "include"  # TensorRT for RTX counts versions from 1: too old for plugins, not for this
    try:
        return find_headers()
    except PluginError:
        if root is not None:
            raise
        return None


def _hash_of(headers: Path) -> str:
    return sha256(headers / "NvInferVersion.h")


def _found() -> list[str]:
    """Headers that are there of the libraries that the tasks can do without: with others they are another build."""
    return [name for name in OPTIONAL if any((Path(place) / name).is_file() for place in SYSTEM_INCLUDES)]


def _is_current(library: Path, stamp: Path, wanted: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(stamp.read_text()) == {**wanted, "sha256": sha256(library)})
    except (OSError, ValueError):
        return False


def _run_cmake(build: Path, install: Path, wanted: Mapping[str, Any], headers: Path | None) -> None:
    check_host_compiler()
    defines = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_INSTALL_LIBDIR": "lib",
        "CMAKE_MAKE_PROGRAM": build_tool("ninja"),
        "MADTP_VERSION": wanted["version"],
        "NLOHMANN_JSON_INCLUDE": find_json_header(),
        "TENSORRT_INCLUDE": headers or "",
    }
    source = ["-S", SOURCES / "runtime", "-B", build, "-G", "Ninja", "--fresh"]
    configure = [*source, *(f"-D{name}={value}" for name, value in defines.items())]
    for step in (configure, ["--build", build], ["--install", build, "--prefix", install]):
        command = [build_tool("cmake"), *map(str, step)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        if run.returncode != 0:
            lines = (run.stdout + run.stderr).strip().splitlines()
            raise PluginError(
                "the engine for C and C++ could not be built",
                "\n".join(lines[-LOG_LINES:]),
                "See the compiler's output above.",
            )


def main() -> int:
    """`python -m export.engine.runtime_build`: build and install the library; returns the exit status."""
    try:
        library = build_runtime(partial(say, err=True))
    except MadtpError as error:
        say(f"error: {error_text(error)}", err=True)
        return 2
    say(f"{library}: version {metadata.version(PRODUCT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
