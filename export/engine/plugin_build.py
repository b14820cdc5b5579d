"""Building the library of TensorRT plugins: `python -m export.engine.plugin_build`.

The sources are compiled with CMake and installed; `madtp/files/native.py` says where, in a checkout and in an installed
package. An installed library is taken as it is where sources and GPU architectures are those that it was made from; the
stamp beside it says so.
"""

import errno
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from export.engine.built_library import PRODUCT
from export.engine.plugin_library import PluginLibrary, loadable_library, read_library
from export.errors import PluginError
from madtp.console.printing import error_text, say
from madtp.errors import MadtpError, OutputError
from madtp.files.inputs import sha256
from madtp.files.native import (
    CARRIED_INSTALL,
    CHECKOUT,
    DEFAULT_SM,
    GET_COMPILER,
    IS_PACKAGE,
    KERNELS_NAME,
    SOURCES,
    STAMP,
    cached_build,
    source_hash,
)
from madtp.files.staging import write_errors

BUILD, INSTALL = CHECKOUT / "build" / "plugins", CHECKOUT / "install"  # of a checkout
LIBRARY_NAME = "libmadtp_plugins.so"
ONNXRUNTIME_NAME = "libmadtp_onnxruntime.so"
KERNELS_TARGETS = ("madtp_kernels_shared", "madtp_onnxruntime")
SM_VARIABLE = "MADTP_SM"  # environment variable: other architectures, e.g. "89" or "80,90"
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
        f"{GET_COMPILER}, which installs the wheel that carries them, or set TENSORRT_ROOT.",
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
    wheel = importlib.util.find_spec("nvidia")  # a namespace of several wheels, in one place or in several
    places = [] if wheel is None else wheel.submodule_search_locations or []
    nvcc = next((path for place in places if (path := Path(place, "cu13", "bin", "nvcc")).is_file()), None)
    if given is None and nvcc is not None:
        return nvcc
    raise PluginError(
        f"there is no CUDA compiler '{given}'" if given else "there is no CUDA compiler (nvcc)",
        "The plugin library is compiled from CUDA sources; no GPU is needed for that.",
        f"{GET_COMPILER}, which installs it from PyPI, or use --plugins none (slower engines without plugins).",
    )


def check_tools() -> None:
    """Preflight of a build: nothing to do where a current library is there.

    Raises:
        PluginError: sources, compiler, headers or build tools are missing, or the cache cannot be written.
    """
    _check_sources()
    wanted = _wanted()
    if _current_library(wanted) is None:
        find_nvcc()
        find_headers()
        build_tool("cmake")
        build_tool("ninja")
        check_host_compiler()
        _check_cache(_folders(wanted)[0])


def _wanted() -> dict[str, Any]:
    """What a library has to be made from, as the stamp of an installation says it."""
    return {"source": source_hash(), "sm": list(architectures())}


def _folders(wanted: Mapping[str, Any]) -> tuple[Path, Path]:
    """Where the library is compiled, and where it is installed."""
    if not IS_PACKAGE:
        return BUILD, INSTALL
    cached = cached_build(wanted["source"], wanted["sm"])
    return cached / "build", cached / "install"


def _current_library(wanted: Mapping[str, Any]) -> PluginLibrary | None:
    """The library made from `wanted` that the package carries, or that was built here."""
    installed = (CARRIED_INSTALL, _folders(wanted)[1]) if IS_PACKAGE else (INSTALL,)
    return next((library for folder in installed if (library := _read_current(folder, wanted)) is not None), None)


def _check_cache(build: Path) -> None:
    """Refuse a cache that certainly cannot be written. Writes nothing."""
    there = next(folder for folder in build.parents if folder.exists())
    with _cache_errors(build):
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))


@contextmanager
def _cache_errors(build: Path) -> Iterator[None]:
    """Turn an operating system error inside the block into one that says how to name another folder."""
    try:
        with write_errors(build):
            yield
    except OutputError as error:
        if not IS_PACKAGE:
            raise
        fix = "Set XDG_CACHE_HOME to a folder that you can write to, or name a built library: --plugins PATH."
        raise PluginError(
            "the plugin library has no place to be compiled in", f"{error.what}: {error.why}", fix
        ) from error


def _check_sources() -> None:
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise PluginError(
            f"there are no plugin sources in '{SOURCES}'",
            "The checkout or the installed package is incomplete.",
            "Get it again, or name a library: --plugins PATH.",
        )


def check_host_compiler() -> None:
    """Refuse a machine without a C++ compiler.

    Raises:
        PluginError: there is none.
    """
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
    wanted = _wanted()
    if (library := _current_library(wanted)) is not None:
        return library
    build, install = _folders(wanted)
    with _cache_errors(build):
        build.mkdir(parents=True, exist_ok=True)
        install.mkdir(parents=True, exist_ok=True)
        lock = FileLock(build.parent / "plugins.lock")
        lock.acquire()
    try:
        if (library := _current_library(wanted)) is not None:  # another process was faster
            return library
        on_build("compiling the plugin library (about two minutes, once)")
        _compile(wanted)
        with _cache_errors(build):
            fresh = (install / STAMP).with_suffix(".new")
            fresh.write_text(json.dumps({**wanted, **_hashes(install)}) + "\n")
            os.replace(fresh, install / STAMP)
        if IS_PACKAGE:  # a checkout compiles again after an edit
            shutil.rmtree(build, ignore_errors=True)
        return read_library(install / "lib" / LIBRARY_NAME)
    finally:
        lock.release()


def _read_current(install: Path, wanted: Mapping[str, Any]) -> PluginLibrary | None:
    """The library of an installation, if that is complete and made from `wanted`; a build cut short leaves no stamp."""
    try:
        complete = json.loads((install / STAMP).read_text()) == {**wanted, **_hashes(install)}
        library = read_library(install / "lib" / LIBRARY_NAME)
    except (OSError, ValueError, PluginError):
        return None
    return library if complete and library.version == metadata.version(PRODUCT) else None


def _hashes(install: Path) -> dict[str, str]:
    """Of the library, and of the two that are installed beside it: the kernels alone, and the ops of ONNX Runtime."""
    lib = install / "lib"
    return {
        "sha256": sha256(lib / LIBRARY_NAME),
        "kernels_sha256": sha256(lib / KERNELS_NAME),
        "onnxruntime_sha256": sha256(lib / ONNXRUNTIME_NAME),
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
    build, install = _folders(wanted)
    _run_cmake(wanted, build, ["--build", build], ["--install", build, "--prefix", install])


def _run_cmake(wanted: Mapping[str, Any], folder: Path, *steps: list[Any]) -> None:
    """Configure in `folder`, then take the steps."""
    nvcc, headers = find_nvcc(), find_headers()
    check_host_compiler()
    environment = os.environ | _library_path(nvcc)
    defines = {
        "CMAKE_BUILD_TYPE": "Release",
        "CMAKE_CUDA_COMPILER": nvcc,
        "CMAKE_INSTALL_LIBDIR": "lib",
        "CMAKE_MAKE_PROGRAM": build_tool("ninja"),
        "TENSORRT_INCLUDE": headers,
        "MADTP_SM": ";".join(map(str, wanted["sm"])),
        "MADTP_SOURCE_SHA256": wanted["source"],
        "MADTP_VERSION": metadata.version(PRODUCT),
    }
    configure = ["-S", SOURCES, "-B", folder, "-G", "Ninja", "--fresh"]
    for step in ([*configure, *(f"-D{name}={value}" for name, value in defines.items())], *steps):
        command = [build_tool("cmake"), *step]
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


def _library_path(nvcc: Path) -> dict[str, str]:
    """Where the linker finds CUDA's runtime, in an environment variable: nvcc does not know the layout of its wheel."""
    lib = nvcc.resolve().parents[1] / "lib"
    if not (lib / "libcudart_static.a").is_file():
        return {}
    return {"LIBRARY_PATH": os.pathsep.join(filter(None, [str(lib), os.environ.get("LIBRARY_PATH")]))}


def build_tool(name: str) -> str:
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
