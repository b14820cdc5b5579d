"""Dynamic token pruning inside an encoder: what an encoder carries from layer to layer, and one pruning step."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from madtp.ops.reference import merge_heads, split_heads


class PruningModule(nn.Module):
    """A module that starts a `PruningState`.

    Attributes:
        keep_margin: how far below the threshold a token may be to stay, in units of the layer's mean |importance|.
        packed: whether rows of all sequences lie end to end, every request by itself (`madtp.models.packed`).
        capacities: in the packed layout, rows after each layer, so that no size depends on data; () is as many as come
            in, which is always enough. None: as many as are needed.
    """

    keep_margin: float = 0.0
    packed: bool = False
    capacities: tuple[int, ...] | None = None

    @property
    def sized(self) -> bool:
        """Whether no size depends on data."""
        return self.capacities is not None


@dataclass
class PruningState:
    """What travels with the tokens of one encoder call.

    Attributes:
        key_mask: [B, L] float32, added to attention scores (0 or -10000).
        source_ids: [B, L] int32, position of each token in the encoder's input, -(layer + 1) for merged ones.
        temperature: [] float32 tensor, or None for the dense model: no statistics, no alignment, nothing pruned.
        keep_margin: that of the module that started it.
        counts: tokens after each layer, one [] int64 tensor a layer.
        aligned: [B, T, C] sum over layers of the aligned features, when `collect_aligned` is set (training).
    """

    key_mask: Tensor
    source_ids: Tensor
    temperature: Tensor | None
    min_keep: Tensor
    keep_margin: float = 0.0
    counts: list[Tensor] = field(default_factory=list)
    collect_aligned: bool = False
    aligned: Tensor | float = 0.0

    @classmethod
    def start(
        cls,
        key_mask: Tensor,
        temperature: Tensor | None,
        *,
        min_keep: int = 1,
        keep_margin: float = 0.0,
        collect_aligned: bool = False,
    ) -> "PruningState":
        """State before the first layer for a [B, L] key mask."""
        ids = torch.arange(key_mask.shape[1], dtype=torch.int32, device=key_mask.device).expand(key_mask.shape)
        keep = torch.full((), min_keep, dtype=torch.int64, device=key_mask.device)
        return cls(key_mask, ids, temperature, keep, keep_margin, collect_aligned=collect_aligned)

    def count_unpruned(self, tokens: Tensor) -> None:
        """Note a layer of the dense model, which leaves `tokens` [B, L, C]."""
        # Filled on the device: a number copied there would wait for it, and could not be captured into a CUDA graph.
        self.counts.append(torch.full((), tokens.shape[1], dtype=torch.int64, device=tokens.device))

    def token_counts(self) -> Tensor:
        """[B, layers] int32: tokens of each sample after each layer, class token included."""
        counts = torch.stack(self.counts).to(torch.int32)
        return counts.expand(self.key_mask.shape[0], -1)

    def attend(self, qkv: Tensor, causal: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
        """Context, column score and class score of tokens [B, L, 3C]."""
        return torch.ops.madtp.aligned_attention(qkv, self.key_mask, causal, heads)

    def cross_attend(self, query: Tensor, key: Tensor, value: Tensor, heads: int, source: Any) -> Tensor:
        """Tokens [B, L, C] look at all tokens of a source, [B, S, C] keys and values: no mask, no statistics."""
        query, key, value = (split_heads(part, heads) for part in (query, key, value))
        # Spelled out, because torch.onnx writes a fused attention as a dozen shape computations.
        scores = (query / math.sqrt(query.shape[-1])) @ key.mT
        return merge_heads(scores.softmax(dim=-1) @ value)

    def body(self, x: Tensor) -> Tensor:
        """Of [B, 1 + N, C] the tokens that are scored."""
        return x[:, 1:]

    def class_tokens(self, x: Tensor) -> Tensor:
        """[B, C] of [B, L, C]."""
        return x[:, 0]

    def pick(self, x: Tensor, place: Tensor) -> Tensor:
        """[B, ...]: of [B, L, ...] the entries at places [B] of their sequences."""
        index = place.reshape(-1, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:])
        return x.gather(1, index).squeeze(1)

    def compact(
        self, tokens: Tensor, alignment: Tensor, column_score: Tensor, class_score: Tensor, layer: int
    ) -> Tensor:
        """Prune `tokens` [B, L, C] to [B, n, C]; key mask, source ids and counts follow."""
        assert self.temperature is not None
        tokens, self.key_mask, self.source_ids, count = torch.ops.madtp.token_compact(
            tokens,
            self.key_mask,
            self.source_ids,
            column_score,
            class_score,
            alignment,
            self.temperature,
            self.min_keep,
            layer,
            self.keep_margin,
        )
        self.counts.append(count)
        return tokens


def _wide(x: Tensor) -> Tensor:
    """At least float32: scores decide at a threshold, and rounding must not."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def align(x: Tensor, space_dict: Tensor, state: PruningState) -> Tensor:
    """Alignment A [B, N, T], float32, of the layer's input with the dictionary (docs/semantics.md, section 1).

    Args:
        x: [B, 1 + N, C], the layer's input; packed rows [R, C], of which those of class tokens are never read.
        space_dict: [T, C].
        state: also receives the aligned feature softmax_N(A^T / sqrt(C)) x when it collects them.
    """
    body = state.body(x)
    alignment = _wide(body) @ _wide(space_dict).mT
    if state.collect_aligned:
        weights = (alignment.mT / math.sqrt(space_dict.shape[1])).softmax(dim=-1)
        state.aligned = state.aligned + weights @ body
    return alignment


def resolve_temperature(temperature: Tensor | float | None, default: float, device: torch.device) -> Tensor | None:
    """The [] float32 tensor of a forward call's temperature, or None for the dense model.

    Args:
        temperature: a tensor is taken as it is (zero or less: statistics are computed, nothing is pruned); of a float,
            zero or less is the dense model without statistics; None is `default`.
    """
    if isinstance(temperature, Tensor):
        # Once a forward pass, not in every layer: a copy from the CPU waits for the device.
        return temperature if temperature.device == device else temperature.to(device)
    value = default if temperature is None else temperature
    return torch.full((), value, dtype=torch.float32, device=device) if value > 0 else None
