"""The kernels' C ABI (`plugins/include/madtp/kernels.h`) on torch tensors, of the host build or of the CUDA build.

Outputs and workspace lie between guards and are poisoned before a call: elements that a kernel forgets are NaN or -1,
and a write outside is an AssertionError.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from madtp.ops.library import (
    DTYPES,
    SUCCESS,
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
from tests.helpers.native_build import build, cuda_library

POISON, GUARD = 0xFF, 0xA5  # bytes
GUARD_BYTES = 256
FACTOR = 2  # a kernel's error is at most this times torch's in the same precision, and a floor of a few roundings


@dataclass(frozen=True)
class Compacted:
    """Outputs of token_compact."""

    tokens: Tensor
    mask: Tensor
    ids: Tensor
    count: int


class Room:
    """Poisoned memory between guards.

    Attributes:
        tensor: the memory, of the given sizes.
    """

    def __init__(self, sizes: Sequence[int], dtype: torch.dtype, device: str) -> None:
        size = torch.Size(sizes).numel() * dtype.itemsize
        self.bytes = torch.full((size + 2 * GUARD_BYTES,), GUARD, dtype=torch.uint8, device=device)
        self.inner = self.bytes[GUARD_BYTES : GUARD_BYTES + size]
        self.inner.fill_(POISON)
        self.tensor = self.inner.view(dtype).reshape(tuple(sizes))

    def dense(self, sizes: Sequence[int]) -> Tensor:
        """The first elements, in other sizes; behind them nothing may have been written."""
        used = torch.Size(sizes).numel()
        assert (self.inner[used * self.tensor.element_size() :] == POISON).all(), "written behind the last row"
        return self.tensor.reshape(-1)[:used].reshape(tuple(sizes))

    def check(self) -> None:
        """AssertionError if the guards were written to."""
        outside = torch.cat([self.bytes[:GUARD_BYTES], self.bytes[-GUARD_BYTES:]])
        assert (outside == GUARD).all(), "written out of bounds"


class Kernels:
    """A loaded library of kernels.

    Args:
        path: libmadtp_kernels.so, or the host build of it.
        device: device of its pointers: "cpu" for the host build, else "cuda".

    Attributes:
        given: the addresses of the inputs of the last call.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.library = load_library(path)
        self.device = device
        self.given: list[int] = []
        if device == "cpu":
            self.library.simt_barriers.restype = ctypes.c_char_p

    def seed(self, seed: int) -> None:
        """Choose another order of blocks and threads, if the build allows it."""
        if self.device == "cpu":
            self.library.simt_seed(seed)

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether AlignedAttention supports this type there: bfloat16 needs compute capability 8.0."""
        return dtype != torch.bfloat16 or self.device == "cpu" or torch.cuda.get_device_capability()[0] >= 8

    def require(self, dtype: torch.dtype) -> None:
        """Skip the test if AlignedAttention does not support this type."""
        if not self.supports(dtype):
            pytest.skip("bfloat16 attention needs compute capability 8.0")

    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0)

    def _room(self, sizes: Sequence[int], dtype: torch.dtype) -> Room:
        return Room(sizes, dtype, self.device)

    def _given(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """On the device and dense; what is so already stays where it is, on whatever boundary that begins."""
        given = [tensor.to(self.device).contiguous() for tensor in tensors]
        self.given = [tensor.data_ptr() for tensor in given]
        return given

    def aligned_attention(
        self, qkv: Tensor, key_mask: Tensor, causal: int, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Like `madtp.ops.reference.aligned_attention`.

        Raises:
            KernelError: the call returned an error.
        """
        batch, length, triple = qkv.shape
        shape = AttentionShape(batch, length, triple // 3, heads, causal, DTYPES[qkv.dtype])
        context = self._room((batch, length, triple // 3), qkv.dtype)
        column, class_score = (self._room((batch, length - 1), torch.float32) for _ in range(2))
        workspace = self._room((self.library.madtp_aligned_attention_workspace(ctypes.byref(shape)),), torch.uint8)
        given, rooms = self._given((qkv, key_mask)), (context, column, class_score, workspace)
        pointers = _pointers((*given, *(room.tensor for room in rooms)))
        self._call("madtp_aligned_attention", ctypes.byref(shape), *pointers, rooms=rooms)
        return context.tensor, column.tensor, class_score.tensor

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
        max_tokens: int = 0,
    ) -> Compacted:
        """Like `madtp.ops.reference.token_compact`.

        Raises:
            KernelError: the call returned an error.
        """
        batch, length, width = tokens.shape
        room = min(length, max_tokens or length)
        shape = CompactShape(batch, length, width, alignment.shape[2], layer, max_tokens, DTYPES[tokens.dtype])
        compacted = self._room((batch, room, width), tokens.dtype)
        mask, ids = (self._room((batch, room), dtype) for dtype in (torch.float32, torch.int32))
        count = self._room((), torch.int64)
        workspace = self._room((self.library.madtp_token_compact_workspace(ctypes.byref(shape)),), torch.uint8)
        given = self._given((tokens, key_mask, source_ids, column_score, class_score, alignment, temperature, min_keep))
        outputs = (compacted, mask, ids, count)
        self._call(
            "madtp_token_compact_margin",
            ctypes.byref(shape),
            ctypes.byref(CompactInputs(*_pointers(given))),
            ctypes.byref(CompactOutputs(*_pointers(output.tensor for output in outputs))),
            keep_margin,
            *_pointers([workspace.tensor]),
            rooms=(*outputs, workspace),
        )
        kept = int(count.tensor)
        assert 2 <= kept <= room, f"count is {kept}, the room {room}"
        return Compacted(
            compacted.dense((batch, kept, width)), mask.dense((batch, kept)), ids.dense((batch, kept)), kept
        )

    def packed_aligned_attention(
        self, qkv: Tensor, key_mask: Tensor, cu_seqlens: Tensor, causal: int, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Like `madtp.ops.packed.packed_aligned_attention`; rows behind the last sequence hold poison.

        Raises:
            KernelError: the call returned an error.
        """
        rows, triple = qkv.shape
        shape = PackedAttentionShape(rows, len(cu_seqlens) - 1, triple // 3, heads, causal, DTYPES[qkv.dtype])
        context = self._room((rows, triple // 3), qkv.dtype)
        column, class_score = (self._room((rows,), torch.float32) for _ in range(2))
        size = self.library.madtp_packed_aligned_attention_workspace(ctypes.byref(shape))
        given, rooms = self._given((qkv, key_mask, cu_seqlens)), (context, column, class_score)
        workspace = self._room((size,), torch.uint8)
        pointers = _pointers((*given, *(room.tensor for room in (*rooms, workspace))))
        self._call("madtp_packed_aligned_attention", ctypes.byref(shape), *pointers, rooms=(*rooms, workspace))
        return context.tensor, column.tensor, class_score.tensor

    def packed_token_compact(
        self, *inputs: Any, group: int = 1, layer: int = 3, keep_margin: float = 0.0, capacity: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """Like `madtp.ops.packed.packed_token_compact`, of its nine tensors; rows that nobody needs hold poison.

        Raises:
            KernelError: the call returned an error.
        """
        tokens, alignment, cu_seqlens = inputs[0], inputs[5], inputs[6]
        (rows, width), sequences = tokens.shape, len(cu_seqlens) - 1
        shape = PackedCompactShape(
            rows, sequences, group, width, alignment.shape[1], layer, capacity, DTYPES[tokens.dtype]
        )
        outputs = (
            self._room((capacity, width), tokens.dtype),
            self._room((capacity,), torch.float32),
            *(self._room((size,), torch.int32) for size in (capacity, sequences + 1)),
            self._room((), torch.int64),
        )
        size = self.library.madtp_packed_token_compact_workspace(ctypes.byref(shape))
        workspace = self._room((size,), torch.uint8)
        given = self._given(inputs)
        self._call(
            "madtp_packed_token_compact",
            ctypes.byref(shape),
            ctypes.byref(PackedCompactInputs(*_pointers(given))),
            ctypes.byref(PackedCompactOutputs(*_pointers(output.tensor for output in outputs))),
            keep_margin,
            *_pointers([workspace.tensor]),
            rooms=(*outputs, workspace),
        )
        compacted, mask, ids, cu, count = (output.tensor for output in outputs)
        return compacted, mask, ids, cu, int(count)

    def varlen_attention(
        self, query: Tensor, key_value: Tensor, cu_seqlens: Tensor, cu_keys: Tensor, heads: int
    ) -> Tensor:
        """Like `madtp.ops.packed.varlen_attention`; rows behind the last sequence hold poison.

        Raises:
            KernelError: the call returned an error.
        """
        (rows, width), sequences = query.shape, len(cu_seqlens) - 1
        shape = VarlenShape(rows, key_value.shape[0], sequences, width, heads, DTYPES[query.dtype])
        context = self._room((rows, width), query.dtype)
        given = self._given((query, key_value, cu_seqlens, cu_keys))
        pointers = _pointers((*given, context.tensor))
        self._call("madtp_varlen_attention", ctypes.byref(shape), *pointers, rooms=(context,))
        return context.tensor

    def _call(self, name: str, *arguments: Any, rooms: Sequence[Room]) -> None:
        code = getattr(self.library, name)(*arguments, self._stream())
        if code != SUCCESS:
            raise KernelError.of_call(name, code)
        for room in rooms:
            room.check()


def _pointers(tensors: Any) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def check_accuracy(got: Tensor, same: Tensor, exact: Tensor, dtype: torch.dtype, condition: float = 0.0) -> None:
    """Compare the error of `got` against `exact` (float64) with that of `same`, torch in the same precision.

    The floor is two roundings to `dtype`, and what rounding to float32 does to scores of size `condition`.
    """
    eps = 2 * torch.finfo(dtype).eps + 2 * torch.finfo(torch.float32).eps * condition
    got, same = got.cpu().double(), same.double()
    assert torch.equal(got.isnan(), same.isnan() | exact.isnan())
    if got.numel() == 0 or exact.isnan().all():
        return
    error, allowed = (torch.nan_to_num((x - exact).abs()).max().item() for x in (got, same))
    floor = eps * torch.nan_to_num(exact).abs().max().item()
    assert error <= FACTOR * allowed + floor, f"error {error:.3e}, torch's {allowed:.3e}, floor {floor:.3e}"


def _cuda_is_missing() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None if cuda_library("kernels") else "the kernels are not built for CUDA here (./build.sh plugins)"


def libraries() -> list[Any]:
    """Parameters of a fixture: "host", and "cuda" where a GPU and the CUDA build are."""
    missing = _cuda_is_missing()
    marks = [pytest.mark.gpu, pytest.mark.skipif(missing is not None, reason=str(missing))]
    return ["host", pytest.param("cuda", marks=marks)]


def load(kind: str) -> Kernels:
    """The library of this kind."""
    if kind == "host":
        return Kernels(build().kernels, "cpu")
    path = cuda_library("kernels")
    assert path is not None
    return Kernels(path, "cuda")
