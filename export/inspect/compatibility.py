"""Whether this machine can run an artifact, told from what is installed and from what the manifest or file says.

Nothing is loaded or run for it. What NVIDIA and ONNX Runtime document:

- TensorRT for RTX: an engine runs with the release that built it alone, and on the compute capabilities that were named
  at the build; where none were, on 8.0, 8.6, 8.9 and 12.0 (docs.nvidia.com/deeplearning/tensorrt-rtx, "Engine
  Compatibility" and "CPU-Only AOT").
- TensorRT: unless it was built version- or hardware-compatible, an engine runs with the version that built it alone,
  and on GPUs of the architecture that it was built on (docs.nvidia.com/deeplearning/tensorrt, "Engine Compatibility").
- CUDA 13, of whatever minor version: a driver of 580 or later (docs.nvidia.com/cuda/cuda-toolkit-release-notes).
- ONNX Runtime: newer versions run what older ones ran; opsets from 7 to the newest that it implements
  (onnxruntime.ai/docs/reference/compatibility.html).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib import metadata

import pynvml

from export.engine.backends import RTX_CAPABILITIES, Gpu, find_gpus
from export.inspect.onnx_file import OnnxFile

PACKAGES = ("onnxruntime", "tensorrt", "tensorrt-rtx")
CUDA13_DRIVER = 580
OLDEST_OPSET = 7  # of ONNX Runtime
STANDARD = ("", "ai.onnx")  # both names of ONNX's own domain


@dataclass(frozen=True)
class Machine:
    """What an artifact meets here.

    Attributes:
        gpus: CUDA devices.
        packages: name -> version of each runtime, None where it is not installed.
        cuda13: the runtimes among them that are installed as their CUDA 13 variant.
    """

    gpus: tuple[Gpu, ...]
    packages: dict[str, str | None]
    cuda13: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """Whether an artifact runs here.

    Attributes:
        runs: None where it cannot be told.
        because: what speaks against it; where `runs` is not False, what could not be told.
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


def plan_verdict(
    backend: str, version: str, plugin_sm: Collection[int] | None, damage: Sequence[str], machine: Machine
) -> Verdict:
    """Whether a plan of `backend` runs here.

    Args:
        backend: "tensorrt" or "tensorrt-rtx".
        version: that built it.
        plugin_sm: compute capabilities of the plugin library that it needs, 90 for 9.0; None: it needs none.
        damage: what is wrong with its files.
        machine: this one.
    """
    against = list(damage)
    here = machine.packages[backend]
    if here is None:
        against.append(f"{backend} is not installed (it was built with {version})")
    elif here != version:
        against.append(f"it was built with {backend} {version} and {here} is installed; it needs the same version")
    obstacles = [_gpu_obstacles(gpu, backend, plugin_sm, machine) for gpu in machine.gpus]
    usable = [gpu for gpu, lacking in zip(machine.gpus, obstacles, strict=True) if not lacking]
    if not machine.gpus:
        against.append("there is no GPU")
    elif not usable:
        against.extend(dict.fromkeys(reason for lacking in obstacles for reason in lacking))
    if against:
        return Verdict(False, tuple(against))
    if backend == "tensorrt":
        return Verdict(True, ("it was built on a GPU of the same architecture, which the manifest does not record",))
    return Verdict(True)


def has_code(sm: Collection[int], capability: tuple[int, int]) -> bool:
    """Whether code for the capabilities `sm` (90 for 9.0) runs on a GPU: one of its generation, and none newer."""
    major, minor = capability
    return any(number // 10 == major and number % 10 <= minor for number in sm)


def _gpu_obstacles(gpu: Gpu, backend: str, plugin_sm: Collection[int] | None, machine: Machine) -> list[str]:
    major, minor = gpu.capability
    lacking = []
    if backend == "tensorrt-rtx" and gpu.capability not in RTX_CAPABILITIES:
        known = ", ".join(f"{a}.{b}" for a, b in sorted(RTX_CAPABILITIES))
        lacking.append(f"plans of TensorRT for RTX need compute capability {known} and {gpu.name} has {major}.{minor}")
    if plugin_sm is not None and not has_code(plugin_sm, gpu.capability):
        lacking.append(f"the plugin library has no code for compute capability {major}.{minor} of {gpu.name}")
    branch = gpu.driver.split(".")[0]
    if backend in machine.cuda13 and branch.isdecimal() and int(branch) < CUDA13_DRIVER:
        lacking.append(f"the driver is {gpu.driver} and CUDA 13, which {backend} uses, needs {CUDA13_DRIVER} or later")
    return lacking


def onnx_verdict(
    files: Sequence[OnnxFile], built: str | None, damage: Sequence[str], machine: Machine, oldest: str | None = None
) -> Verdict:
    """Whether ONNX files run in the installed ONNX Runtime.

    Args:
        files: all parts.
        built: version of ONNX Runtime that they were checked with; None: not known.
        damage: what is wrong with them.
        machine: this one.
        oldest: version of ONNX Runtime that runs them; None: not known.
    """
    against = list(damage)
    here = machine.packages["onnxruntime"]
    if here is None:
        return Verdict(False, (*against, "onnxruntime is not installed"))
    known = _operators()
    if oldest is not None and _numbers(here) < _numbers(oldest):
        against.append(f"onnxruntime {here} is installed, and it needs {oldest} or newer")
    for file in files if known else ():
        against.extend(_unknown_operators(file, known))
    against = list(dict.fromkeys(against))
    if against:
        return Verdict(False, tuple(against))
    if not known:
        return Verdict(None, (f"onnxruntime {here} does not say which operators it has",))
    if oldest is None and built is not None and _numbers(here) < _numbers(built):
        return Verdict(None, (f"it was checked with onnxruntime {built}, and {here} is older",))
    return Verdict(True)


def _operators() -> dict[str, dict[str, int]]:
    """The operators of the installed ONNX Runtime: domain -> name -> newest opset that changed it."""
    try:
        from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema
    except ImportError:  # it is no documented part of the package
        return {}
    known: dict[str, dict[str, int]] = {}
    for schema in get_all_operator_schema():
        domain = known.setdefault(schema.domain, {})
        domain[schema.name] = max(domain.get(schema.name, 0), schema.since_version)
    return known


def _unknown_operators(file: OnnxFile, known: dict[str, dict[str, int]]) -> list[str]:
    against = []
    newest = max(known[""].values())
    opset = next((version for domain, version in file.opsets.items() if domain in STANDARD), None)
    if opset is not None and not OLDEST_OPSET <= opset <= newest:
        against.append(f"it is of opset {opset}, and the installed onnxruntime takes {OLDEST_OPSET} to {newest}")
    for name in file.operators:
        domain, _, operator = name.rpartition("::")
        if name not in file.functions and operator not in known.get("" if domain in STANDARD else domain, {}):
            against.append(f"the installed onnxruntime has no operator {name}, and the file holds no function for it")
    return against


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())
