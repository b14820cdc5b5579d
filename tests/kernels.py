"""The kernels' C ABI (`plugins/include/madtp/kernels.h`) on torch tensors: the host build on CPU tensors, the CUDA build
on CUDA tensors. Outputs are filled with poison before a call, so that what a kernel forgets to write is seen."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
POISON = float("nan")
INT_POISON = -12345
SUCCESS, INVALID_VALUE, NOT_SUPPORTED = 0, 1, 801


class AttentionShape(ctypes.Structure):
    """MadtpAttentionShape."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("batch", "length", "width", "heads", "causal", "dtype"))


class CompactShape(ctypes.Structure):
    """MadtpCompactShape."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in ("batch", "length", "width", "alignments", "layer", "max_tokens", "dtype")
    )


class CompactInputs(ctypes.Structure):
    """MadtpCompactInputs."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            "tokens",
            "key_mask",
            "source_ids",
            "column_score",
            "class_score",
            "alignment",
            "temperature",
            "min_keep",
        )
    )


class CompactOutputs(ctypes.Structure):
    """MadtpCompactOutputs."""

    _fields_ = tuple(
        (name, ctypes.c_void_p) for name in ("compacted", "compacted_mask", "compacted_ids", "count")
    )


class KernelError(Exception):
    """A call returned this CUDA error."""

    def __init__(self, code: int) -> None:
        super().__init__(f"CUDA error {code}")
        self.code = code


@dataclass(frozen=True)
class Compacted:
    """What token_compact wrote. `untouched` is the rest of the buffers, which has to hold its poison still."""

    tokens: Tensor
    mask: Tensor
    ids: Tensor
    count: int
    untouched: tuple[Tensor, Tensor, Tensor]


class Kernels:
    """A loaded library of kernels.

    Args:
        path: libmadtp_kernels.so, or the host build of it.
        device: where its pointers point: "cpu" for the host build, else "cuda".
    """

    def __init__(self, path: Path, device: str) -> None:
        self.library = ctypes.CDLL(str(path))
        self.device = device
        for name in ("madtp_aligned_attention_workspace", "madtp_token_compact_workspace"):
            getattr(self.library, name).restype = ctypes.c_size_t

    def _stream(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream if self.device == "cuda" else 0)

    def _workspace(self, size: int) -> Tensor:
        return torch.full((size,), 0xFF, dtype=torch.uint8, device=self.device)

    def aligned_attention(
        self, qkv: Tensor, key_mask: Tensor, causal: int, heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Like `madtp.ops.aligned_attention`.

        Raises:
            KernelError: the call returned an error.
        """
        batch, length, triple = qkv.shape
        shape = AttentionShape(batch, length, triple // 3, heads, causal, DTYPES[qkv.dtype])
        context = qkv.new_full((batch, length, triple // 3), POISON)
        column = torch.full((batch, length - 1), POISON, device=self.device)
        class_score = torch.full_like(column, POISON)
        workspace = self._workspace(self.library.madtp_aligned_attention_workspace(ctypes.byref(shape)))
        pointers = (qkv, key_mask, context, column, class_score, workspace)
        code = self.library.madtp_aligned_attention(
            ctypes.byref(shape), *(ctypes.c_void_p(tensor.data_ptr()) for tensor in pointers), self._stream()
        )
        if code != SUCCESS:
            raise KernelError(code)
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
        max_tokens: int = 0,
    ) -> Compacted:
        """Like `madtp.ops.token_compact`.

        Raises:
            KernelError: the call returned an error.
        """
        batch, length, width = tokens.shape
        room = min(length, max_tokens or length)
        shape = CompactShape(batch, length, width, alignment.shape[2], layer, max_tokens, DTYPES[tokens.dtype])
        compacted = tokens.new_full((batch * room, width), POISON)
        mask = key_mask.new_full((batch * room,), POISON)
        ids = source_ids.new_full((batch * room,), INT_POISON)
        count = min_keep.new_full((), INT_POISON)
        workspace = self._workspace(self.library.madtp_token_compact_workspace(ctypes.byref(shape)))
        given = (tokens, key_mask, source_ids, column_score, class_score, alignment, temperature, min_keep)
        code = self.library.madtp_token_compact(
            ctypes.byref(shape),
            ctypes.byref(CompactInputs(*(tensor.data_ptr() for tensor in given))),
            ctypes.byref(CompactOutputs(*(tensor.data_ptr() for tensor in (compacted, mask, ids, count)))),
            ctypes.c_void_p(workspace.data_ptr()),
            self._stream(),
        )
        if code != SUCCESS:
            raise KernelError(code)
        kept = int(count)
        if not 2 <= kept <= room:
            raise AssertionError(f"count is {kept}, the room {room}")
        rows = batch * kept
        return Compacted(
            compacted[:rows].reshape(batch, kept, width),
            mask[:rows].reshape(batch, kept),
            ids[:rows].reshape(batch, kept),
            kept,
            (compacted[rows:], mask[rows:], ids[rows:]),
        )
