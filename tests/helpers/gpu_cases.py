"""Calls of both ops that the GPU tests share: sizes that do and do not fill tiles, every dtype, causal and not."""

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu.calls import Call, attention_call, attention_inputs, compact_call, compact_inputs

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class AttentionCase:
    """Sizes of an AlignedAttention call."""

    name: str
    dtype: str
    batch: int
    length: int
    width: int
    heads: int
    causal: int = 0


@dataclass(frozen=True)
class CompactCase:
    """Sizes of a TokenCompact call; temperature zero prunes nothing."""

    name: str
    dtype: str
    batch: int
    length: int
    width: int
    alignments: int
    temperature: float = 1.0
    keep_margin: float = 0.0


# The tensor-core path takes heads of 32, 64 and 128 in 16-bit types; from 256 blocks on it has tiles of 128 queries.
ATTENTION = tuple(
    case
    for dtype in DTYPES
    for case in (
        AttentionCase(f"{dtype}-tiles-of-64", dtype, 1, 197, 128, 2),
        AttentionCase(f"{dtype}-tiles-of-128", dtype, 11, 129, 768, 12),
        AttentionCase(f"{dtype}-causal", dtype, 2, 65, 128, 2, causal=1),
        AttentionCase(f"{dtype}-heads-of-128", dtype, 1, 70, 256, 2),
        AttentionCase(f"{dtype}-heads-of-24", dtype, 1, 70, 48, 2),
        AttentionCase(f"{dtype}-one-token", dtype, 2, 1, 64, 1),
    )
)
COMPACT = tuple(
    case
    for dtype in DTYPES
    for case in (
        CompactCase(f"{dtype}-pruned", dtype, 3, 197, 128, 20),
        CompactCase(f"{dtype}-two-rounds", dtype, 2, 577, 72, 100),
        CompactCase(f"{dtype}-margin", dtype, 2, 577, 64, 20, keep_margin=0.1),
        CompactCase(f"{dtype}-unpruned", dtype, 2, 70, 64, 8, temperature=0.0),
    )
)
SANITIZED = ("fp16-tiles-of-128", "fp32-causal", "fp16-pruned")  # tensor cores, the plain path, TokenCompact


def attention_of(library: ctypes.CDLL, case: AttentionCase, seed: int = 0, device: str = "cuda") -> Call:
    """The call of a case; the last third of the keys of every other sample is masked, as padded words are."""
    qkv, key_mask = attention_inputs(case.batch, case.length, case.width, DTYPES[case.dtype], seed=seed, device=device)
    key_mask[::2, case.length - case.length // 3 :] = -10000.0
    return attention_call(library, qkv, key_mask, case.causal, case.heads)


def compact_of(library: ctypes.CDLL, case: CompactCase, seed: int = 0, device: str = "cuda") -> Call:
    """The call of a case."""
    sizes, temperature = (case.batch, case.length, case.width, case.alignments), case.temperature
    inputs = compact_inputs(*sizes, DTYPES[case.dtype], temperature=temperature, seed=seed, device=device)
    return compact_call(library, inputs, keep_margin=case.keep_margin)


def call_of(library: ctypes.CDLL, case: AttentionCase | CompactCase, device: str = "cuda") -> Call:
    """The call of a case of either op."""
    if isinstance(case, AttentionCase):
        return attention_of(library, case, device=device)
    return compact_of(library, case, device=device)


def supported(case: AttentionCase | CompactCase) -> bool:
    """Whether this device supports the case: bfloat16 attention needs compute capability 8.0."""
    return isinstance(case, CompactCase) or case.dtype != "bf16" or torch.cuda.get_device_capability()[0] >= 8


def chosen(names: Sequence[str]) -> list[AttentionCase | CompactCase]:
    """The cases of these names.

    Raises:
        ValueError: there is no case of that name.
    """
    known: dict[str, AttentionCase | CompactCase] = {case.name: case for case in (*ATTENTION, *COMPACT)}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no case is named {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def run_all(
    library: ctypes.CDLL, cases: Iterable[AttentionCase | CompactCase] = (*ATTENTION, *COMPACT), device: str = "cuda"
) -> int:
    """Run every case that this device supports once; return the number of calls.

    Args:
        library: the kernels.
        cases: cases of `ATTENTION` and `COMPACT`.
        device: "cpu" for the kernels' build for the host.

    Raises:
        KernelError: a call returned an error.
    """
    on_gpu = device != "cpu"
    calls = [call_of(library, case, device) for case in cases if not on_gpu or supported(case)]
    if on_gpu:
        torch.cuda.synchronize()
    for call in calls:
        call.run()
    if on_gpu:
        torch.cuda.synchronize()
    return len(calls)
