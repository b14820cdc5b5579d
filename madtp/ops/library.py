"""The kernels' C ABI (`plugins/include/madtp/kernels.h`) through ctypes: structures, loading, what calls return."""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch

from madtp.errors import MadtpError
from madtp.files.inputs import read_bytes
from madtp.files.native import BUILD_COMMAND, KERNELS_NAME, installed_library
from madtp.ops.spec import PACKED_COMPACT, TOKEN_COMPACT, TensorSpec

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 801
VECTOR_BYTES = 16  # boundary of what the kernels read 16 bytes at a time
VARIABLE = "MADTP_KERNELS"  # environment variable: the library, where it is not installed beside the package
MOST_BYTES = 2**30  # of a library; one for six GPU generations has 26 MB
_POINTER, _FLOAT = ctypes.c_void_p, ctypes.c_float
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {  # what it returns, and its arguments
    "madtp_aligned_attention": (ctypes.c_int, [_POINTER] * 8),
    "madtp_aligned_attention_workspace": (ctypes.c_size_t, [_POINTER]),
    "madtp_packed_aligned_attention": (ctypes.c_int, [_POINTER] * 9),
    "madtp_packed_aligned_attention_workspace": (ctypes.c_size_t, [_POINTER]),
    "madtp_packed_token_compact": (ctypes.c_int, [*[_POINTER] * 3, _FLOAT, *[_POINTER] * 2]),
    "madtp_packed_token_compact_workspace": (ctypes.c_size_t, [_POINTER]),
    "madtp_token_compact": (ctypes.c_int, [_POINTER] * 5),
    "madtp_token_compact_margin": (ctypes.c_int, [*[_POINTER] * 3, _FLOAT, *[_POINTER] * 2]),
    "madtp_token_compact_workspace": (ctypes.c_size_t, [_POINTER]),
    "madtp_varlen_attention": (ctypes.c_int, [_POINTER] * 7),
}

_SIZES = "Keep to the sizes in madtp/kernels.h: heads of at most 256 columns, widths that are multiples of 8."
_REASONS = {  # cudaError_t -> why, what to do
    1: ("A size, a type or a pointer is not one that the kernels take.", _SIZES),
    2: ("The GPU is out of memory.", "Use smaller batches, or free memory."),
    35: ("The driver is older than the CUDA that the kernels were built with.", "Install a newer NVIDIA driver."),
    100: ("There is no CUDA device.", "Run this on a machine with an NVIDIA GPU; nvidia-smi has to list it."),
    209: (
        "The library holds no code for this GPU.",
        f"Build it for this compute capability, e.g. MADTP_SM=90 {BUILD_COMMAND}.",
    ),
    801: ("This GPU cannot do that.", "bfloat16 needs compute capability 8.0: use float16 before it."),
}


class KernelError(MadtpError):
    """The kernels cannot be loaded, or refuse a call.

    Attributes:
        code: the cudaError_t that a call returned; None where the library could not be loaded.
    """

    def __init__(self, what: str, why: str = "", fix: str = "", code: int | None = None) -> None:
        super().__init__(what, why, fix)
        self.code = code

    @classmethod
    def of_call(cls, name: str, code: int) -> "KernelError":
        """The error for what `name` returned."""
        other = (
            "An earlier CUDA call may have failed.",
            "Look it up as cudaError_t, and run with CUDA_LAUNCH_BLOCKING=1.",
        )
        return cls(f"{name} returned CUDA error {code}", *_REASONS.get(code, other), code=code)


class AttentionShape(ctypes.Structure):
    """MadtpAttentionShape."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("batch", "length", "width", "heads", "causal", "dtype"))


class CompactShape(ctypes.Structure):
    """MadtpCompactShape."""

    _fields_ = tuple(
        (name, ctypes.c_int32) for name in ("batch", "length", "width", "alignments", "layer", "max_tokens", "dtype")
    )


class PackedAttentionShape(ctypes.Structure):
    """MadtpPackedAttentionShape."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("rows", "sequences", "width", "heads", "causal", "dtype"))


class PackedCompactShape(ctypes.Structure):
    """MadtpPackedCompactShape."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in ("rows", "sequences", "group", "width", "alignments", "layer", "capacity", "dtype")
    )


class VarlenShape(ctypes.Structure):
    """MadtpVarlenShape."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("rows", "key_rows", "sequences", "width", "heads", "dtype"))


def _pointers(specs: tuple[TensorSpec, ...]) -> tuple[tuple[str, Any], ...]:
    return tuple((spec.name, ctypes.c_void_p) for spec in specs)


class CompactInputs(ctypes.Structure):
    """MadtpCompactInputs."""

    _fields_ = _pointers(TOKEN_COMPACT.inputs)


class CompactOutputs(ctypes.Structure):
    """MadtpCompactOutputs."""

    _fields_ = _pointers(TOKEN_COMPACT.outputs)


class PackedCompactInputs(ctypes.Structure):
    """MadtpPackedCompactInputs."""

    _fields_ = _pointers(PACKED_COMPACT.inputs)


class PackedCompactOutputs(ctypes.Structure):
    """MadtpPackedCompactOutputs."""

    _fields_ = _pointers(PACKED_COMPACT.outputs)


def library_path() -> Path:
    """Where the library is looked for: MADTP_KERNELS, else what the package carries or a build installed."""
    given = os.environ.get(VARIABLE, "")
    return Path(given) if given else installed_library(KERNELS_NAME)


def load_library(path: Path | None = None) -> ctypes.CDLL:
    """The library of kernels, its functions declared; None is `library_path()`.

    To load a library is to run code of it: what does not name all of FUNCTIONS is refused before that.

    Raises:
        KernelError: it is missing, no library of kernels, or cannot be loaded.
    """
    path = library_path() if path is None else path
    fix = f"Build it with {BUILD_COMMAND}, or name another one in {VARIABLE}."
    if not path.is_file():
        raise KernelError(f"the library of kernels '{path}' is missing", "It has not been built here.", fix)
    _check_kernels(path, fix)
    try:
        library = ctypes.CDLL(str(path.resolve()))  # a bare name would be searched for elsewhere
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise KernelError(f"the library of kernels '{path}' cannot be loaded", str(error), fix) from error
    return library


def _check_kernels(path: Path, fix: str) -> None:
    """Refuse, without running anything of it, what is no library of kernels."""
    try:
        content = read_bytes(path, MOST_BYTES)
        if not content.startswith(b"\x7fELF"):
            raise ValueError("It is not a shared library.")
        for name in FUNCTIONS:
            if f"{name}\0".encode() not in content:
                raise ValueError(f"It is not a library of kernels: undefined symbol: {name}.")
    except (OSError, ValueError) as error:
        raise KernelError(f"the library of kernels '{path}' cannot be loaded", str(error), fix) from error
