"""Building the library of TensorRT plugins: `python -m export.engine.plugin_build`.

`plugins/` is compiled with CMake into `build/plugins` and installed into `install/`. An installed library is taken as
it is where sources and GPU architectures are those that it was made from; the stamp beside it says so.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from export.engine.plugin_library import PRODUCT, PluginLibrary, loadable_library, read_library
from export.errors import PluginError
from madtp.console.printing import error_text, say
from madtp.errors import MadtpError
from madtp.files.inputs import sha256
from madtp.files.staging import write_errors

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugins"
BUILD = ROOT / "build" / "plugins"
INSTALL = ROOT / "install"
LIBRARY_NAME = "libmadtp_plugins.so"
KERNELS_NAME = "libmadtp_kernels.so"
ONNXRUNTIME_NAME = "libmadtp_onnxruntime.so"
KERNELS_TARGETS = ("madtp_kernels_shared", "madtp_onnxruntime")
DEFAULT_SM = (75, 80, 86, 89, 90, 120)
SM_VARIABLE = "MADTP_SM"  # environment variable: other architectures, e.g. "89" or "80,90"
SOURCE_SUFFIXES = {".cu", ".cpp", ".h", ".txt", ".map", ".in"}
OLDEST_HEADERS = (10, 14)
SYSTEM_INCLUDES = ("/usr/include", "/usr/include/x86_64-linux-gnu", "/usr/local/include", "/usr/local/tensorrt/include")
LOG_LINES = 15  # of the compiler, shown when it fails


def plugin_library(requested: str, on_build: Callable[[str], None]) -> PluginLibrary | None:
    """The library for `--plugins`: None for "none", the built one for "auto", else the file of that name.

    Raises:
        PluginError: it cannot be built here, or the file is not a plugin library of this version.
    """
    if requested == "none":
        return None
    return build_library(on_build) if requested == "auto" else loadable_library(Path(requested))


def architectures() -> tuple[int, ...]:
    """The compute capabilities to build for: MADTP_SM, else DEFAULT_SM.

    Raises:
        PluginError: MADTP_SM is not a list of numbers.
    """
    text = os.environ.get(SM_VARIABLE, "")
    if not text.strip():
        return DEFAULT_SM
    parts = re.split(r"[,;\s]+", text.strip())
    if not all(re.fullmatch(r"\d{2,3}", part) for part in parts):
        raise PluginError(
            f"{SM_VARIABLE} is '{text}'",
            "It has to list compute capabilities without the dot.",
            f"Use e.g. {SM_VARIABLE}=89 or {SM_VARIABLE}=80,90.",
        )
    return tuple(sorted({int(part) for part in parts}))


def source_hash() -> str:
    """Hash of everything that is compiled into the library."""
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCES.rglob("*") if path.suffix in SOURCE_SUFFIXES):
        digest.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def find_headers() -> Path:
    """The folder of TensorRT's headers: TENSORRT_ROOT/include, the system's, or the wheel that carries them.

    Raises:
        PluginError: there are none, or they are too old.
    """
    root = os.environ.get("TENSORRT_ROOT")
    places = [Path(root) / "include"] if root else [Path(place) for place in SYSTEM_INCLUDES]
    if not root and (wheel := importlib.util.find_spec("kernel_lens")) is not None and wheel.origin is not None:
        places.append(Path(wheel.origin).parent / "include" / "tensorrt")
    for place in places:
        if not (place / "NvInfer.h").is_file():
            continue
        version = _header_version(place)
        if version >= OLDEST_HEADERS:
            return place
        if root:
            raise PluginError(
                f"the TensorRT headers in '{place}' are of version {'.'.join(map(str, version))}",
                f"The plugins need {'.'.join(map(str, OLDEST_HEADERS))} or newer.",
                "Point TENSORRT_ROOT at a newer TensorRT, or unset it.",
            )
    raise PluginError(
        "there are no TensorRT headers (NvInfer.h)",
        f"Looked in {', '.join(map(str, places))}.",
        "Run ./build.sh env, which installs the wheel that carries them, or set TENSORRT_ROOT.",
    )


def _header_version(folder: Path) -> tuple[int, ...]:
    """(major, minor) of the headers; (0, 0) where they do not say."""
    try:
        text = (folder / "NvInferVersion.h").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0, 0
    parts = [rf"#define (?:NV|TRT)_(?:TENSORRT_)?{part}(?:_ENTERPRISE)? (\d+)" for part in ("MAJOR", "MINOR")]
    numbers = [re.search(part, text) for part in parts]
    return tuple(int(number[1]) if number else 0 for number in numbers)


def find_nvcc() -> Path:
    """The CUDA compiler: CUDACXX, PATH, or the wheel of NVIDIA's toolkit.

    Raises:
        PluginError: not found.
    """
    given = os.environ.get("CUDACXX")
    found = shutil.which(given or "nvcc")
    if found is not None:
        return Path(found)
    wheel = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "bin" / "nvcc"
    if given is None and wheel.is_file():
        return wheel
    raise PluginError(
        f"there is no CUDA compiler '{given}'" if given else "there is no CUDA compiler (nvcc)",
        "The plugin library is compiled from CUDA sources; no GPU is needed for that.",
        "Run ./build.sh env, which installs it from PyPI, or use --plugins none (slower engines without plugins).",
    )


def check_tools() -> None:
    """Preflight of a build: nothing to do where a current library is there.

    Raises:
        PluginError: sources, compiler, headers or build tools are missing.
    """
    _check_sources()
    wanted = {"source": source_hash(), "sm": list(architectures())}
    if not _is_current(*_installed(), wanted):
        find_nvcc()
        find_headers()
        _tool("cmake")
        _tool("ninja")
        _check_host_compiler()


def _installed() -> tuple[Path, Path]:
    """The installed library and its stamp."""
    return INSTALL / "lib" / LIBRARY_NAME, INSTALL / "madtp-plugins.json"


def _check_sources() -> None:
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise PluginError(
            f"there are no plugin sources in '{SOURCES}'",
            "The package was installed without its checkout.",
            "Run it from a checkout, or name a library: --plugins PATH.",
        )


def _check_host_compiler() -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise PluginError(
            "there is no C++ compiler (c++)", "nvcc compiles host code with it.", "apt-get install g++, or set CXX."
        )


def build_library(on_build: Callable[[str], None] = lambda _: None) -> PluginLibrary:
    """Build the library, or take the one that is there if it was made from the same sources.

    Args:
        on_build: called with a message when a build begins; it takes about two minutes.

    Raises:
        PluginError: compiler or headers are missing, or the compiler failed.
        OutputError: the build folder cannot be written.
    """
    _check_sources()
    wanted = {"source": source_hash(), "sm": list(architectures())}
    library, stamp = _installed()
    with write_errors(BUILD):
        BUILD.mkdir(parents=True, exist_ok=True)
        INSTALL.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD.parent / "plugins.lock"):
        if _is_current(library, stamp, wanted):
            return read_library(library)
        on_build("compiling the plugin library (about two minutes, once)")
        _compile(wanted)
        with write_errors(stamp):
            fresh = stamp.with_suffix(".new")
            fresh.write_text(json.dumps({**wanted, **_hashes(library)}) + "\n")
            os.replace(fresh, stamp)
        return read_library(library)


def _is_current(library: Path, stamp: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether the installed library is complete and made from `wanted`; a build cut short leaves no such stamp."""
    try:
        complete = json.loads(stamp.read_text()) == {**wanted, **_hashes(library)}
        return complete and read_library(library).version == metadata.version(PRODUCT)
    except (OSError, ValueError, PluginError):
        return False


def _hashes(library: Path) -> dict[str, str]:
    """Of the library, and of the two that are installed beside it: the kernels alone, and the ops of ONNX Runtime."""
    return {
        "sha256": sha256(library),
        "kernels_sha256": sha256(library.with_name(KERNELS_NAME)),
        "onnxruntime_sha256": sha256(library.with_name(ONNXRUNTIME_NAME)),
    }


def build_kernels(sm: tuple[int, ...], folder: Path) -> Path:
    """libmadtp_kernels.so for these compute capabilities, in a build folder of its own, which may be used again; beside
    it `onnxruntime/libmadtp_onnxruntime.so`.

    Raises:
        PluginError: compiler or headers are missing, or the compiler failed.
        OutputError: the build folder cannot be written.
    """
    _check_sources()
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        wanted = {"source": source_hash(), "sm": list(sm)}
        _run_cmake(wanted, folder, ["--build", folder, "--target", *KERNELS_TARGETS])
    return folder / KERNELS_NAME


def _compile(wanted: Mapping[str, Any]) -> None:
    _run_cmake(wanted, BUILD, ["--build", BUILD], ["--install", BUILD])


def _run_cmake(wanted: Mapping[str, Any], folder: Path, *steps: list[Any]) -> None:
    """Configure in `folder`, then take the steps."""
    nvcc, headers = find_nvcc(), find_headers()
    _check_host_compiler()
    environment = dict(os.environ)
    toolkit = nvcc.resolve().parents[2]
    if (toolkit / "lib" / "libcudart_static.a").is_file():  # the wheel's layout, which nvcc does not know by itself
        environment["LIBRARY_PATH"] = os.pathsep.join(
            filter(None, [str(toolkit / "lib"), environment.get("LIBRARY_PATH")])
        )
    defines = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_INSTALL_PREFIX": INSTALL,
        "CMAKE_INSTALL_LIBDIR": "lib",
        "CMAKE_MAKE_PROGRAM": _tool("ninja"),
        "TENSORRT_INCLUDE": headers,
        "MADTP_SM": ";".join(map(str, wanted["sm"])),
        "MADTP_SOURCE_SHA256": wanted["source"],
        "MADTP_VERSION": metadata.version(PRODUCT),
    }
    configure = ["-S", SOURCES, "-B", folder, "-G", "Ninja", "--fresh"]
    for step in ([*configure, *(f"-D{name}={value}" for name, value in defines.items())], *steps):
        command = [_tool("cmake"), *step]
        run = subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True, check=False, errors="replace"
        )
        if run.returncode != 0:
            lines = (run.stdout + run.stderr).strip().splitlines()
            raise PluginError(
                f"the plugin library could not be built ({nvcc}, headers of {headers})",
                "\n".join(lines[-LOG_LINES:]),
                "See the compiler's output above; --plugins none exports without the library meanwhile.",
            )


def _tool(name: str) -> str:
    """`cmake` or `ninja`: of this environment, else of PATH."""
    own = Path(sys.executable).parent / name
    found = str(own) if own.is_file() else shutil.which(name)
    if found is None:
        raise PluginError(f"there is no {name}", "The plugin library is built with it.", f"pip install {name}")
    return found


def main() -> int:
    """`python -m export.engine.plugin_build`: build and install the library; returns the exit status."""
    try:
        library = build_library(partial(say, err=True))
    except MadtpError as error:
        say(f"error: {error_text(error)}", err=True)
        return 2
    architectures = ", ".join(f"{number // 10}.{number % 10}" for number in library.sm)
    say(f"{library.path}: version {library.version}, compute capability {architectures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
