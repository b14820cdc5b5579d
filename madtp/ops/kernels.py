"""The two ops on the CUDA kernels: `register_kernels()` once, and models on a GPU run on them.

Nothing is synchronised but one number a TokenCompact, the count of tokens that stay: torch needs it on the host for the
size of what it returns.
"""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp.errors import InputError
from madtp.ops import reference
from madtp.ops.library import (
    DTYPES,
    SUCCESS,
    VECTOR_BYTES,
    AttentionShape,
    CompactInputs,
    CompactOutputs,
    CompactShape,
    KernelError,
    load_library,
)
from madtp.tf32 import forbid_tf32


class KernelOps:
    """Both ops through a loaded library of kernels, on torch's current stream.

    The signatures are those of `madtp.ops.reference`; the results differ by rounding alone. Other types than float32,
    float16 and bfloat16 (float64, the yardstick of the others) run the reference.

    Args:
        library: of `load_library`; its kernels take pointers of the tensors' device.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def aligned_attention(
        self, qkv: Tensor, key_mask: Tensor, causal: int, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Like the reference.

        Raises:
            KernelError: sizes that the kernels do not take, or a CUDA error.
            InputError: the tensors lie on different devices.
        """
        if qkv.dtype not in DTYPES:
            return reference.aligned_attention(qkv, key_mask, causal, heads)
        batch, length, triple = qkv.shape
        shape = AttentionShape(batch, length, triple // 3, heads, causal, DTYPES[qkv.dtype])
        given = [_given(qkv, qkv.dtype, qkv.device), _given(key_mask, torch.float32, qkv.device)]
        context = qkv.new_empty(batch, length, triple // 3)
        column, class_score = (qkv.new_empty(batch, length - 1, dtype=torch.float32) for _ in range(2))
        with _on(qkv.device):
            workspace = self._workspace("aligned_attention", shape, qkv.device)
            pointers = [tensor.data_ptr() for tensor in (*given, context, column, class_score, workspace)]
            self._call("aligned_attention", ctypes.byref(shape), *pointers, _stream(qkv.device))
        return context, column, class_score

    def token_compact(
        self,
        tokens: Tensor,
        key_mask: Tensor,
        source_ids: Tensor,
        column_score: Tensor,
        class_score: Tensor,
        alignment: Tensor,
        temperature: Tensor,
        min_keep: Tensor,
        layer: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Like the reference; temperature and min_keep may lie on the CPU. The results keep room for all L tokens.

        Raises:
            KernelError: sizes that the kernels do not take, or a CUDA error.
            InputError: the tensors lie on different devices.
        """
        if tokens.dtype not in DTYPES:
            return reference.token_compact(
                tokens, key_mask, source_ids, column_score, class_score, alignment, temperature, min_keep, layer
            )
        batch, length, width = tokens.shape
        shape = CompactShape(batch, length, width, alignment.shape[2], layer, 0, DTYPES[tokens.dtype])
        device = tokens.device
        given = [
            _given(tokens, tokens.dtype, device),
            _given(key_mask, torch.float32, device),
            _given(source_ids, torch.int32, device),
            *(_given(score, torch.float32, device) for score in (column_score, class_score, alignment)),
            temperature.to(device, torch.float32),
            min_keep.to(device, torch.int64),
        ]
        room = [
            tokens.new_empty(batch * length * width),
            tokens.new_empty(batch * length, dtype=torch.float32),
            tokens.new_empty(batch * length, dtype=torch.int32),
        ]
        count = tokens.new_empty((), dtype=torch.int64)
        inputs = CompactInputs(*(tensor.data_ptr() for tensor in given))
        outputs = CompactOutputs(*(tensor.data_ptr() for tensor in (*room, count)))
        with _on(device):
            workspace = self._workspace("token_compact", shape, device)
            self._call(
                "token_compact",
                ctypes.byref(shape),
                ctypes.byref(inputs),
                ctypes.byref(outputs),
                workspace.data_ptr(),
                _stream(device),
            )
        kept = int(count)  # waits for the stream
        compacted, mask, ids = (
            tensor[: batch * kept * columns].view(batch, kept, *sizes)
            for tensor, columns, sizes in zip(room, (width, 1, 1), ((width,), (), ()), strict=True)
        )
        return compacted, mask, ids, count

    def _workspace(self, op: str, shape: ctypes.Structure, device: torch.device) -> Tensor:
        size = getattr(self._library, f"madtp_{op}_workspace")(ctypes.byref(shape))
        return torch.empty(size, dtype=torch.uint8, device=device)

    def _call(self, op: str, *arguments: Any) -> None:
        code = getattr(self._library, f"madtp_{op}")(*arguments)
        if code != SUCCESS:
            raise KernelError.of_call(f"madtp_{op}", code)


def register_kernels(library: Path | None = None, *, device: str = "cuda") -> KernelOps:
    """Make the CUDA kernels the implementation of both ops for tensors on a GPU; may be called again.

    Call it once, before the first model runs on a GPU. Tensors on a CPU go on with the reference. TF32 is turned off
    (`madtp.tf32` says why), for all of this process.

    Args:
        library: libmadtp_kernels.so; None is the one that MADTP_KERNELS names or `./build.sh plugins` installed.
        device: "cuda"; tests give "cpu" to the kernels' build for the host.

    Raises:
        KernelError: the library is missing or cannot be loaded.
    """
    ops = KernelOps(load_library(library))
    forbid_tf32()
    reference.ALIGNED_ATTENTION_OP.register_kernel(device, ops.aligned_attention)
    reference.TOKEN_COMPACT_OP.register_kernel(device, ops.token_compact)
    return ops


def _given(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Dense, of the type and on the boundary that the kernels read; the tensor itself where it is so already.

    Source ids enter an encoder expanded from one row, and a slice may begin anywhere.
    """
    if tensor.device != device:
        raise InputError(
            f"an op got tensors on {device} and {tensor.device}",
            "Its kernels read them all on one device.",
            "Move the model and all of its inputs to the same device.",
        )
    dense = tensor.to(dtype).contiguous()
    return dense if dense.data_ptr() % VECTOR_BYTES == 0 else dense.clone()


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels start on the current device: make it that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


@contextmanager
def without_kernels(device: str = "cuda") -> Iterator[None]:
    """The reference again, while this lasts; for comparisons. The kernels have to be registered."""
    with (
        reference.ALIGNED_ATTENTION_OP.set_kernel_enabled(device, enabled=False),
        reference.TOKEN_COMPACT_OP.set_kernel_enabled(device, enabled=False),
    ):
        yield
