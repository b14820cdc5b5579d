"""BLIP retrieval with MADTP: embeds images and texts, and matches pairs of them. `madtp/tasks/ranking.py` ranks with
it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.models.bert import TextEncoder
from madtp.models.config import RetrievalConfig
from madtp.models.model import PrunedModel
from madtp.models.packed import padded, unpad
from madtp.models.vision import VisionTransformer


class ImageOutput(NamedTuple):
    """Of B images: embeddings [B, E] of length one; tokens [B, n, C] for the matching; counts [B, layers] int32."""

    image_embed: Tensor
    image_tokens: Tensor
    vision_token_counts: Tensor


class PackedImageOutput(NamedTuple):
    """`ImageOutput` in the packed layout: of n tokens, the first `image_lengths` [B] int64 are an image's, and the rest
    zeros."""

    image_embed: Tensor
    image_tokens: Tensor
    image_lengths: Tensor
    vision_token_counts: Tensor


class TextOutput(NamedTuple):
    """Of B texts: embeddings [B, E] of length one; tokens after each layer, [B, layers] int32."""

    text_embed: Tensor
    text_token_counts: Tensor


class MatchOutput(NamedTuple):
    """Of B pairs: logits [B, 2] (no match, match); tokens of the text after each layer, [B, layers] int32."""

    itm_logits: Tensor
    text_token_counts: Tensor


class RetrievalModel(PrunedModel[RetrievalConfig]):
    """BLIP retrieval with MADTP.

    Three parts, each a method: `encode_image` and `encode_text` make the embeddings that are compared first, `match`
    looks at one image and one text together. All three prune; `encode_text` and `match` share the text encoder, and
    `match` alone uses its cross-attention. The image tokens have the model's type.
    """

    task = "retrieval"

    def __init__(self, config: RetrievalConfig, temperature: float = 0.0) -> None:
        super().__init__(config, temperature)
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config, padding_counts=True)
        self.vision_proj = nn.Linear(config.vit_dim, config.embed_dim)
        self.text_proj = nn.Linear(config.text_hidden, config.embed_dim)
        self.itm_head = nn.Linear(config.text_hidden, 2)

    def encode_image(self, image: Tensor, temperature: Tensor | float | None = None) -> ImageOutput | PackedImageOutput:
        """Embed images [B, 3, S, S] float, normalised."""
        tau = self.resolve(temperature, image.device)
        tokens, state = self.visual_encoder(image.to(self.space_dict.dtype), self.space_dict, tau)
        embedded = _embed(self.vision_proj, state.class_tokens(tokens))
        counts = state.token_counts()
        if self.packed:
            return PackedImageOutput(embedded, padded(tokens, state), counts[:, -1].to(torch.int64), counts)
        return ImageOutput(embedded, tokens, counts)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, temperature: Tensor | float | None = None
    ) -> TextOutput:
        """Embed texts.

        Args:
            input_ids: [B, L] int64, first id [CLS]; attention_mask: [B, L], 1 for words and 0 for padding.
        """
        tau = self.resolve(temperature, input_ids.device)
        words, state = self.text_encoder(input_ids, attention_mask, (), self.space_dict, tau)
        return TextOutput(_embed(self.text_proj, state.class_tokens(words)), state.token_counts())

    def match(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_tokens: Tensor,
        temperature: Tensor | float | None = None,
        image_lengths: Tensor | None = None,
    ) -> MatchOutput:
        """Judge pairs: does the text describe the image?

        Args:
            input_ids: [B, L] int64, first id [ENC]; attention_mask: [B, L], 1 for words and 0 for padding.
            image_tokens: [B, n, C] of `encode_image`, one image a text. The text attends to all n of them.
            image_lengths: [B] int64, in the packed layout: how many of them are the image's.
        """
        tau = self.resolve(temperature, input_ids.device)
        tokens = image_tokens.to(self.space_dict.dtype)
        source = tokens if image_lengths is None else unpad(tokens, image_lengths, sized=self.sized)
        words, state = self.text_encoder(input_ids, attention_mask, (source,), self.space_dict, tau)
        return MatchOutput(_at_least_float32(self.itm_head(state.class_tokens(words))), state.token_counts())


def _embed(projection: nn.Linear, class_tokens: Tensor) -> Tensor:
    """[B, C] -> [B, E]: projected, of length one."""
    return F.normalize(_at_least_float32(projection(class_tokens)), dim=-1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
