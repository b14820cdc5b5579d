"""CLIP with MADTP: images and captions -> one embedding space, both encoders pruned.

Module names are the checkpoint's keys.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.errors import InputError
from madtp.models.config import ClipConfig
from madtp.models.model import PrunedModel
from madtp.models.packed import pack_state
from madtp.models.pruning import PruningModule, PruningState, align
from madtp.ops.reference import merge_heads, split_heads

IMAGE_MAX_KEEP = 1  # an image layer prunes where more than this many patches stay
TEXT_MAX_KEEP = 2  # a text layer, where more than the largest end-of-text position of the batch plus this
MLP_RATIO = 4

# What the official loader rounds: parameters of Conv2d, Linear and MultiheadAttention, and the two bare projections.
_ROUNDED = re.compile(
    r"(^|\.)(conv1|c_fc|c_proj|out_proj|q_map\.\d+)\.(weight|bias)$"
    r"|(^|\.)in_proj_(weight|bias)$"
    r"|^(visual\.proj|text_projection)$"
)


def round_like_official_loader(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` with the weights that the official code rounds to float16 rounded so, in float32.

    Published numbers are of these weights: the loader halves every convolution, linear layer, attention and projection,
    copies the checkpoint into them, and casts the model back. Embeddings, LayerNorm and `space_dict` keep their digits.
    What is no tensor of numbers is passed on, for `load_state` to name.
    """
    return {key: _rounded(value) if _ROUNDED.search(key) else value for key, value in state.items()}


def _rounded(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return value.to(torch.float16).to(torch.float32)


class ImageFeatures(NamedTuple):
    """Features [B, E] in the joint space, not normalised; tokens after each layer [B, layers], int32."""

    image_feature: Tensor
    vision_token_counts: Tensor


class TextFeatures(NamedTuple):
    """Features [B, E] in the joint space, not normalised; tokens after each layer [B, layers], int32.

    `text_picked_position` [B] int32: position in the caption of the token that the feature was read from, -(layer + 1)
    for a merged one. Pruning moves tokens, so it is the end-of-text token's only where nothing was pruned.
    """

    text_feature: Tensor
    text_token_counts: Tensor
    text_picked_position: Tensor


class ClipOutput(NamedTuple):
    """All of B images and M captions: embeddings of length 1 [B, E] and [M, E], cosine similarities [B, M], parts."""

    image_embed: Tensor
    text_embed: Tensor
    sim: Tensor
    image_feature: Tensor
    text_feature: Tensor
    vision_token_counts: Tensor
    text_token_counts: Tensor
    text_picked_position: Tensor


class Attention(nn.Module):
    """Self-attention over [B, L, C]; with a temperature it returns the column and class scores too."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, state: PruningState) -> tuple[Tensor, Tensor | None, Tensor | None]:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if state.temperature is None:
            query, key, value = (split_heads(part, self.heads) for part in qkv.chunk(3, dim=-1))
            context = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
            return self.out_proj(merge_heads(context)), None, None
        context, column, class_score = state.attend(qkv, int(self.causal), self.heads)
        return self.out_proj(context), column, class_score


class Mlp(nn.Module):
    """Two linear layers around CLIP's approximation of GELU, x sigmoid(1.702 x)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, MLP_RATIO * width)
        self.c_proj = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.c_fc(x)
        return self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class QueryModel(nn.Module):
    """[B, L, C] -> [B, L, sd_dim]: a layer's input in the width of `space_dict`, to be aligned with it."""

    def __init__(self, width: int, sd_dim: int) -> None:
        super().__init__()
        self.q_map = nn.Sequential(nn.Linear(width, sd_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.q_map(x)


class Block(nn.Module):
    """Pre-norm transformer block; tokens are pruned between attention and feed-forward network."""

    def __init__(self, width: int, heads: int, causal: bool, sd_dim: int, eps: float) -> None:
        super().__init__()
        self.attn = Attention(width, heads, causal)
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.query_model = QueryModel(width, sd_dim)

    def forward(self, x: Tensor, space_dict: Tensor, state: PruningState, layer: int) -> Tensor:
        attended, column, class_score = self.attn(self.ln_1(x), state)
        hidden = x + attended
        if column is not None and class_score is not None:
            alignment = align(self.query_model(x), space_dict, state)
            hidden = state.compact(hidden, alignment, column, class_score, layer)
        return hidden + self.mlp(self.ln_2(hidden))


class Transformer(nn.Module):
    """Tokens [B, L, C] -> [B, n, C]; `state` says what is left of them."""

    def __init__(self, width: int, layers: int, heads: int, *, causal: bool, sd_dim: int, eps: float) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, causal, sd_dim, eps) for _ in range(layers))

    def forward(self, x: Tensor, space_dict: Tensor, state: PruningState) -> Tensor:
        for layer, block in enumerate(self.resblocks):
            x = block(x, space_dict, state, layer)
            if state.temperature is None:
                state.count_unpruned(x)
        return x


class VisionTransformer(PruningModule):
    """Images [B, 3, S, S] -> features [B, E] of the class token."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        width, eps = config.vision_width, config.layer_norm_eps
        self.conv1 = nn.Conv2d(3, width, kernel_size=config.patch_size, stride=config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(config.vision_tokens, width))
        self.ln_pre = nn.LayerNorm(width, eps=eps)
        self.transformer = Transformer(
            width, config.vision_layers, config.vision_heads, causal=False, sd_dim=config.sd_dim, eps=eps
        )
        self.ln_post = nn.LayerNorm(width, eps=eps)
        self.proj = nn.Parameter(torch.zeros(width, config.embed_dim))

    def forward(self, image: Tensor, space_dict: Tensor, temperature: Tensor | None) -> tuple[Tensor, PruningState]:
        patches = self.conv1(image).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        state = PruningState.start(_no_mask(x), temperature, min_keep=IMAGE_MAX_KEEP + 1, keep_margin=self.keep_margin)
        if self.packed:
            x, state = pack_state(x, state, capacities=self.capacities)
        x = self.transformer(x, space_dict, state)
        return self.ln_post(state.class_tokens(x)) @ self.proj, state


def _no_mask(x: Tensor) -> Tensor:
    """Key mask of tokens [B, L, C] that are all seen: CLIP masks no padding."""
    return x.new_zeros(x.shape[:2], dtype=torch.float32)


class ClipModel(PrunedModel[ClipConfig]):
    """CLIP with MADTP."""

    task = "clip"

    def __init__(self, config: ClipConfig, temperature: float = 0.0) -> None:
        super().__init__(config, temperature)
        self.visual = VisionTransformer(config)
        self.transformer = Transformer(
            config.text_width,
            config.text_layers,
            config.text_heads,
            causal=True,
            sd_dim=config.sd_dim,
            eps=config.layer_norm_eps,
        )
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_width)
        self.positional_embedding = nn.Parameter(torch.zeros(config.context_length, config.text_width))
        self.ln_final = nn.LayerNorm(config.text_width, eps=config.layer_norm_eps)
        self.text_projection = nn.Parameter(torch.zeros(config.text_width, config.embed_dim))

    def encode_image(self, image: Tensor, temperature: Tensor | float | None = None) -> ImageFeatures:
        """Features of images [B, 3, S, S], normalised."""
        tau = self.resolve(temperature, image.device)
        feature, state = self.visual(image.to(self.space_dict.dtype), self.space_dict, tau)
        return ImageFeatures(feature.to(self._output_dtype()), state.token_counts())

    def encode_text(self, input_ids: Tensor, temperature: Tensor | float | None = None) -> TextFeatures:
        """Features of captions.

        A caption's feature is read where its end-of-text token was before pruning, as the published code does. Layers
        prune only while that position still exists in every caption of the batch, so a long caption keeps the
        rest of its batch unpruned; in the packed layout, while it exists in that caption.

        Args:
            input_ids: [B, context_length] int64: start of text, words, end of text (the largest id of the vocabulary,
                which is how it is found), padding.

        Raises:
            InputError: another length; positions are not interpolated.
        """
        if input_ids.dim() != 2 or input_ids.shape[1] != self.config.context_length:
            raise InputError(
                f"input_ids are {list(input_ids.shape)}, not [B, {self.config.context_length}]",
                "Positions behind the caption take part in pruning, so every caption has the full context length.",
                "Pad captions with zeros.",
            )
        tau = self.resolve(temperature, input_ids.device)
        x = self.token_embedding(input_ids) + self.positional_embedding
        end = input_ids.int().argmax(dim=-1, keepdim=True)  # of int64 ONNX Runtime has it from 1.20 on alone
        state = PruningState.start(_no_mask(x), tau, keep_margin=self.keep_margin)
        state.min_keep = (end.squeeze(1) if self.packed else end.max()) + (TEXT_MAX_KEEP + 1)
        if self.packed:
            x, state = pack_state(x, state, capacities=self.capacities)
        x = self.transformer(x, self.space_dict, state)
        feature = self.ln_final(state.pick(x, end.squeeze(1))) @ self.text_projection
        position = state.pick(state.source_ids, end.squeeze(1))
        return TextFeatures(feature.to(self._output_dtype()), state.token_counts(), position)

    def forward(self, image: Tensor, input_ids: Tensor, temperature: Tensor | float | None = None) -> ClipOutput:
        """Compare every image with every caption.

        Args:
            image: [B, 3, S, S] float, normalised.
            input_ids: [M, context_length] int64, see `encode_text`.
        """
        images = self.encode_image(image, temperature)
        texts = self.encode_text(input_ids, temperature)
        image_embed, text_embed = normalize(images.image_feature), normalize(texts.text_feature)
        return ClipOutput(
            image_embed,
            text_embed,
            image_embed @ text_embed.mT,
            images.image_feature,
            texts.text_feature,
            images.vision_token_counts,
            texts.text_token_counts,
            texts.text_picked_position,
        )

    def _output_dtype(self) -> torch.dtype:
        return torch.promote_types(self.space_dict.dtype, torch.float32)


def normalize(feature: Tensor) -> Tensor:
    """Embeddings [B, E] of length 1."""
    return F.normalize(feature, dim=-1)
