"""Plugin libraries of TensorRT and op libraries of ONNX Runtime."""

from pathlib import Path
from typing import Any

from export.engine.op_library import OpLibrary, read_op_library
from export.engine.plugin_library import PluginLibrary, read_library
from export.errors import PluginError
from export.inspect.compatibility import has_code
from export.inspect.inspection import Inspection


def inspect_library(found: Inspection, path: Path) -> None:
    try:
        library = _read(path)
    except PluginError as error:
        found.notes.append(f"a shared library, but not a plugin library of this project: {error.why}")
        return
    found.kind = "plugin library" if isinstance(library, PluginLibrary) else "op library"
    found.details = {
        "version": library.version,
        "source sha256": library.source_sha256,
        "compute capability": capabilities(library.sm) or "none: for CPUs alone",
    }
    gpus = found.machine.gpus
    if library.sm and gpus and not any(has_code(library.sm, gpu.capability) for gpu in gpus):
        found.notes.append("it has no code for the GPUs of this machine")


def _read(path: Path) -> PluginLibrary | OpLibrary:
    """Whichever of the two it is.

    Raises:
        PluginError: neither.
    """
    try:
        return read_op_library(path)
    except PluginError:
        return read_library(path)


def capabilities(sm: Any) -> str:
    """[75, 90] as "7.5, 9.0"."""
    numbers = [number for number in sm if isinstance(number, int)] if isinstance(sm, list | tuple) else []
    return ", ".join(f"{number // 10}.{number % 10}" for number in numbers)
