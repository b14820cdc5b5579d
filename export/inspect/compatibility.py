"""Whether this machine can run an artifact, told from what is installed and from what the manifest or file says.

Nothing is loaded or run for it. What NVIDIA and ONNX Runtime document:

- TensorRT for RTX: an engine runs only with the release that built it, and on the compute capabilities that were named
  at the build; where none were, on 8.0, 8.6, 8.9 and 12.0 (docs.nvidia.com/deeplearning/tensorrt-rtx, "Engine
  Compatibility" and "CPU-Only AOT").
- TensorRT: unless it was built version- or hardware-compatible, an engine runs only with the version that built it, and
  on GPUs of the architecture that it was built on (docs.nvidia.com/deeplearning/tensorrt, "Engine Compatibility").
- CUDA 13, of whatever minor version: a driver of 580 or later (docs.nvidia.com/cuda/cuda-toolkit-release-notes).
- ONNX Runtime: newer versions run what older ones ran; opsets from 7 to that of the ONNX release of its day
  (onnxruntime.ai/docs/reference/compatibility.html).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata

import pynvml

from export.engine.backends import LEAST_CAPABILITY, RTX_CAPABILITIES, Gpu, find_gpus
from export.inspect.onnx_file import OnnxFile

PACKAGES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
CUDA13_DRIVER = 580
OLDEST_OPSET = 7  # of ONNX Runtime
USUAL_OPSET = 20  # that ONNX Runtime 1.17 implements, the oldest version that artifacts run in
STANDARD = ("", "ai.onnx")  # both names of ONNX's own domain
EXTENSIONS = ("ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc")  # of ONNX Runtime


@dataclass(frozen=True)
class Machine:
    """The GPUs and runtimes of this machine.

    Attributes:
        packages: runtime -> installed version, None if it is not installed.
        cuda13: runtimes that are installed as their CUDA 13 variant.
    """

    gpus: tuple[Gpu, ...]
    packages: dict[str, str | None]
    cuda13: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Compatibility:
    """Whether an artifact runs on a machine.

    Attributes:
        runs: None if that cannot be told.
        because: reasons why it does not run; if `runs` is not False, what could not be told.
    """

    runs: bool | None
    because: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = "; ".join(self.because)
        if self.runs is None:
            return f"cannot be told: {reasons}"
        if self.runs:
            return f"yes, if {reasons}" if reasons else "yes"
        return f"no, because {reasons}"


def this_machine() -> Machine:
    """GPUs and installed runtimes; a driver that does not answer counts as no GPU."""
    try:
        gpus = tuple(find_gpus())
    except pynvml.NVMLError:
        gpus = ()
    packages = {name: _installed(name) for name in PACKAGES}
    return Machine(gpus, packages, frozenset(name for name in PACKAGES if _installed(f"{name}-cu13")))


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def plan_compatibility(
    backend: str,
    version: str,
    plugin_sm: Collection[int] | None,
    damage: Sequence[str],
    machine: Machine,
    *,
    precision: str = "",
) -> Compatibility:
    """Whether a plan runs on a machine.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".
        version: the backend's, when it built the plan.
        plugin_sm: compute capabilities of the plugin library that it needs, 90 for 9.0; None if it needs none.
        damage: what is wrong with its files.
        precision: of the engine; "" where it is not known.
    """
    reasons = list(damage)
    installed = machine.packages[backend]
    if installed is None:
        reasons.append(f"{backend} is not installed (the plan was built with {version})")
    elif installed != version:
        reasons.append(f"it was built with {backend} {version} and {installed} is installed; it needs the same version")
    obstacles = [_gpu_obstacles(gpu, backend, plugin_sm, machine, precision) for gpu in machine.gpus]
    if not machine.gpus:
        reasons.append("there is no GPU")
    elif all(obstacles):
        reasons.extend(dict.fromkeys(reason for lacking in obstacles for reason in lacking))
    if reasons:
        return Compatibility(False, tuple(reasons))
    if backend == "tensorrt":
        return Compatibility(
            True, ("it was built on a GPU of the same architecture, which the manifest does not record",)
        )
    return Compatibility(True)


def has_code(sm: Collection[int], capability: tuple[int, int]) -> bool:
    """Whether code for the capabilities `sm` (90 for 9.0) runs on a GPU: same generation, and none newer."""
    major, minor = capability
    return any(number // 10 == major and number % 10 <= minor for number in sm)


def _gpu_obstacles(
    gpu: Gpu, backend: str, plugin_sm: Collection[int] | None, machine: Machine, precision: str
) -> list[str]:
    major, minor = gpu.capability
    lacking = []
    if backend == "tensorrt-rtx" and gpu.capability not in RTX_CAPABILITIES:
        known = ", ".join(f"{a}.{b}" for a, b in sorted(RTX_CAPABILITIES))
        lacking.append(f"plans of TensorRT for RTX need compute capability {known} and {gpu.name} has {major}.{minor}")
    if plugin_sm is not None and not has_code(plugin_sm, gpu.capability):
        lacking.append(f"the plugin library has no code for compute capability {major}.{minor} of {gpu.name}")
    least = LEAST_CAPABILITY.get(precision)
    if least is not None and gpu.capability < least:
        needed = ".".join(map(str, least))
        lacking.append(f"{precision} needs compute capability {needed} or newer and {gpu.name} has {major}.{minor}")
    branch = gpu.driver.split(".")[0]
    if backend in machine.cuda13 and branch.isdecimal() and int(branch) < CUDA13_DRIVER:
        lacking.append(f"the driver is {gpu.driver} and CUDA 13, which {backend} uses, needs {CUDA13_DRIVER} or later")
    return lacking


def onnx_compatibility(
    files: Sequence[OnnxFile], built: str | None, damage: Sequence[str], machine: Machine, oldest: str | None = None
) -> Compatibility:
    """Whether ONNX files run in the installed ONNX Runtime. It is not imported: ONNX's own list of operators is asked.

    Args:
        built: version of ONNX Runtime that they were checked with; None if it is not known.
        damage: what is wrong with them.
        oldest: the oldest version of ONNX Runtime that runs them; None if it is not known.
    """
    installed = machine.packages["onnxruntime"]
    if installed is None:
        return Compatibility(False, (*damage, "onnxruntime is not installed"))
    reasons, conditions = list(damage), list[str]()
    if oldest is not None and _numbers(installed) < _numbers(oldest):
        reasons.append(f"onnxruntime {installed} is installed, and it needs {oldest} or newer")
    for file in files:
        obstacles, doubts = _operator_obstacles(file, installed)
        reasons += obstacles
        conditions += doubts
    if reasons:
        return Compatibility(False, tuple(dict.fromkeys(reasons)))
    if built is not None and _numbers(installed) >= _numbers(built):
        return Compatibility(True)
    if oldest is None and built is not None:
        return Compatibility(None, (f"it was checked with onnxruntime {built}, and {installed} is older",))
    return Compatibility(True, tuple(dict.fromkeys(conditions)))


def _operator_obstacles(file: OnnxFile, installed: str) -> tuple[list[str], list[str]]:
    """Why no ONNX Runtime runs a file, and what only the installed version itself could tell."""
    from onnx import defs

    obstacles, doubts = [], []
    newest = defs.onnx_opset_version()
    opset = next((version for domain, version in file.opsets.items() if domain in STANDARD), OLDEST_OPSET)
    if not OLDEST_OPSET <= opset <= newest:
        obstacles.append(f"it is of opset {opset}, and known opsets are {OLDEST_OPSET} to {newest}")
    elif opset > USUAL_OPSET:
        doubts.append(f"onnxruntime {installed} implements opset {opset}")
    for name in file.operators:
        domain, _, operator = name.rpartition("::")
        if name in file.functions or (domain in STANDARD and defs.has(operator)):
            continue
        if domain in STANDARD or domain in EXTENSIONS:  # the optimizer of ONNX Runtime adds some to ONNX's own
            doubts.append(f"onnxruntime {installed} has the operator {name}")
        else:
            obstacles.append(f"onnxruntime has no operator {name}, and the file holds no function for it")
    return obstacles, doubts


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())
