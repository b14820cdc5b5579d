"""Calls through the kernels' C ABI with all buffers made beforehand.

Nothing is allocated, filled or awaited in a call, so that it can be timed and captured into a CUDA graph.
(`tests/helpers/kernels.py` is for correctness tests: it poisons its outputs.)
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from madtp.errors import MadtpError
from madtp.ops.library import (
    DTYPES,
    SUCCESS,
    AttentionShape,
    CompactInputs,
    CompactOutputs,
    CompactShape,
    KernelError,
)


class DeviceError(MadtpError):
    """There is no CUDA device to run on."""


def require_device() -> None:
    """Raises:
    DeviceError: torch sees no CUDA device.
    """
    if torch.cuda.is_available():
        return
    built = torch.version.cuda
    raise DeviceError(
        "there is no CUDA device to measure on",
        f"torch {torch.__version__} sees none"
        + ("." if built else ": it is a build for CPUs (its version ends in +cpu where that is so)."),
        "Run this on a machine with an NVIDIA GPU, its driver and torch for CUDA; nvidia-smi has to list the GPU.",
    )


@dataclass(frozen=True)
class Call:
    """One call of an op: `run` enqueues it on the current stream, always with the same buffers.

    Attributes:
        outputs: outputs of the op, in the order of `madtp.ops.reference`; tokens, mask and ids of TokenCompact have
            room for all L rows per sample, of which the first count * B are dense.
        held: every buffer of the call, inputs first.
    """

    run: Callable[[], None]
    outputs: tuple[Tensor, ...]
    held: tuple[Tensor, ...]


def _stream(tensor: Tensor) -> ctypes.c_void_p:
    """The current stream of a tensor's device; none for the host build of the kernels."""
    return ctypes.c_void_p(torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def attention_call(library: ctypes.CDLL, qkv: Tensor, key_mask: Tensor, causal: int, heads: int) -> Call:
    """Prepare a call of AlignedAttention on these inputs.

    Raises:
        KernelError: (by `run`) the call returned an error.
    """
    batch, length, triple = qkv.shape
    shape = AttentionShape(batch, length, triple // 3, heads, causal, DTYPES[qkv.dtype])
    context = qkv.new_empty(batch, length, triple // 3)
    column = torch.empty(batch, length - 1, device=qkv.device)
    class_score = torch.empty_like(column)
    size = library.madtp_aligned_attention_workspace(ctypes.byref(shape))
    workspace = torch.empty(size, dtype=torch.uint8, device=qkv.device)
    tensors = (qkv, key_mask, context, column, class_score, workspace)
    pointers = tuple(map(_pointer, tensors))

    def run(_held: object = tensors) -> None:  # whoever keeps `run` keeps the buffers
        code = library.madtp_aligned_attention(ctypes.byref(shape), *pointers, _stream(qkv))
        if code != SUCCESS:
            raise KernelError.of_call("madtp_aligned_attention", code)

    return Call(run, (context, column, class_score), tensors)


def compact_call(library: ctypes.CDLL, inputs: tuple[Tensor, ...], layer: int = 0, keep_margin: float = 0.0) -> Call:
    """Prepare a call of TokenCompact on these inputs.

    Args:
        library: the kernels.
        inputs: tokens, key_mask, source_ids, column_score, class_score, alignment, temperature, min_keep.
        layer: index that the id of the merged token encodes.
        keep_margin: zero calls the function without it.

    Raises:
        KernelError: (by `run`) the call returned an error.
    """
    tokens, key_mask, source_ids = inputs[:3]
    batch, length, width = tokens.shape
    shape = CompactShape(batch, length, width, inputs[5].shape[2], layer, 0, DTYPES[tokens.dtype])
    outputs = (
        torch.empty_like(tokens),
        torch.empty_like(key_mask),
        torch.empty_like(source_ids),
        torch.empty((), dtype=torch.int64, device=tokens.device),
    )
    size = library.madtp_token_compact_workspace(ctypes.byref(shape))
    workspace = torch.empty(size, dtype=torch.uint8, device=tokens.device)
    given = CompactInputs(*(tensor.data_ptr() for tensor in inputs))
    wanted = CompactOutputs(*(tensor.data_ptr() for tensor in outputs))
    held = (*inputs, *outputs, workspace)

    def run(_held: object = held) -> None:  # whoever keeps `run` keeps the buffers
        structures = (ctypes.byref(shape), ctypes.byref(given), ctypes.byref(wanted))
        if keep_margin:
            code = library.madtp_token_compact_margin(*structures, keep_margin, _pointer(workspace), _stream(tokens))
        else:
            code = library.madtp_token_compact(*structures, _pointer(workspace), _stream(tokens))
        if code != SUCCESS:
            raise KernelError.of_call("madtp_token_compact", code)

    return Call(run, outputs, held)


def attention_inputs(
    batch: int, length: int, width: int, dtype: torch.dtype, *, seed: int = 0, device: str = "cuda"
) -> tuple[Tensor, Tensor]:
    """qkv and key_mask with normal values, made on the CPU so that they are the same everywhere; no key is masked."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, length, 3 * width, generator=generator)
    return qkv.to(device, dtype), torch.zeros(batch, length, device=device)


def compact_inputs(
    batch: int,
    length: int,
    width: int,
    alignments: int,
    dtype: torch.dtype,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    device: str = "cuda",
) -> tuple[Tensor, ...]:
    """Inputs of TokenCompact with random scores, so that about half of the tokens are above the threshold."""
    generator = torch.Generator().manual_seed(seed)
    body = length - 1
    made = (
        torch.randn(batch, length, width, generator=generator).to(dtype),
        torch.zeros(batch, length),
        torch.arange(length, dtype=torch.int32).repeat(batch, 1),
        torch.rand(batch, body, generator=generator),
        torch.rand(batch, body, generator=generator) / body,
        torch.randn(batch, body, alignments, generator=generator) + 3.0,
        torch.tensor(temperature),
        torch.tensor(1, dtype=torch.int64),
    )
    return tuple(tensor.to(device) for tensor in made)
