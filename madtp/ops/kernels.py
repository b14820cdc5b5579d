"""The custom ops on the CUDA kernels: `register_kernels()` once, and models on a GPU run on them.

Nothing is synchronised but one number a TokenCompact, the count of tokens that stay: torch needs it on the host for the
size of what it returns. With a capacity PackedTokenCompact needs no such number.
"""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp.errors import InputError
from madtp.ops import packed, reference
from madtp.ops.library import (
    DTYPES,
    SUCCESS,
    VECTOR_BYTES,
    AttentionShape,
    CompactInputs,
    CompactOutputs,
    CompactShape,
    KernelError,
    PackedAttentionShape,
    PackedCompactInputs,
    PackedCompactOutputs,
    PackedCompactShape,
    VarlenShape,
    load_library,
)
from madtp.ops.spec import (
    ALIGNED_ATTENTION,
    EXACT,
    FLOAT32,
    INT32,
    INT64,
    PACKED_ATTENTION,
    PACKED_COMPACT,
    TOKEN_COMPACT,
    VARLEN_ATTENTION,
    OpSpec,
    TensorSpec,
)
from madtp.ops.tf32 import forbid_tf32

OPS = {  # method of KernelOps -> the op that it implements
    ALIGNED_ATTENTION.torch_name: reference.ALIGNED_ATTENTION_OP,
    TOKEN_COMPACT.torch_name: reference.TOKEN_COMPACT_OP,
    PACKED_ATTENTION.torch_name: packed.PACKED_ATTENTION_OP,
    PACKED_COMPACT.torch_name: packed.PACKED_COMPACT_OP,
    VARLEN_ATTENTION.torch_name: packed.VARLEN_ATTENTION_OP,
}


class KernelOps:
    """The ops through a loaded library of kernels, on torch's current stream.

    The signatures are those of `madtp.ops.reference` and `madtp.ops.packed`; the results differ by rounding alone.
    Other types than float32, float16 and bfloat16 (float64, the reference of the others) run the reference.

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
            InputError: the tensors do not fit together, or lie on different devices.
        """
        if qkv.dtype not in DTYPES:
            return reference.aligned_attention(qkv, key_mask, causal, heads)
        given = _given(ALIGNED_ATTENTION, (qkv, key_mask))
        batch, length, triple = qkv.shape
        shape = AttentionShape(batch, length, triple // 3, heads, causal, DTYPES[qkv.dtype])
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
        keep_margin: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Like the reference; temperature and min_keep may lie on the CPU, from where each copy waits for the device.

        The results keep room for all L tokens.

        Raises:
            KernelError: sizes that the kernels do not take, or a CUDA error.
            InputError: the tensors do not fit together, or lie on different devices.
        """
        tensors = (tokens, key_mask, source_ids, column_score, class_score, alignment, temperature, min_keep)
        if tokens.dtype not in DTYPES:
            return reference.token_compact(*tensors, layer, keep_margin)
        given = _given(TOKEN_COMPACT, tensors)
        batch, length, width = tokens.shape
        shape = CompactShape(batch, length, width, alignment.shape[2], layer, 0, DTYPES[tokens.dtype])
        device = tokens.device
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
                "token_compact_margin",
                ctypes.byref(shape),
                ctypes.byref(inputs),
                ctypes.byref(outputs),
                keep_margin,
                workspace.data_ptr(),
                _stream(device),
            )
        kept = int(count)  # waits for the stream
        compacted, mask, ids = (
            tensor[: batch * kept * columns].view(batch, kept, *sizes)
            for tensor, columns, sizes in zip(room, (width, 1, 1), ((width,), (), ()), strict=True)
        )
        return compacted, mask, ids, count

    def packed_aligned_attention(
        self, qkv: Tensor, key_mask: Tensor, cu_seqlens: Tensor, causal: int, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Like the reference, but for rows behind the last sequence, which are not written.

        Raises:
            KernelError: sizes that the kernels do not take, or a CUDA error.
            InputError: the tensors do not fit together, or lie on different devices.
        """
        if qkv.dtype not in DTYPES or not len(qkv):
            return packed.packed_aligned_attention(qkv, key_mask, cu_seqlens, causal, heads)
        given = _given(PACKED_ATTENTION, (qkv, key_mask, cu_seqlens))
        rows, triple = qkv.shape
        shape = PackedAttentionShape(rows, len(cu_seqlens) - 1, triple // 3, heads, causal, DTYPES[qkv.dtype])
        context = qkv.new_empty(rows, triple // 3)
        column, class_score = (qkv.new_empty(rows, dtype=torch.float32) for _ in range(2))
        with _on(qkv.device):
            workspace = self._workspace("packed_aligned_attention", shape, qkv.device)
            pointers = [tensor.data_ptr() for tensor in (*given, context, column, class_score, workspace)]
            self._call("packed_aligned_attention", ctypes.byref(shape), *pointers, _stream(qkv.device))
        return context, column, class_score

    def packed_token_compact(
        self,
        tokens: Tensor,
        key_mask: Tensor,
        source_ids: Tensor,
        column_score: Tensor,
        class_score: Tensor,
        alignment: Tensor,
        cu_seqlens: Tensor,
        temperature: Tensor,
        min_keep: Tensor,
        capacity: int,
        group: int,
        layer: int,
        keep_margin: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Like the reference, but for rows behind the last sequence, which are not written.

        With a capacity and a temperature on the device, nothing waits for the device.

        Raises:
            KernelError: sizes that the kernels do not take, or a CUDA error.
            InputError: the tensors do not fit together, or lie on different devices.
        """
        tensors: tuple[Any, ...] = (tokens, key_mask, source_ids, column_score, class_score, alignment)
        tensors += (cu_seqlens, temperature, min_keep)
        if tokens.dtype not in DTYPES or not len(tokens):
            arguments: Any = (*tensors, capacity, group, layer, keep_margin)
            return packed.packed_token_compact(*arguments)
        given = _given(PACKED_COMPACT, tensors)
        (rows, width), sequences, device = tokens.shape, len(cu_seqlens) - 1, tokens.device
        if sequences != group * len(min_keep):
            raise InputError(
                f"packed_token_compact got {sequences} sequences, {len(min_keep)} requests and a group of {group}",
                "A request has as many sequences as a group.",
                "Give a number in min_keep for each request.",
            )
        room = capacity if capacity > 0 else rows
        shape = PackedCompactShape(rows, sequences, group, width, alignment.shape[1], layer, room, DTYPES[tokens.dtype])
        outputs = (
            tokens.new_empty(room, width),
            tokens.new_empty(room, dtype=torch.float32),
            tokens.new_empty(room, dtype=torch.int32),
            tokens.new_empty(sequences + 1, dtype=torch.int32),
            tokens.new_empty((), dtype=torch.int64),
        )
        pointers = PackedCompactInputs(*(tensor.data_ptr() for tensor in given))
        results = PackedCompactOutputs(*(tensor.data_ptr() for tensor in outputs))
        with _on(device):
            workspace = self._workspace("packed_token_compact", shape, device)
            self._call(
                "packed_token_compact",
                *(ctypes.byref(part) for part in (shape, pointers, results)),
                keep_margin,
                workspace.data_ptr(),
                _stream(device),
            )
        if capacity != EXACT:
            return outputs
        kept = min(int(outputs[4]), rows)  # waits for the stream
        compacted, mask, ids = (tensor[:kept] for tensor in outputs[:3])
        return compacted, mask, ids, *outputs[3:]

    def varlen_attention(
        self, query: Tensor, key_value: Tensor, cu_seqlens: Tensor, cu_keys: Tensor, heads: int
    ) -> Tensor:
        """Like the reference, but for rows behind the last sequence, which are not written.

        Raises:
            KernelError: sizes that the kernels do not take, or a CUDA error.
            InputError: the tensors do not fit together, or lie on different devices.
        """
        if query.dtype not in DTYPES or not len(query):
            return packed.varlen_attention(query, key_value, cu_seqlens, cu_keys, heads)
        given = _given(VARLEN_ATTENTION, (query, key_value, cu_seqlens, cu_keys))
        (rows, width), key_rows = query.shape, key_value.shape[0]
        shape = VarlenShape(rows, key_rows, len(cu_seqlens) - 1, width, heads, DTYPES[query.dtype])
        context = torch.empty_like(given[0])
        with _on(query.device):
            pointers = [tensor.data_ptr() for tensor in (*given, context)]
            self._call("varlen_attention", ctypes.byref(shape), *pointers, _stream(query.device))
        return context

    def _workspace(self, op: str, shape: ctypes.Structure, device: torch.device) -> Tensor:
        size = getattr(self._library, f"madtp_{op}_workspace")(ctypes.byref(shape))
        return torch.empty(size, dtype=torch.uint8, device=device)

    def _call(self, op: str, *arguments: Any) -> None:
        code = getattr(self._library, f"madtp_{op}")(*arguments)
        if code != SUCCESS:
            raise KernelError.of_call(f"madtp_{op}", code)


def register_kernels(library: Path | str | None = None, *, device: str = "cuda") -> KernelOps:
    """Make the CUDA kernels the implementation of the custom ops for tensors on a GPU; may be called again.

    Call it once, before the first model runs on a GPU. Tensors on a CPU go on with the reference. TF32 is turned off
    (`madtp.ops.tf32` says why), for all of this process.

    Args:
        library: libmadtp_kernels.so; None is the one that MADTP_KERNELS names or `./build.sh plugins` installed.
        device: "cuda"; tests give "cpu" to the kernels' build for the host.

    Raises:
        KernelError: the library is missing or cannot be loaded.
    """
    ops = KernelOps(load_library(None if library is None else Path(library)))
    forbid_tf32()
    kind = torch.device(device).type  # all devices of a kind at once
    for name, op in OPS.items():
        op.register_kernel(kind, getattr(ops, name))
    return ops


_DTYPES = {FLOAT32: torch.float32, INT32: torch.int32, INT64: torch.int64}


def _given(op: OpSpec, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """The inputs of an op as the kernels read them: dense, of the specified type, on the boundary that they need.

    Source ids enter an encoder expanded from one row, and a slice may begin anywhere. Numbers of no dimension may lie
    on the CPU.

    Raises:
        InputError: their sizes do not fit together, or they lie on different devices.
    """
    first, sizes = tensors[0], dict[str, int]()
    given = []
    for spec, tensor in zip(op.inputs, tensors, strict=True):
        _check_sizes(op, spec, tensor, sizes)
        if tensor.device != first.device and tensor.dim():
            raise InputError(
                f"{op.torch_name} got tensors on {first.device} and {tensor.device}",
                "Its kernels read them all on one device.",
                "Move the model and all of its inputs to the same device.",
            )
        dense = tensor.to(first.device, _DTYPES.get(spec.dtype, first.dtype)).contiguous()
        given.append(dense if dense.data_ptr() % VECTOR_BYTES == 0 or not dense.dim() else dense.clone())
    return given


def _check_sizes(op: OpSpec, spec: TensorSpec, tensor: Tensor, sizes: dict[str, int]) -> None:
    """Hold a tensor to its dimensions in the specification; those seen for the first time are noted in `sizes`."""
    fits = tensor.dim() == len(spec.dims)
    for symbol, size in zip(spec.dims, tensor.shape, strict=False):
        if symbol == "N":
            fits &= size == sizes.get("L", size + 1) - 1
        elif symbol == "2C":
            fits &= size == 2 * sizes.get("C", 0)
        else:
            fits &= size == sizes.setdefault(symbol, size)
    if not fits:
        known = ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
        raise InputError(
            f"{spec.name} of {op.torch_name} is {list(tensor.shape)}",
            f"It has to be [{', '.join(spec.dims)}]; of the tensors before it, {known}, N = L - 1.",
            "Expand it: kernels read memory, and broadcast nothing.",
        )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Kernels start on the current device: make it that of the tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _stream(device: torch.device) -> int | None:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


@contextmanager
def without_kernels(device: str = "cuda") -> Iterator[None]:
    """The reference again, while this lasts; for comparisons. The kernels have to be registered."""
    with ExitStack() as stack:
        for op in OPS.values():
            stack.enter_context(op.set_kernel_enabled(device, enabled=False))
        yield
