"""BLIP's text decoder: BERT layers that write a text word by word, looking at encoder states. It is never pruned.

Symbols: B samples; n texts a sample (beams, or candidate answers), all of which look at that sample's states; L new
ids a text; P ids that the cache holds; S encoder states; C width; H heads, D = C / H; V vocabulary. The cache of the
words is [layers, 2 (key, value), B, n, H, P, D], that of the encoder states [layers, 2, B, H, S, D]: the texts of one
sample share the latter, so nothing is copied n times. Module names are the checkpoint's keys.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.errors import CheckpointError
from madtp.models.bert import Embeddings, Intermediate, Output, Projections
from madtp.models.config import BlipConfig
from madtp.models.packed import PackedTokens, pad
from madtp.ops.reference import MASKED, merge_heads, split_heads


class DecoderEmbeddings(Embeddings):
    """Word and position embeddings, normalised, of ids that follow `past` others: [B, n, L] -> [B, n, L, C]."""

    def forward(self, input_ids: Tensor, past: int = 0) -> Tensor:
        positions = self.position_embeddings.weight[past : past + input_ids.shape[-1]]
        return self.LayerNorm(self.word_embeddings(input_ids) + positions)


class CausalAttention(nn.Module):
    """Words attend to the words before them, those in the cache included."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.self = Projections(config.text_hidden, config.text_hidden)
        self.output = Output(config.text_hidden, config.text_hidden, config.text_layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Args: x [B, n, L, C]; mask, added to the scores [B, n, H, L, P + L]; past [2, B, n, H, P, D] or None.

        Returns:
            x after attention, [B, n, L, C], and keys and values of old and new words, [2, B, n, H, P + L, D].
        """
        parts = (self.self.query(x), self.self.key(x), self.self.value(x))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(2, 3) for part in parts)
        present = torch.stack([key, value])
        if past is not None:
            present = torch.cat([past, present], dim=-2)
        key, value = present.unbind()
        scores = (query / math.sqrt(query.shape[-1])) @ key.mT + mask
        context = scores.softmax(dim=-1) @ value
        return self.output(context.transpose(2, 3).flatten(3), x), present


class StateAttention(nn.Module):
    """Words attend to all encoder states of their sample, padded ones included, as in the published code."""

    def __init__(self, config: BlipConfig, source_width: int) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.self = Projections(config.text_hidden, source_width)
        self.output = Output(config.text_hidden, config.text_hidden, config.text_layer_norm_eps)

    def cache(self, states: Tensor) -> Tensor:
        """States [B, S, C'] -> their keys and values [2, B, H, S, D]."""
        return torch.stack([split_heads(part(states), self.heads) for part in (self.self.key, self.self.value)])

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None) -> Tensor:
        """Args: x [B, n, L, C]; source [2, B, H, S, D], what `cache` gave; bias, added to the scores [B, H, n L, S]."""
        key, value = source.unbind()
        query = split_heads(self.self.query(x).flatten(1, 2), self.heads)  # a sample's texts look at the same states
        scores = (query / math.sqrt(query.shape[-1])) @ key.mT
        if bias is not None:
            scores = scores + bias
        context = merge_heads(scores.softmax(dim=-1) @ value).unflatten(1, x.shape[1:3])
        return self.output(context, x)


class DecoderLayer(nn.Module):
    """Post-norm BERT layer: self-attention, attention to encoder states, feed-forward network."""

    def __init__(self, config: BlipConfig, source_width: int) -> None:
        super().__init__()
        self.attention = CausalAttention(config)
        self.crossattention = StateAttention(config, source_width)
        self.intermediate = Intermediate(config.text_hidden, config.text_inter)
        self.output = Output(config.text_inter, config.text_hidden, config.text_layer_norm_eps)

    def forward(
        self, x: Tensor, mask: Tensor, past: Tensor | None, source: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        hidden, present = self.attention(x, mask, past)
        hidden = self.crossattention(hidden, source, bias)
        return self.output(self.intermediate(hidden), hidden), present


class DecoderStack(nn.Module):
    """Holds the layers under the checkpoint's key."""

    def __init__(self, config: BlipConfig, source_width: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList(DecoderLayer(config, source_width) for _ in range(config.text_layers))


class DecoderBert(nn.Module):
    """Holds embeddings and layers under the checkpoint's key."""

    def __init__(self, config: BlipConfig, source_width: int) -> None:
        super().__init__()
        self.embeddings = DecoderEmbeddings(config)
        self.encoder = DecoderStack(config, source_width)


class Transform(nn.Module):
    """Linear layer, exact GELU and norm before the vocabulary."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.text_hidden, config.text_hidden)
        self.LayerNorm = nn.LayerNorm(config.text_hidden, eps=config.text_layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x)))


class Predictions(nn.Module):
    """Hidden states [..., C] -> logits [..., V]."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.text_hidden, config.vocab_size)
        self.bias = self.decoder.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.transform(x))


class Head(nn.Module):
    """Holds the predictions under the checkpoint's key."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.predictions = Predictions(config)


class TextDecoder(nn.Module):
    """Ids and encoder states -> logits of the next ids.

    The output weights are the word embeddings. Checkpoints hold both copies (and two of the output bias); loading
    checks that they are equal and keeps one.
    """

    # The copy, and what it is a copy of.
    TIED = (
        ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    )

    def __init__(self, config: BlipConfig, source_width: int) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.bert = DecoderBert(config, source_width)
        self.cls = Head(config)
        self.tie()
        self.register_load_state_dict_pre_hook(_check_tied)
        self.register_load_state_dict_post_hook(_tie_loaded)

    def tie(self) -> None:
        """Make the copies one parameter; loading a state dict by assignment parts them."""
        self.cls.predictions.decoder.weight = self.bert.embeddings.word_embeddings.weight
        self.cls.predictions.decoder.bias = self.cls.predictions.bias

    def source_cache(self, states: Tensor) -> Tensor:
        """Encoder states [B, S, C'] -> keys and values of every layer, [layers, 2, B, H, S, D]; once a request."""
        caches = []
        for layer in self.bert.encoder.layer:
            assert isinstance(layer, DecoderLayer)
            caches.append(layer.crossattention.cache(states))
        return torch.stack(caches)

    def packed_source_cache(self, states: PackedTokens, longest: int | None) -> Tensor:
        """As `source_cache`, of rows; zeros behind the states of samples that have fewer than S. See `pad`."""
        parts = []
        for layer in self.bert.encoder.layer:
            assert isinstance(layer, DecoderLayer)
            projections = layer.crossattention.self
            parts += [projections.key(states.rows), projections.value(states.rows)]
        layers, heads = len(self.bert.encoder.layer), self.heads
        cache = pad(PackedTokens(torch.cat(parts, dim=-1), states.cu_seqlens), longest)
        return cache.unflatten(-1, (layers, 2, heads, -1)).permute(2, 3, 0, 4, 1, 5)

    def step(self, input_ids: Tensor, rows: Tensor, past: Tensor, source: "Source") -> tuple[Tensor, Tensor]:
        """Logits of the id after the given ones, and the cache for the next step. See `DecoderStep`."""
        past = past.flatten(2, 3).index_select(2, rows.flatten()).unflatten(2, input_ids.shape[:2])
        mask = self._causal_mask(input_ids.shape[-1], past.shape[-2], past)
        hidden, present = self._layers(input_ids, mask, past, source.cache, source.bias())
        return self.cls.predictions(hidden[:, :, -1]).to(torch.float32), present

    def forward(self, input_ids: Tensor, attention_mask: Tensor, source: Tensor) -> Tensor:
        """Logits after every id of whole texts.

        Args:
            input_ids, attention_mask: [B, n, L] int64; the mask is 1 for words and 0 for padding.
            source: [layers, 2, B, H, S, D], what `source_cache` gave.

        Returns:
            Logits [B, n, L, V] float32.
        """
        causal = self._causal_mask(input_ids.shape[-1], 0, source)
        padding = (1 - attention_mask.to(source.dtype)) * MASKED
        # The smaller of the two: an id that is both later and padding is masked once.
        mask = torch.minimum(causal, padding[:, :, None, None, :])
        hidden, _ = self._layers(input_ids, mask, None, source, None)
        return self.cls.predictions(hidden).to(torch.float32)

    def _causal_mask(self, length: int, past: int, like: Tensor) -> Tensor:
        """[L, P + L]: 0 where a query may look, -10000 at later keys."""
        queries = torch.arange(past, past + length, device=like.device)
        keys = torch.arange(past + length, device=like.device)
        return (keys > queries[:, None]).to(like.dtype) * MASKED

    def _layers(
        self, input_ids: Tensor, mask: Tensor, past: Tensor | None, source: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = self.bert.embeddings(input_ids, 0 if past is None else past.shape[-2])
        present = []
        for index, layer in enumerate(self.bert.encoder.layer):
            x, cache = layer(x, mask, None if past is None else past[index], source[index], bias)
            present.append(cache)
        return x, torch.stack(present)


def _check_tied(module: TextDecoder, state: Mapping[str, Tensor], prefix: str, *_: Any) -> None:
    """Raise CheckpointError where a checkpoint's copies of one tensor differ: which of them counts is unknown."""
    for copy, original in ((prefix + copy, prefix + original) for copy, original in TextDecoder.TIED):
        if copy in state and original in state and not torch.equal(state[copy], state[original]):
            raise CheckpointError(
                f"{copy} and {original} differ",
                "They are two copies of one tensor in every BLIP checkpoint.",
                "Save the model again with its output layer tied to its word embeddings.",
            )


def _tie_loaded(module: TextDecoder, _: Any) -> None:
    module.tie()


@dataclass(frozen=True)
class Source:
    """What a decoder looks at.

    Attributes:
        cache: [layers, 2, B, H, S, D], what `TextDecoder.source_cache` gave.
        lengths: [B] int64, in the packed layout: how many of the S states a sample has; None: all of them.
    """

    cache: Tensor
    lengths: Tensor | None = None

    @property
    def batch(self) -> int:
        """B."""
        return self.cache.shape[2]

    def of(self, sample: int) -> "Source":
        """That of one sample."""
        if self.lengths is None:
            return Source(self.cache[:, :, sample : sample + 1].contiguous())
        lengths = self.lengths[sample : sample + 1]
        return Source(self.cache[:, :, sample : sample + 1, :, : int(lengths)].contiguous(), lengths)

    def bias(self) -> Tensor | None:
        """[B, 1, 1, S]: minus infinity on states that a sample does not have."""
        if self.lengths is None:
            return None
        place = torch.arange(self.cache.shape[4], device=self.cache.device)
        missing = place >= self.lengths[:, None]
        zeros = torch.zeros(missing.shape, dtype=self.cache.dtype, device=self.cache.device)
        return zeros.masked_fill(missing, -math.inf)[:, None, None]


class DecoderStep(Protocol):
    """One step of a decoder: `TextDecoder.step`, or an engine made of it."""

    def __call__(self, input_ids: Tensor, rows: Tensor, past: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        """Logits of the id after the given ones, and the cache for the next step.

        Args:
            input_ids: [B, n, L] int64: the prompt where P = 0, then the newest id. None is padding that is masked.
            rows: [B, n] int64, which text (b * n + i) of the step before each text continues.
            past: [layers, 2, B, n, H, P, D]; see `empty_cache`.
            source: what to look at.

        Returns:
            Logits [B, n, V] float32; cache [layers, 2, B, n, H, P + L, D].
        """
        ...


def empty_cache(source: Source, texts: int) -> Tensor:
    """The cache before the first step, [layers, 2, B, n, H, 0, D], for `texts` = n."""
    layers, pair, batch, heads, _, size = source.cache.shape
    return source.cache.new_empty(layers, pair, batch, texts, heads, 0, size)


class DecoderSession:
    """A decoder over the states of one request, as a `madtp.tasks.generation.Step`: it keeps the cache.

    Args:
        source: what it looks at.
        texts: n, texts that are written for each sample at once.
    """

    def __init__(self, step: DecoderStep, source: Source, texts: int) -> None:
        self.step = step
        self.source = source
        self.past = empty_cache(source, texts)
        self.everyone = torch.arange(source.batch * texts, device=source.cache.device)

    def __call__(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        """[B * n, L] new ids, and which text each continues (None: itself) -> logits [B * n, V]."""
        shape = self.past.shape[2:4]
        rows = self.everyone if rows is None else rows
        logits, self.past = self.step(input_ids.unflatten(0, shape), rows.unflatten(0, shape), self.past, self.source)
        return logits.flatten(0, 1)
