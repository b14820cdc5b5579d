"""The op library, `libmadtp_onnxruntime.so`: whether there is one here, and whether it may be loaded.

Registered with a session of ONNX Runtime, its kernels take the place of the custom ops' function bodies. It is built by
`./build.sh plugins`; its line of text (`export.engine.built_library`) is in `plugins/onnxruntime/`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from export.engine.built_library import LibraryKind, check_version, read_built
from export.errors import PluginError
from madtp.files import native
from madtp.files.native import BUILD_COMMAND, SOURCES, source_hash

Provider = Literal["cpu", "cuda"]
PROVIDERS: Final = ("cpu", "cuda")
OP_LIBRARY = LibraryKind("op library", "libmadtp_onnxruntime.so", "madtp-onnxruntime", "use --library none")
KERNEL_TYPES: Mapping[Provider, frozenset[str]] = {  # types of tokens that there are kernels for
    "cpu": frozenset({"float32"}),
    "cuda": frozenset({"float32", "float16", "bfloat16"}),
}


@dataclass(frozen=True)
class OpLibrary:
    """A library that ONNX Runtime can register.

    Attributes:
        version: the project's, when it was built.
        source_sha256: hash of the sources that it was built from.
        sm: compute capabilities that it has code for, e.g. 90 for 9.0; empty where it has kernels for CPUs alone.
    """

    path: Path
    version: str
    sha256: str
    source_sha256: str
    sm: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path.name} {self.version}"

    def to_json(self) -> dict[str, Any]:
        """What results say of it."""
        return {
            "file": self.path.name,
            "version": self.version,
            "sha256": self.sha256,
            "source_sha256": self.source_sha256,
        }


def installed_library() -> Path | None:
    """The library that was installed with this package, or built for it; None where there is none."""
    place = native.installed_library(OP_LIBRARY.file)
    return place if place.is_file() else None


def read_op_library(path: Path) -> OpLibrary:
    """Read the line that a build wrote into the library at `path`; nothing is loaded.

    Raises:
        PluginError: missing, not a regular file, or not an op library of this project.
    """
    built = read_built(path, OP_LIBRARY)
    return OpLibrary(built.path, built.line.version, built.sha256, built.line.source, built.line.sm)


def loadable_op_library(path: Path, provider: Provider = "cpu") -> OpLibrary:
    """The library at `path`, if it may be loaded for a provider.

    Loading runs its code. This catches accidents and files of other software; who built a library is unknown.

    Raises:
        PluginError: it is not of this project, version and build, or has no kernels for the provider.
    """
    library = read_op_library(path)
    check_version(f"the op library '{path}'", library.version)
    if (SOURCES / "CMakeLists.txt").is_file() and library.source_sha256 != (own := source_hash()):
        raise PluginError(
            f"the op library '{path}' is of another build",
            f"It was built from sources {library.source_sha256:.12}, and those here are {own:.12}.",
            f"Build it again with {BUILD_COMMAND}, or use --library none.",
        )
    if provider == "cuda" and not library.sm:
        raise PluginError(
            f"the op library '{path}' has kernels for CPUs alone",
            "It was built without CUDA.",
            f"Build it with {BUILD_COMMAND} where nvcc is installed, or use --provider cpu.",
        )
    return library
