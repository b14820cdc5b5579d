"""The custom torch ops of the packed layout: rows of all sequences end to end, each request by itself.

The functions here are the readable reference, as in `madtp/ops/reference.py`, whose functions they call with one
sequence at a time: what a request comes to does not depend on the others of its batch.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from madtp.ops.products import product
from madtp.ops.reference import (
    aligned_attention,
    compact_sequence,
    counts_above,
    learned_threshold,
    merge_heads,
    split_heads,
    token_importance,
)
from madtp.ops.spec import DOMAIN, EXACT, INCOMING, PACKED_ATTENTION, PACKED_COMPACT, VARLEN_ATTENTION


def spans(cu_seqlens: Tensor) -> Iterator[slice]:
    """The rows of every sequence, of `cu_seqlens` [S + 1]."""
    ends = cu_seqlens.tolist()
    return (slice(first, last) for first, last in pairwise(ends))


def packed_aligned_attention(
    qkv: Tensor, key_mask: Tensor, cu_seqlens: Tensor, causal: int, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`madtp.ops.reference.aligned_attention` of every sequence.

    Args:
        qkv: [R, 3C] float; key_mask: [R] float32; cu_seqlens: [S + 1] int32.

    Returns:
        context [R, C] in the dtype of `qkv`; column_score and class_score [R] float32, 0 for class tokens. Rows behind
        the last sequence are 0.
    """
    wide = torch.promote_types(qkv.dtype, torch.float32)
    context = qkv.new_zeros(qkv.shape[0], qkv.shape[1] // 3)
    column_score, class_score = (qkv.new_zeros(qkv.shape[0], dtype=wide) for _ in range(2))
    for rows in spans(cu_seqlens):
        if rows.stop == rows.start:
            continue
        found, column, of_class = aligned_attention(qkv[None, rows], key_mask[None, rows], causal, heads)
        context[rows] = found[0]
        column_score[rows.start + 1 : rows.stop] = column[0]
        class_score[rows.start + 1 : rows.stop] = of_class[0]
    return context, column_score, class_score


def packed_token_compact(
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
    """`madtp.ops.reference.token_compact` of every sequence; `per-request` batching rule.

    K is the largest count among the sequences of a request, which are s, s + Q, s + 2 Q, ... for request s.

    Args:
        tokens: [R, C] float; key_mask, column_score, class_score: [R] float32; source_ids: [R] int32.
        alignment: [R, T] float32.
        cu_seqlens: [S + 1] int32.
        temperature: [] float32; min_keep: [Q] int64.
        capacity: rows of the result; EXACT (0) is as many as are needed, INCOMING (-1) as many as came in.
        group: S / Q.

    Returns:
        tokens, mask and ids of all sequences; their cu_seqlens [S + 1] int32; and the rows that they need, [] int64.
        Rows behind them are 0. Sequences that a capacity has no room for lose rows.
    """
    fixed = capacity != EXACT
    importances, keeps = [], []
    for rows in spans(cu_seqlens):
        body = slice(min(rows.start + 1, rows.stop), rows.stop)
        length = body.stop - body.start
        importance = token_importance(column_score[None, body], class_score[None, body], alignment[None, body])
        importances.append(importance)
        keep = length
        if temperature > 0 and length:
            threshold = learned_threshold(importance, alignment[None, body], temperature, keep_margin)
            keep = int(counts_above(importance, threshold))
        keeps.append(keep)
    requests = len(keeps) // group
    parts, ends = [], [0]
    for sequence, rows in enumerate(spans(cu_seqlens)):
        request = sequence % requests
        keep, least = max(keeps[request::requests]), int(min_keep[request])
        columns = tokens[None, rows], key_mask[None, rows], source_ids[None, rows]
        if keep >= least and importances[sequence].shape[1] - keep >= 2:
            columns = compact_sequence(*columns, importances[sequence], keep, layer)
        parts.append([column[0] for column in columns])
        ends.append(ends[-1] + len(parts[-1][0]))
    compacted, mask, ids = (torch.cat(column) for column in zip(*parts, strict=True))
    capacity = len(tokens) if capacity == INCOMING else capacity
    if fixed:
        compacted, mask, ids = (_sized(column, capacity) for column in (compacted, mask, ids))
    cu = torch.tensor(ends, dtype=torch.int32, device=tokens.device)
    return (
        compacted,
        mask,
        ids,
        cu.clamp(max=capacity) if fixed else cu,
        torch.tensor(ends[-1], device=tokens.device),
    )


def _sized(column: Tensor, rows: int) -> Tensor:
    """Cut, or filled up with zeros."""
    column = column[:rows]
    return torch.cat([column, column.new_zeros(rows - column.shape[0], *column.shape[1:])])


def varlen_attention(query: Tensor, key_value: Tensor, cu_seqlens: Tensor, cu_keys: Tensor, heads: int) -> Tensor:
    """Sequences look at others: no mask, no statistics.

    Args:
        query: [R, C] float; key_value: [M, 2C]; cu_seqlens, cu_keys: [S + 1] int32.

    Returns:
        context [R, C]; 0 where there are no keys, and in rows behind the last sequence.
    """
    context = torch.zeros_like(query)
    for rows, keys in zip(spans(cu_seqlens), spans(cu_keys), strict=True):
        if rows.stop == rows.start or keys.stop == keys.start:
            continue
        looking = split_heads(query[None, rows], heads)
        key, value = (split_heads(part, heads) for part in key_value[None, keys].chunk(2, dim=-1))
        scores = product(looking / math.sqrt(looking.shape[-1]), key.mT)
        context[rows] = merge_heads(product(scores.softmax(dim=-1), value))[0]
    return context


def _register(spec: Any, implementation: Any) -> Any:
    return torch.library.custom_op(
        f"{DOMAIN}::{spec.torch_name}", implementation, mutates_args=(), schema=spec.torch_schema
    )


PACKED_ATTENTION_OP = _register(PACKED_ATTENTION, packed_aligned_attention)
PACKED_COMPACT_OP = _register(PACKED_COMPACT, packed_token_compact)
VARLEN_ATTENTION_OP = _register(VARLEN_ATTENTION, varlen_attention)


@PACKED_ATTENTION_OP.register_fake
def _(qkv: Tensor, key_mask: Tensor, cu_seqlens: Tensor, causal: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = qkv.shape
    score = qkv.new_empty(rows, dtype=torch.float32)
    return qkv.new_empty(rows, width // 3), score, torch.empty_like(score)


@PACKED_COMPACT_OP.register_fake
def _(
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
    # Sequences of a request keep equally many, so the rows of a batch fall into `group` equal parts. A traced graph may
    # get capacities for INCOMING afterwards, so what follows must take the size from the result, not from what came in.
    rows = capacity if capacity > 0 else group * torch.library.get_ctx().new_dynamic_size(min=2)
    return (
        tokens.new_empty(rows, tokens.shape[1]),
        key_mask.new_empty(rows),
        source_ids.new_empty(rows),
        torch.empty_like(cu_seqlens),
        tokens.new_empty((), dtype=torch.int64),
    )


@VARLEN_ATTENTION_OP.register_fake
def _(query: Tensor, key_value: Tensor, cu_seqlens: Tensor, cu_keys: Tensor, heads: int) -> Tensor:
    return torch.empty_like(query)
