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
from madtp.ops.spec import EXACT, INCOMING


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
        length: the most tokens that a sequence can have.
        capacities: rows after each layer, as of `PruningModule`. Rows behind the last sequence hold anything.
    """

    cu_seqlens: Tensor = field(kw_only=True)
    group: int = field(kw_only=True)
    length: int = field(kw_only=True)
    capacities: tuple[int, ...] | None = field(kw_only=True, default=None)

    @property
    def sized(self) -> bool:
        """Whether no size depends on data."""
        return self.capacities is not None

    def capacity(self, layer: int) -> int:
        """Rows after a layer, as of PackedTokenCompact."""
        if self.capacities is None:
            return EXACT
        return self.capacities[layer] if self.capacities else INCOMING

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
        return x.index_select(0, self._within(self.cu_seqlens[:-1], x))

    def pick(self, x: Tensor, place: Tensor) -> Tensor:
        """[S, ...]: of rows [R, ...] those at places [S] of their sequences."""
        return x.index_select(0, self._within(self.cu_seqlens[:-1] + place.to(torch.int32), x))

    def _within(self, index: Tensor, x: Tensor) -> Tensor:
        """Rows of x: where sequences did not fit, the index may be none."""
        return index.clamp(max=x.shape[0] - 1) if self.sized else index

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
            self.capacity(layer),
            self.group,
            layer,
            self.keep_margin,
        )
        self.counts.append(self.cu_seqlens.diff())
        return tokens


def pack_state(
    x: Tensor,
    start: PruningState,
    *,
    group: int = 1,
    valid: Tensor | None = None,
    capacities: tuple[int, ...] | None = None,
) -> tuple[Tensor, PackedState]:
    """Rows [R, C] of sequences [S, L, C], and the state before the first layer that they have in the packed layout.

    Args:
        start: their state in the dynamic layout; `min_keep` may be one of every request, too.
        group: sequences of a request; s, s + S / group, ... are of one.
        valid: [S, L] bool, tokens that exist; None: all of them.
        capacities: see `PackedState`. With some, R is S L.
    """
    key_mask, ids = start.key_mask.flatten(), start.source_ids.flatten()
    sequences, length = x.shape[:2]
    if valid is None:
        rows = x.flatten(0, 1)
        cu = (torch.arange(sequences + 1, device=x.device) * length).to(torch.int32)
    else:
        (rows, cu), places = pack_valid(x, valid, sized=capacities is not None)
        key_mask, ids = key_mask.index_select(0, places), ids.index_select(0, places)
    tau = torch.zeros((), dtype=torch.float32, device=x.device) if start.temperature is None else start.temperature
    least = start.min_keep.expand(sequences // group)
    state = PackedState(
        key_mask,
        ids,
        tau,
        least,
        start.keep_margin,
        cu_seqlens=cu,
        group=group,
        length=length,
        capacities=capacities,
    )
    return rows, state


def pack_valid(x: Tensor, valid: Tensor, *, sized: bool) -> tuple[PackedTokens, Tensor]:
    """Those tokens of [S, L, C] that are `valid` [S, L] bool, and their places in [S L], [R] int64.

    Args:
        sized: R is S L, and the rows behind the last sequence are copies of the first.
    """
    places = _sized_places(valid.flatten()) if sized else valid.flatten().nonzero().squeeze(1)
    ends = valid.to(torch.int64).sum(dim=1).cumsum(0).to(torch.int32)
    cu = torch.cat([torch.zeros(1, dtype=torch.int32, device=x.device), ends])
    return PackedTokens(x.flatten(0, 1).index_select(0, places), cu), places


def _sized_places(valid: Tensor) -> Tensor:
    """Where [N] is valid, and 0 for each place where it is not: [N] int64, like `nonzero` without its size."""
    number = torch.arange(valid.shape[0], device=valid.device)
    behind = torch.full_like(number, valid.shape[0])
    slot = torch.where(valid, valid.to(torch.int64).cumsum(0) - 1, behind)
    return torch.cat([torch.zeros_like(number), behind[:1]]).scatter(0, slot, number)[:-1]


def pad(tokens: PackedTokens, longest: int | None = None) -> Tensor:
    """[S, n, C]: zeros behind sequences that are shorter than n, `longest`. None: it is found in the data."""
    lengths = tokens.cu_seqlens.diff()
    width = _longest(lengths) if longest is None else longest
    place = torch.arange(width, dtype=torch.int32, device=lengths.device)
    valid = place < lengths[:, None]
    index = torch.where(valid, tokens.cu_seqlens[:-1, None] + place, 0)
    filled = tokens.rows.index_select(0, index.flatten()).unflatten(0, index.shape)
    return torch.where(valid[..., None], filled, torch.zeros((), dtype=filled.dtype, device=filled.device))


def unpad(x: Tensor, lengths: Tensor, *, sized: bool) -> PackedTokens:
    """The first `lengths` [S] tokens of [S, n, C]; `sized` as of `pack_valid`."""
    place = torch.arange(x.shape[1], device=x.device)
    return pack_valid(x, place < lengths[:, None], sized=sized)[0]


def halves(x: Tensor, state: PruningState, requests: int) -> tuple[Tensor, Tensor] | tuple[PackedTokens, PackedTokens]:
    """First and second sequences of requests that have two; in the packed layout both of a request are equally long."""
    if not isinstance(state, PackedState):
        return x[:requests], x[requests:]
    cu = state.cu_seqlens[: requests + 1]
    if not state.sized:
        first, second = x.unflatten(0, (2, -1)).unbind()
        return PackedTokens(first, cu), PackedTokens(second, cu)
    room = x.shape[0] // 2  # of rows that are an even number, half are enough
    cu = cu.clamp(max=room)  # beyond it only where not everything has room
    later = state.cu_seqlens[requests] + torch.arange(room, dtype=torch.int32, device=x.device)
    first, second = x[:room], x.index_select(0, later.clamp(max=x.shape[0] - 1))
    return PackedTokens(first, cu), PackedTokens(second, cu)


def source_of(x: Tensor, state: PruningState) -> Tensor | PackedTokens:
    """Tokens of an encoder as what others look at."""
    return PackedTokens(x, state.cu_seqlens) if isinstance(state, PackedState) else x


def padded(x: Tensor, state: PruningState) -> Tensor:
    """Tokens of an encoder as [S, n, C], filled up with zeros where a sequence has fewer."""
    if not isinstance(state, PackedState):
        return x
    return pad(PackedTokens(x, state.cu_seqlens), state.length if state.sized else None)


def _longest(lengths: Tensor) -> Any:
    longest = lengths.max().item()
    torch._check(longest >= 2)  # what tracing takes for granted
    return longest
