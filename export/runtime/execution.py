"""How ONNX Runtime runs an artifact: on which provider, and whether kernels of the op library or function bodies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from export.engine.backends import find_gpus
from export.engine.op_library import (
    KERNEL_TYPES,
    OP_LIBRARY,
    OpLibrary,
    Provider,
    installed_library,
    loadable_op_library,
)
from export.errors import BackendError, PluginError
from export.graph.custom_nodes import custom_types

NONE = "none"  # asks for the function bodies
ASKED = "asked for"
CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Execution:
    """How ONNX Runtime runs ONNX files.

    Attributes:
        library: its kernels compute the custom ops; None: their function bodies do.
        reason: why those; empty with a library.
    """

    provider: Provider = "cpu"
    library: OpLibrary | None = None
    reason: str = ASKED

    def __str__(self) -> str:
        return execution_words(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """What results say of it."""
        library = None if self.library is None else self.library.to_json()
        return {"provider": self.provider, "kernels": library, "reason": self.reason}

    @cached_property
    def providers(self) -> list[Any]:
        """For a session of ONNX Runtime; TF32, which is on by itself, would cost parity."""
        return [CPU] if self.provider == "cpu" else [(CUDA, {"use_tf32": "0"}), CPU]

    def session_options(self, threads: int | None = None) -> Any:
        """Options of a session, with the library registered; None leaves the number of threads to ONNX Runtime.

        Raises:
            PluginError: ONNX Runtime refuses the library.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if self.library is not None:
            try:
                options.register_custom_ops_library(str(self.library.path))
            except Exception as error:  # they have no common type
                raise PluginError(
                    f"ONNX Runtime {onnxruntime.__version__} cannot register the op library '{self.library.path}'",
                    (str(error).strip().splitlines() or [type(error).__name__])[0],
                    "Use the onnxruntime that this package asks for, or --library none.",
                ) from error
        return options


BODIES = Execution()


def execution_words(content: Mapping[str, Any]) -> str:
    """What `Execution.to_json` says, in words."""
    kernels, device = content["kernels"], "a GPU" if content["provider"] == "cuda" else "the CPU"
    if kernels is None:
        return f"function bodies ({content['reason']}) on {device}"
    return f"kernels of {kernels['file']} {kernels['version']} on {device}"


def choose_execution(files: Iterable[Path], library: str | Path | None = None, provider: Provider = "cpu") -> Execution:
    """How to run the ONNX files of an artifact.

    Args:
        library: a file, or "none" for the function bodies; None takes the one that is installed if it can be used.

    Returns:
        With a reason where the bodies run though they were not asked for.

    Raises:
        PluginError: the library that was named may not be loaded.
        BackendError: ONNX Runtime has no such provider here.
    """
    check_provider(provider)
    if library is not None and str(library) == NONE:
        return Execution(provider)
    if library is not None:
        found = loadable_op_library(Path(library), provider)
    else:
        installed = installed_library()
        if installed is None:
            return Execution(provider, reason=f"no {OP_LIBRARY.file} here")
        try:
            found = loadable_op_library(installed, provider)
        except PluginError as error:
            return Execution(provider, reason=error.what)
    try:
        types = {name for path in files for name in custom_types(path)}
    except DecodeError:  # the runtime will refuse it too, and say so
        return Execution(provider, reason="the file cannot be read")
    if not types:
        return Execution(provider, reason="the file has no custom ops: their bodies are inlined")
    if unknown := sorted(types - KERNEL_TYPES[provider]):
        return Execution(provider, reason=f"{found} has no kernels for {' or '.join(unknown)} on this provider")
    return Execution(provider, found, "")


def check_provider(provider: Provider) -> None:
    """Refuse a provider that is not here.

    Raises:
        BackendError: saying what is lacking.
    """
    if provider == "cpu":
        return
    import onnxruntime

    instead = "or use --provider cpu."
    if CUDA not in onnxruntime.get_available_providers():
        raise BackendError(
            "this ONNX Runtime cannot run on GPUs",
            f"onnxruntime {onnxruntime.__version__}, which is installed, has no CUDA provider.",
            f"pip uninstall onnxruntime; pip install onnxruntime-gpu, {instead}",
        )
    if not find_gpus():
        raise BackendError("there is no GPU here", "--provider cuda runs on one.", f"Use a machine with one, {instead}")
