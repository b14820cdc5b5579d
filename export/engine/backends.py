"""Backends: the runtime that builds and runs an artifact on this machine."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import pynvml

from export.errors import BackendError

# GPUs that a plan of TensorRT for RTX runs on. It knows 7.5 too, but only plans that were built for nothing else:
# https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html
RTX_CAPABILITIES = {(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)}
LEAST_CAPABILITY = {"bf16": (8, 0), "fp8": (8, 9)}  # of precisions that not every GPU has

BackendName = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]


@dataclass(frozen=True)
class Gpu:
    """A CUDA device; `capability` is its compute capability."""

    name: str
    capability: tuple[int, int]
    driver: str


@dataclass(frozen=True)
class Backend:
    """A runtime, why it was chosen, and whether this machine can run what it builds."""

    name: BackendName
    version: str
    reason: str
    can_run: bool

    @property
    def module(self) -> str:
        """Python module of a TensorRT backend."""
        return {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}[self.name]


def find_gpus() -> list[Gpu]:
    """The CUDA devices of this machine; empty without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        driver = pynvml.nvmlSystemGetDriverVersion()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetCudaComputeCapability(handle), driver)
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def choose_backend(requested: str, suffix: str) -> Backend:
    """The backend for an output with `suffix` (.onnx or .plan).

    Args:
        requested: one of `export.build.options.BACKENDS`. "auto" takes tensorrt where it is installed and there is a
            GPU, else tensorrt-rtx, which builds without one.

    Raises:
        BackendError: the requested one is not installed, or cannot build on this machine.
    """
    if suffix == ".onnx":
        return Backend("onnxruntime", metadata.version("onnxruntime"), "the output is an .onnx file", True)
    gpus = find_gpus()
    if requested == "auto":
        if _installed("tensorrt") and gpus:
            return _backend("tensorrt", gpus, "tensorrt is installed and there is a GPU")
        lacking = "there is no GPU, and tensorrt builds only on one" if not gpus else "tensorrt is not installed"
        return _backend("tensorrt-rtx", gpus, f"{lacking}; tensorrt-rtx builds anywhere")
    if requested == "tensorrt" and not gpus:
        raise BackendError(
            "--backend tensorrt cannot build on this machine",
            "TensorRT builds an engine on the GPU that will run it, and this machine has no CUDA device.",
            "Build on a machine with the target GPU, or use --backend tensorrt-rtx.",
        )
    return _backend("tensorrt" if requested == "tensorrt" else "tensorrt-rtx", gpus, "requested")


def check_precision(backend: Backend, precision: str, sm: Sequence[int] | None = None) -> None:
    """Refuse a plan in a precision that no GPU here, or of those that it is built for, has.

    Args:
        sm: compute capabilities of the plugin library that the plan will need, 90 for 9.0; None without one.

    Raises:
        BackendError: naming the GPU or the capabilities, and what they lack.
    """
    needed = LEAST_CAPABILITY.get(precision)
    if needed is None or backend.name == "onnxruntime":
        return
    least = ".".join(map(str, needed))
    gpus = find_gpus()[: 1 if backend.name == "tensorrt" else None]  # TensorRT builds for the first
    if gpus and all(gpu.capability < needed for gpu in gpus):
        found = " and ".join(f"{gpu.name} has compute capability {'.'.join(map(str, gpu.capability))}" for gpu in gpus)
        raise BackendError(
            f"--precision {precision} is not available on the GPU here",
            f"{found}; {precision} needs {least} or newer.",
            "Use --precision fp16.",
        )
    if sm and max(sm) < 10 * needed[0] + needed[1]:
        known = ", ".join(f"{number // 10}.{number % 10}" for number in sm)
        raise BackendError(
            f"--precision {precision} is not available on the GPUs that the plugin library is for",
            f"It is for compute capability {known}; {precision} needs {least} or newer.",
            "Use --precision fp16, or a library for newer GPUs (MADTP_SM).",
        )


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _backend(name: Literal["tensorrt", "tensorrt-rtx"], gpus: list[Gpu], reason: str) -> Backend:
    if not _installed(name.replace("-", "_")):
        raise BackendError(f"{name} is not installed", fix=f"pip install {name}")
    can_run = [gpu for gpu in gpus if name == "tensorrt" or gpu.capability in RTX_CAPABILITIES]
    return Backend(name, metadata.version(name), reason, bool(can_run))


def no_gpu(name: str) -> str:
    """Why no GPU here can run plans of the backend `name`, in words."""
    gpus = ", ".join(f"{gpu.name} ({'.'.join(map(str, gpu.capability))})" for gpu in find_gpus())
    return f"{name} has no support for the GPU here, {gpus}" if gpus else "this machine has no GPU"
