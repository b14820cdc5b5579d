"""The packed layout of an encoder: rows of all sequences end to end, every request by itself.

A sequence has as many rows as tokens, whatever the others of its batch have; the dynamic layout
(`madtp.models.pruning.PruningState`) fills all of them up to one length, and prunes them together. Modules that treat
every token alike do not know which layout their tokens have.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from madtp.models.pruning import PruningState
from madtp.ops.packed import PACKED_ATTENTION_OP, PACKED_COMPACT_OP, VARLEN_ATTENTION_OP


class PackedTokens(NamedTuple):
    """Rows [R, C] of sequences, and their first rows and the end of the last, [S + 1] int32."""

    rows: Tensor
    cu_seqlens: Tensor


@dataclass
class PackedState(PruningState):
    """What travels with the rows of one encoder call. `key_mask` and `source_ids` are [R], `min_keep` is [requests].

    Attributes:
        cu_seqlens: [S + 1] int32, first row of every sequence, and the end of the last.
        group: sequences of a request; s, s + S / group, ... are of one.
    """

    cu_seqlens: Tensor = field(kw_only=True)
    group: int = field(kw_only=True)

    def token_counts(self) -> Tensor:
        """[S, layers] int32."""
        return torch.stack(self.counts, dim=1)

    def attend(self, qkv: Tensor, causal: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Context [R, C], column score and class score [R] of rows [R, 3C]."""
        return PACKED_ATTENTION_OP(qkv, self.key_mask, self.cu_seqlens, causal, heads)

    def cross_attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int, source: PackedTokens) -> Tensor:
        """Rows [R, C] look at the rows of their own sequence in a source."""
        pair = torch.cat([key, value], dim=-1)
        return VARLEN_ATTENTION_OP(query, pair, self.cu_seqlens, source.cu_seqlens, heads)

    def body(self, x: Tensor) -> Tensor:
        """All rows: those of class tokens are computed, and not read."""
        return x

    def class_tokens(self, x: Tensor) -> Tensor:
        """[S, ...] of [R, ...]."""
        return x.index_select(0, self.cu_seqlens[:-1])

    def pick(self, x: Tensor, place: Tensor) -> Tensor:
        """[S, ...]: of rows [R, ...] those at places [S] of their sequences."""
        return x.index_select(0, self.cu_seqlens[:-1] + place.to(torch.int32))

    def compact(
        self, tokens: Tensor, alignment: Tensor, column_score: Tensor, class_score: Tensor, layer: int
    ) -> Tensor:
        """Prune rows [R, C] to [n, C]; key mask, source ids, cu_seqlens and counts follow."""
        tokens, self.key_mask, self.source_ids, self.cu_seqlens, _ = PACKED_COMPACT_OP(
            tokens,
            self.key_mask,
            self.source_ids,
            column_score,
            class_score,
            alignment,
            self.cu_seqlens,
            self.temperature,
            self.min_keep,
            0,
            self.group,
            layer,
            self.keep_margin,
        )
        self.counts.append(self.cu_seqlens.diff())
        return tokens


def pack_state(
    x: Tensor, start: PruningState, *, group: int = 1, valid: Tensor | None = None
) -> tuple[Tensor, PackedState]:
    """Rows [R, C] of sequences [S, L, C], and the state before the first layer that they have in the packed layout.

    Args:
        start: their state in the dynamic layout; `min_keep` may be one of every request, too.
        group: sequences of a request; s, s + S / group, ... are of one.
        valid: [S, L] bool, tokens that exist; None: all of them.
    """
    key_mask, ids = start.key_mask.flatten(), start.source_ids.flatten()
    sequences, length = x.shape[:2]
    if valid is None:
        rows = x.flatten(0, 1)
        cu = (torch.arange(sequences + 1, device=x.device) * length).to(torch.int32)
    else:
        (rows, cu), places = pack_valid(x, valid)
        key_mask, ids = key_mask.index_select(0, places), ids.index_select(0, places)
    tau = torch.zeros((), dtype=torch.float32, device=x.device) if start.temperature is None else start.temperature
    least = start.min_keep.expand(sequences // group)
    return rows, PackedState(key_mask, ids, tau, least, start.keep_margin, cu_seqlens=cu, group=group)


def pack_valid(x: Tensor, valid: Tensor) -> tuple[PackedTokens, Tensor]:
    """Those tokens of [S, L, C] that are `valid` [S, L] bool, and their places in [S * L], [R] int64."""
    places = valid.flatten().nonzero().squeeze(1)
    ends = valid.to(torch.int64).sum(dim=1).cumsum(0).to(torch.int32)
    cu = torch.cat([torch.zeros(1, dtype=torch.int32, device=x.device), ends])
    return PackedTokens(x.flatten(0, 1).index_select(0, places), cu), places


def pad(tokens: PackedTokens) -> Tensor:
    """[S, n, C], n being the longest sequence: zeros behind those that are shorter."""
    lengths = tokens.cu_seqlens.diff()
    place = torch.arange(_longest(lengths), dtype=torch.int32, device=lengths.device)
    valid = place < lengths[:, None]
    index = torch.where(valid, tokens.cu_seqlens[:-1, None] + place, 0)
    filled = tokens.rows.index_select(0, index.flatten()).unflatten(0, index.shape)
    return torch.where(valid[..., None], filled, torch.zeros((), dtype=filled.dtype, device=filled.device))


def unpad(x: Tensor, lengths: Tensor) -> PackedTokens:
    """The first `lengths` [S] tokens of [S, n, C]."""
    place = torch.arange(x.shape[1], device=x.device)
    return pack_valid(x, place < lengths[:, None])[0]


def halves(x: Tensor, state: PruningState, requests: int) -> tuple[Tensor, Tensor] | tuple[PackedTokens, PackedTokens]:
    """First and second sequences of requests that have two; in the packed layout both of a request are equally long."""
    if not isinstance(state, PackedState):
        return x[:requests], x[requests:]
    first, second = x.unflatten(0, (2, -1)).unbind()
    cu = state.cu_seqlens[: requests + 1]
    return PackedTokens(first, cu), PackedTokens(second, cu)


def source_of(x: Tensor, state: PruningState) -> Tensor | PackedTokens:
    """Tokens of an encoder as what others look at."""
    return PackedTokens(x, state.cu_seqlens) if isinstance(state, PackedState) else x


def padded(x: Tensor, state: PruningState) -> Tensor:
    """Tokens of an encoder as [S, n, C], filled up with zeros where a sequence has fewer."""
    return pad(PackedTokens(x, state.cu_seqlens)) if isinstance(state, PackedState) else x


def _longest(lengths: Tensor) -> Any:
    longest = lengths.max().item()
    torch._check(longest >= 2)  # what tracing takes for granted
    return longest
