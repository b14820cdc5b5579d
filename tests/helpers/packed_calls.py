"""Random calls of the packed ops."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def cu_seqlens(lengths: Sequence[int]) -> Tensor:
    """[S + 1] int32 of sequences of these lengths."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(torch.int32)


def attention_call(
    lengths: Sequence[int], heads: int, size: int, seed: int, spare: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    """qkv, key mask, cu_seqlens, causal and heads of PackedAlignedAttention; `spare` rows behind the last hold NaN."""
    g = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    qkv = 2 * torch.randn(rows, 3 * heads * size, generator=g)
    mask = -10000.0 * (torch.rand(rows, generator=g) < 0.3)
    return poisoned(qkv, spare).to(dtype), poisoned(mask, spare), cu_seqlens(lengths), seed % 2, heads


def compact_call(
    lengths: Sequence[int],
    seed: int,
    *,
    temperature: float,
    min_keep: int = 1,
    capacity: int = 0,
    group: int = 1,
    margin: float = 0.0,
    spare: int = 0,
    width: int = 8,
    entries: int = 4,
) -> tuple[Any, ...]:
    """The arguments of PackedTokenCompact, layer 3; `spare` rows behind the last sequence hold NaN."""
    g = torch.Generator().manual_seed(seed)
    rows = sum(lengths)
    tokens = torch.randn(rows, width, generator=g)
    mask = -10000.0 * (torch.rand(rows, generator=g) < 0.3)
    ids = torch.cat([torch.arange(length, dtype=torch.int32) for length in (*lengths, spare)])
    column, of_class = torch.rand(rows, generator=g), torch.rand(rows, generator=g) / 8
    alignment = torch.randn(rows, entries, generator=g)
    least = torch.full((len(lengths) // group,), min_keep)
    floats = [poisoned(part, spare) for part in (tokens, mask, column, of_class, alignment)]
    return (
        *floats[:2],
        ids,
        *floats[2:],
        cu_seqlens(lengths),
        torch.tensor(temperature),
        least,
        capacity,
        group,
        3,
        margin,
    )


def poisoned(rows: Tensor, spare: int) -> Tensor:
    """Rows with `spare` rows of NaN behind them."""
    return torch.cat([rows, rows.new_full((spare, *rows.shape[1:]), float("nan"))])


def varlen_call(
    lengths: Sequence[int], keys: Sequence[int], heads: int, size: int, seed: int, spare: int = 0
) -> tuple[Any, ...]:
    """query, key_value, cu_seqlens, cu_keys and heads of VarlenAttention; `spare` rows behind the last hold NaN."""
    g = torch.Generator().manual_seed(seed)
    query = 2 * torch.randn(sum(lengths), heads * size, generator=g)
    key_value = torch.randn(sum(keys), 2 * heads * size, generator=g)
    return poisoned(query, spare), poisoned(key_value, spare), cu_seqlens(lengths), cu_seqlens(keys), heads
