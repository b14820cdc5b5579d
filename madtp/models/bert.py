"""The parts of BLIP's BERT that its tasks share, and the encoder that most of them use. Names are checkpoint keys."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.models.config import BlipConfig
from madtp.models.packed import PackedTokens, pack_state
from madtp.models.pruning import PruningModule, PruningState, align
from madtp.ops.reference import MASKED, merge_heads, split_heads


class Embeddings(nn.Module):
    """Word and position embeddings, normalised: ids [B, L] -> [B, L, C]. BLIP's BERT has no token types."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.text_hidden)
        self.position_embeddings = nn.Embedding(config.max_position, config.text_hidden)
        self.LayerNorm = nn.LayerNorm(config.text_hidden, eps=config.text_layer_norm_eps)

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(input_ids) + positions)


class Projections(nn.Module):
    """The query, key and value layers of one attention."""

    def __init__(self, width: int, source_width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)


class Output(nn.Module):
    """Linear layer, residual and norm that close self-attention and the feed-forward network."""

    def __init__(self, source_width: int, width: int, eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(source_width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class SelfAttention(nn.Module):
    """Self-attention over the words; with a temperature it returns the column and class scores too."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.self = Projections(config.text_hidden, config.text_hidden)
        self.output = Output(config.text_hidden, config.text_hidden, config.text_layer_norm_eps)

    def forward(self, x: Tensor, state: PruningState) -> tuple[Tensor, Tensor | None, Tensor | None]:
        query, key, value = self.self.query(x), self.self.key(x), self.self.value(x)
        if state.temperature is None:
            query, key, value = (split_heads(part, self.heads) for part in (query, key, value))
            mask = state.key_mask[:, None, None, :].to(query.dtype)
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            return self.output(merge_heads(context), x), None, None
        qkv = torch.cat([query, key, value], dim=-1)
        context, column, class_score = state.attend(qkv, 0, self.heads)
        return self.output(context, x), column, class_score


def cross_attend(
    layers: Projections, heads: int, x: Tensor, state: PruningState, source: Tensor | PackedTokens
) -> Tensor:
    """Words [B, L, C] attend to all tokens of `source` [B, S, C']: no mask, no statistics, nothing pruned."""
    tokens = source.rows if isinstance(source, PackedTokens) else source
    return state.cross_attend(layers.query(x), layers.key(tokens), layers.value(tokens), heads, source)


class CrossAttention(nn.Module):
    """Words attend to the tokens of one image."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.self = Projections(config.text_hidden, config.vit_dim)
        self.output = Output(config.text_hidden, config.text_hidden, config.text_layer_norm_eps)

    def forward(self, x: Tensor, state: PruningState, source: Tensor | PackedTokens) -> Tensor:
        return self.output(cross_attend(self.self, self.heads, x, state, source), x)


class Intermediate(nn.Module):
    """First half of the feed-forward network, exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class Layer(nn.Module):
    """Post-norm BERT layer; words are pruned after self-attention, before cross-attention.

    Without `images` cross-attention is skipped, as in BLIP's text-only mode.
    """

    def __init__(self, config: BlipConfig, crossattention: nn.Module) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.crossattention = crossattention
        self.intermediate = Intermediate(config.text_hidden, config.text_inter)
        self.output = Output(config.text_inter, config.text_hidden, config.text_layer_norm_eps)

    def forward(
        self,
        x: Tensor,
        images: Sequence[Tensor | PackedTokens],
        space_dict: Tensor,
        state: PruningState,
        layer: int,
    ) -> Tensor:
        hidden, column, class_score = self.attention(x, state)
        if column is not None and class_score is not None:
            hidden = state.compact(hidden, align(x, space_dict, state), column, class_score, layer)
        if images:
            hidden = self.crossattention(hidden, state, *images)
        return self.output(self.intermediate(hidden), hidden)


class Encoder(nn.Module):
    """Holds the layers under the checkpoint's key."""

    def __init__(self, config: BlipConfig, crossattentions: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, crossattention) for crossattention in crossattentions)


class TextEncoder(PruningModule):
    """Ids [B, L], and the tokens of images -> hidden states [B, n, C], or packed rows [R, C].

    Attributes:
        padding_counts: texts are filled up to one length as part of the model, and what fills them are tokens;
            otherwise it only makes a batch of them, and has no rows in the packed layout.
    """

    def __init__(self, config: BlipConfig, padding_counts: bool = False) -> None:
        super().__init__()
        self.padding_counts = padding_counts
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config, self.crossattentions(config))

    @staticmethod
    def crossattentions(config: Any) -> Iterator[nn.Module]:
        """That of every layer."""
        return (CrossAttention(config) for _ in range(config.text_layers))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        images: Sequence[Tensor | PackedTokens],
        space_dict: Tensor,
        temperature: Tensor | None,
        *,
        collect_aligned: bool = False,
    ) -> tuple[Tensor, PruningState]:
        """Args: input_ids, attention_mask [B, L] int64; images [B, S, C'] or packed; temperature None is dense."""
        x = self.embeddings(input_ids)
        mask = key_mask(attention_mask)
        state = PruningState.start(mask, temperature, keep_margin=self.keep_margin, collect_aligned=collect_aligned)
        if self.packed:
            valid = None if self.padding_counts else attention_mask.bool()
            x, state = pack_state(x, state, valid=valid, capacities=self.capacities)
        for index, layer in enumerate(self.encoder.layer):
            x = layer(x, images, space_dict, state, index)
            if state.temperature is None:
                state.count_unpruned(x)
        return x, state


def key_mask(attention_mask: Tensor) -> Tensor:
    """[B, L] of ones (words) and zeros (padding) -> [B, L] float32, what is added to the scores of each key."""
    return (1 - attention_mask.to(torch.float32)) * MASKED
