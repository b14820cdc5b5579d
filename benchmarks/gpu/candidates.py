"""Candidates that are timed side by side for each op, and the kernels' differences from eager torch."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.calls import Call, attention_call, attention_inputs, compact_call, compact_inputs
from benchmarks.gpu.floor import ALIGNMENTS, HEADS, LENGTH, WIDTH
from benchmarks.gpu.measure import peak_bytes
from madtp.ops.reference import aligned_attention, split_heads, token_compact

Candidates = dict[str, Callable[[], object]]
FLASH_3 = "FlashAttention-3, bf16"  # its wheel for inference has no fp16 kernels


@dataclass(frozen=True)
class Sizes:
    """What the ops are timed on: L tokens with the class token, C, H, T, and where."""

    length: int = LENGTH
    width: int = WIDTH
    heads: int = HEADS
    alignments: int = ALIGNMENTS
    device: str = "cuda"


BASE = Sizes()
SDPA_BACKENDS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _usable(candidates: Candidates, device: str) -> tuple[Candidates, dict[str, str]]:
    """Candidates that run, and why the others do not: torch refuses backends and compilations in many ways."""
    usable: Candidates = {}
    refused: dict[str, str] = {}
    for name, call in candidates.items():
        try:
            call()
            _wait(device)
        except torch.cuda.OutOfMemoryError:
            refused[name] = "out of memory"
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            refused[name] = f"{type(error).__name__}: {lines[0][:200]}".replace("|", "/")
        else:
            usable[name] = call
    return usable, refused


def _attend(query: Tensor, key: Tensor, value: Tensor, backend: SDPBackend | None) -> Tensor:
    if backend is None:
        return F.scaled_dot_product_attention(query, key, value)
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(query, key, value)


def _attend_flash_3(qkv: Tensor, heads: int) -> Callable[[], object]:
    """FlashAttention-3 on the same inputs; imported at the call, so that a failure is refused like the others."""
    query, key, value = (
        part.unflatten(-1, (heads, -1)).to(torch.bfloat16).contiguous() for part in qkv.chunk(3, dim=-1)
    )

    def attend() -> object:
        from fa3_fwd_interface import flash_attn_func

        return flash_attn_func(query, key, value)

    return attend


def _compile(function: Callable[..., Any], device: str) -> Callable[..., Any]:
    """Apply torch.compile; on a CPU (a rehearsal) it only traces and starts no compiler."""
    return torch.compile(function, dynamic=False, backend="eager" if device == "cpu" else "inductor")


def _difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).abs().max())


def attention_candidates(
    library: ctypes.CDLL, batch: int, sizes: Sizes = BASE, *, compiled: bool = True
) -> tuple[Candidates, dict[str, str], dict[str, Any]]:
    """AlignedAttention at base size, fp16; with `compiled`, torch.compile of the reference too.

    Returns:
        Candidates, those refused, and the kernels' largest absolute differences from eager torch.

    Raises:
        KernelError: the kernels refuse the call.
    """
    qkv, key_mask = attention_inputs(batch, sizes.length, sizes.width, torch.float16, device=sizes.device)
    ours: Call = attention_call(library, qkv, key_mask, 0, sizes.heads)
    ours.run()
    _wait(sizes.device)  # an error of the kernels is not to look like a candidate that does not run
    eager = partial(aligned_attention, qkv, key_mask, 0, sizes.heads)
    query, key, value = (split_heads(part, sizes.heads) for part in qkv.chunk(3, dim=-1))
    candidates: Candidates = {
        "kernel": ours.run,
        "eager": eager,
        "SDPA": partial(_attend, query, key, value, None),
        **{name: partial(_attend, query, key, value, backend) for name, backend in SDPA_BACKENDS.items()},
        FLASH_3: _attend_flash_3(qkv, sizes.heads),
    }
    if compiled:
        fused = _compile(aligned_attention, sizes.device)
        candidates["torch.compile"] = partial(fused, qkv, key_mask, 0, sizes.heads)
    usable, refused = _usable(candidates, sizes.device)
    facts: dict[str, Any] = {}
    if "eager" in usable:
        names = ("context", "column_score", "class_score")
        facts["largest_difference"] = {
            name: _difference(mine, theirs) for name, mine, theirs in zip(names, ours.outputs, eager(), strict=True)
        }
    return usable, refused, facts


def compact_candidates(
    library: ctypes.CDLL, batch: int, sizes: Sizes = BASE, *, compiled: bool = True
) -> tuple[Candidates, dict[str, str], dict[str, Any]]:
    """TokenCompact at base size, fp16; with `compiled`, torch.compile of the reference too.

    Returns:
        Candidates, those refused, and how many tokens stay (kernel and eager torch).

    Raises:
        KernelError: the kernels refuse the call.
    """
    inputs = compact_inputs(batch, sizes.length, sizes.width, sizes.alignments, torch.float16, device=sizes.device)
    ours = compact_call(library, inputs)
    ours.run()
    _wait(sizes.device)  # an error of the kernels is not to look like a candidate that does not run
    eager = partial(token_compact, *inputs, 0)
    candidates: Candidates = {"kernel": ours.run, "eager": eager}
    if compiled:
        candidates["torch.compile"] = partial(_compile(token_compact, sizes.device), *inputs, 0)
    usable, refused = _usable(candidates, sizes.device)
    count = int(ours.outputs[3])
    facts: dict[str, Any] = {"tokens": count}
    if "eager" in usable:
        theirs = eager()
        facts["tokens_of_eager"] = int(theirs[3])
        if facts["tokens_of_eager"] == count:
            width = sizes.width
            mine = ours.outputs[0].reshape(-1, width)[: batch * count].reshape(batch, count, width)
            facts["largest_difference"] = {"tokens": _difference(mine, theirs[0])}
    return usable, refused, facts


def memory_against_length(library: ctypes.CDLL, batch: int, lengths: tuple[int, ...]) -> list[dict[str, int]]:
    """Bytes of outputs, workspace and temporaries of AlignedAttention at several lengths, beside eager torch."""
    rows = []
    for length in lengths:
        qkv, key_mask = attention_inputs(batch, length, WIDTH, torch.float16)

        def ours(qkv: Tensor = qkv, key_mask: Tensor = key_mask) -> Call:
            call = attention_call(library, qkv, key_mask, 0, HEADS)
            call.run()
            return call

        row = {"length": length, "kernel": peak_bytes(ours)}
        row["eager"] = peak_bytes(partial(aligned_attention, qkv, key_mask, 0, HEADS))
        rows.append(row)
    return rows
