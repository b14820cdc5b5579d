"""Compiles the kernels to cubins for one architecture at a time, and reads the output of ptxas and nvdisasm.

Results are cached in build/static under a hash of the sources, flags and tools, so nothing is compiled twice.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu import sass
from benchmarks.gpu.architectures import LIMITS
from export.errors import PluginError
from madtp.files.scratch import scratch_folder

ROOT = Path(__file__).resolve().parent.parent.parent
PLUGINS = ROOT / "plugins"
CACHE = ROOT / "build" / "static"
FILES = (
    "aligned_attention/launch.cu",
    "aligned_attention/plain.cu",
    "aligned_attention/tensor_core.cu",
    "packed_aligned_attention/packed_attention.cu",
    "packed_aligned_attention/packed_plain.cu",
    "packed_aligned_attention/packed_tensor_core.cu",
    "packed_token_compact/packed_compact.cu",
    "token_compact/kernels.cu",
    "varlen_attention/varlen.cu",
)
TENSOR_CORE = "aligned_attention/tensor_core.cu"
COMPACT = "token_compact/kernels.cu"
SMS = tuple(LIMITS)
FLAGS = ("-std=c++17", "-O3", "-Xptxas", "-v")
NVDISASM = "nvidia-cuda-nvdisasm==13.5.37"  # the pip package that has nvdisasm
FORMAT = 4  # of cached results; counts up when their content changes
_INCLUDE = re.compile(r'^\s*#include "([^"]+)"', re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '(\S+)' for")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
_NAME = re.compile(r"(?<=\d)([a-z][a-z_]*_kernel)(?:I(13__nv_bfloat16|6__half|f)((?:Li\d+E)*)E)?")
_TYPES = {"13__nv_bfloat16": "bf16", "6__half": "fp16", "f": "fp32", None: ""}


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled for one architecture. Sizes in bytes; `code` is None without nvdisasm."""

    name: str  # e.g. context_kernel
    dtype: str  # fp16, bf16, fp32, or empty where it has none
    parameters: tuple[int, ...]  # of its template, e.g. D and M
    registers: int
    static_shared: int
    stack: int
    spill_stores: int
    spill_loads: int
    code: sass.Code | None

    @property
    def label(self) -> str:
        """E.g. context_kernel<fp16, 64, 2>."""
        parts = [self.dtype, *map(str, self.parameters)] if self.dtype else []
        return f"{self.name}<{', '.join(parts)}>" if parts else self.name


def sources_of(files: Iterable[str]) -> list[Path]:
    """The files and every header of this project that they include, sorted."""
    found: set[Path] = set()
    waiting = [PLUGINS / name for name in files]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(path.read_text()):
            waiting += [folder / name for folder in (PLUGINS, PLUGINS / "include") if (folder / name).is_file()]
    return sorted(found)


def source_hash(files: Iterable[str] = FILES) -> str:
    """SHA-256 of the sources of these kernels, their names and the compiler's flags."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sources_of(files):
        digest.update(f"\n{path.relative_to(PLUGINS)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def toolkit_version(nvcc: Path) -> str:
    """E.g. 13.0.88."""
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", output)
    return found[1] if found else "unknown"


def find_nvdisasm(*, install: bool) -> Path | None:
    """nvdisasm of PATH or of an earlier installation; `install` gets it from PyPI into build/static."""
    if on_path := shutil.which("nvdisasm"):
        return Path(on_path)
    folder = CACHE / "tools"
    tool = folder / "nvidia" / "cu13" / "bin" / "nvdisasm"
    if not tool.is_file() and install:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*pip, "--target", folder, NVDISASM], capture_output=True, text=True)
        if done.returncode != 0:
            return None
    if not tool.is_file():
        return None
    tool.chmod(0o755)
    return tool


def _kernel_name(mangled: str) -> tuple[str, str, tuple[int, ...]]:
    found = _NAME.search(mangled)
    if found is None:
        raise ValueError(f"no kernel's name in {mangled}")
    return found[1], _TYPES[found[2]], tuple(int(number) for number in re.findall(r"Li(\d+)E", found[3] or ""))


def read_ptxas(log: str, codes: dict[str, list[sass.Instruction]] | None) -> list[Kernel]:
    """The kernels that ptxas -v reports in its log."""
    kernels = []
    for block in re.split(r"(?=ptxas info\s+: Compiling entry function)", log):
        entry, stack, used = _ENTRY.search(block), _STACK.search(block), _USED.search(block)
        if entry is None or stack is None or used is None:
            continue
        shared = _SHARED.search(block)
        name, dtype, parameters = _kernel_name(entry[1])
        kernels.append(
            Kernel(
                name=name,
                dtype=dtype,
                parameters=parameters,
                registers=int(used[1]),
                static_shared=int(shared[1]) if shared else 0,
                stack=int(stack[1]),
                spill_stores=int(stack[2]),
                spill_loads=int(stack[3]),
                code=sass.summarize(codes[entry[1]]) if codes is not None else None,
            )
        )
    return sorted(kernels, key=lambda kernel: (kernel.name, kernel.dtype, kernel.parameters))


def kernel_from_json(entry: dict[str, Any]) -> Kernel:
    """Rebuild a kernel from its `asdict`."""
    code = sass.Code(**entry["code"]) if entry["code"] is not None else None
    return Kernel(**{**entry, "parameters": tuple(entry["parameters"]), "code": code})


def compile_kernels(file: str, sm: int, *, install: bool = True) -> list[Kernel]:
    """Compile the kernels of one source file for one architecture.

    Args:
        file: one of FILES.
        sm: compute capability without its dot.
        install: whether to get nvdisasm from PyPI if it is missing.

    Raises:
        PluginError: there is no nvcc, or it refuses the file.
    """
    from export.engine.plugin_build import find_nvcc  # here, for those who read results without what it needs

    nvcc, disassembler = find_nvcc(), find_nvdisasm(install=install)
    key = f"{FORMAT} {source_hash([file])} {toolkit_version(nvcc)} {disassembler is not None}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    cached = CACHE / f"{Path(file).parent.name}-{Path(file).stem}-sm{sm}-{digest}.json"
    if cached.is_file():
        return [kernel_from_json(entry) for entry in json.loads(cached.read_text())]
    CACHE.mkdir(parents=True, exist_ok=True)
    with scratch_folder(CACHE) as scratch:
        cubin = scratch / "kernels.cubin"
        includes = ["-I", PLUGINS, "-I", PLUGINS / "include"]
        target = f"-gencode=arch=compute_{sm},code=sm_{sm}"
        command = [nvcc, *FLAGS, target, *includes, "-cubin", "-o", cubin, PLUGINS / file]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise PluginError(f"nvcc refuses plugins/{file} for sm_{sm}", done.stderr[-2000:])
        codes = None
        if disassembler is not None:
            listing = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
            codes = sass.parse(listing)
        kernels = read_ptxas(done.stderr + done.stdout, codes)
        partial = scratch / "result.json"
        partial.write_text(json.dumps([asdict(kernel) for kernel in kernels]))
        os.replace(partial, cached)
    return kernels
