"""Describes the machine, and refuses it in a sentence if the kit cannot run on it."""

import ctypes
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.kit.files import read_json
from benchmarks.kit.stage import ROOT, StageRun, WrongMachineError

_MACHINES = ("torch", "numpy", "PIL", "tokenizers", "onnx", "onnxruntime", "pytest", "pynvml")
_BROUGHT = ("click", "hypothesis", "onnxscript", "safetensors")
_OURS = ("madtp", "tests.golden", "tests.helpers.kernel_calls", "tests.helpers.gpu_cases", "export.validate.selection")
PACKAGES = ("torch", "numpy", "triton", "onnxruntime", "pytest", "nvidia-ml-py", "nvidia-cudnn-cu13")
LEAST_DISK = 200_000_000  # bytes: FlashAttention-3 unpacked, and the results
# What a call of the CUDA build may answer where there is no driver: cudaErrorInsufficientDriver, cudaErrorNoDevice.
NO_DRIVER = (35, 100)


def run(stage: StageRun) -> bool:
    """Describe the machine, and refuse it if the kit cannot run."""
    kit = read_json(ROOT / "kit.json") or {}
    stage.save(
        host={
            "python": platform.python_version(),
            "system": platform.platform(),
            "processor": _processor(),
            "cpus": len(os.sched_getaffinity(0)),
            "free_disk_bytes": shutil.disk_usage(stage.file.parent).free,
        }
    )
    _check_disk(stage)
    _check_python(kit)
    _import_everything()
    stage.save(packages={name: _version(name) for name in PACKAGES})
    stage.save(
        libraries={path.name: _read_symbols(path) for path in sorted((ROOT / "lib").glob("libmadtp_kernels*.so"))}
    )
    if not stage.rehearse:
        stage.save(gpu=_gpu(kit))
    elif not _has_gpu():
        stage.save(call_without_a_driver=_call_cuda_build())
    return True


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _check_disk(stage: StageRun) -> None:
    free = stage.found["host"]["free_disk_bytes"]
    if free < LEAST_DISK:
        raise WrongMachineError(
            f"the disk of '{stage.file.parent}' has {free / 1e6:.0f} MB left. The kit needs {LEAST_DISK / 1e6:.0f}. "
            "Name a results folder on another disk, or free some."
        )


def _check_python(kit: dict[str, Any]) -> None:
    ours, wanted = f"{sys.version_info.major}.{sys.version_info.minor}", kit.get("python")
    if ours != wanted:
        raise WrongMachineError(
            f"{sys.executable} is Python {ours}, and the kit brings packages for {wanted}. "
            f"Name another Python with torch, PYTHON=/path/to/python{wanted} bash run.sh ..., "
            f"or pack one for this: ./build.sh gpu-kit --python {ours}"
        )


def _import_everything() -> None:
    for name in (*_MACHINES, *_BROUGHT, *_OURS):
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package raises anything
            raise WrongMachineError(
                f"{sys.executable} cannot import {name} ({type(error).__name__}: {error}). "
                "The machine has to have torch for CUDA 13, numpy, pillow, tokenizers, onnx, onnxruntime, pytest and "
                "nvidia-ml-py; the kit brings the rest. Name the Python that has them: "
                "PYTHON=/path/to/python3 bash run.sh ..."
            ) from error


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read_symbols(path: Path) -> str:
    """ "complete", or an error: the functions of kernels.h are looked up one by one."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise WrongMachineError(
            f"'{path}' cannot be loaded: {error}. It was built on another Linux. Pack the kit on one like this."
        ) from error
    from madtp.ops.library import FUNCTIONS

    missing = [name for name in FUNCTIONS if not hasattr(library, name)]
    if missing:
        raise WrongMachineError(f"'{path}' lacks {', '.join(missing)}. It is broken. Pack the kit again.")
    return "complete"


def _gpu(kit: dict[str, Any]) -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        raise WrongMachineError(
            f"torch {torch.__version__} of {sys.executable} is a build for CPUs. The kit needs one for CUDA. "
            "Name another Python: PYTHON=/path/to/python3 bash run.sh ..."
        )
    try:
        torch.cuda.init()
        torch.zeros(1, device="cuda").item()
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WrongMachineError(
            f"no GPU can be used: {reason}. torch {torch.__version__} needs a GPU and a driver for CUDA "
            f"{torch.version.cuda} (580 or newer for 13). Look at nvidia-smi; --rehearse runs without a GPU."
        ) from error
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    built = kit.get("sm", [])
    if not any(sm // 10 == major and sm % 10 <= minor for sm in built):
        has = ", ".join(f"{sm // 10}.{sm % 10}" for sm in built)
        raise WrongMachineError(
            f"{name} has compute capability {major}.{minor}, and the kit holds code for {has}. "
            f"Pack one for it: MADTP_SM={major}{minor} ./build.sh gpu-kit"
        )
    from benchmarks.gpu.measure import device_state

    properties = torch.cuda.get_device_properties(0)
    return {
        "name": name,
        "capability": f"{major}.{minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "state": device_state(),
    }


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _call_cuda_build() -> int:
    """Result of a valid call of the CUDA build; without a driver, its CUDA error."""
    import torch

    from benchmarks.gpu.calls import attention_call, attention_inputs
    from madtp.ops.library import KernelError, load_library

    library = load_library(ROOT / "lib" / "libmadtp_kernels.so")
    call = attention_call(library, *attention_inputs(1, 8, 8, torch.float16, device="cpu"), 0, 1)
    try:
        call.run()
    except KernelError as error:
        if error.code in NO_DRIVER:
            return int(error.code or 0)
        raise
    raise AssertionError("the CUDA build ran on host memory")
