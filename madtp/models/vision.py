"""The vision transformer of BLIP, pruning its patch tokens layer by layer. Module names are the checkpoint's keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.models.config import BlipConfig
from madtp.models.packed import pack_state
from madtp.models.pruning import PruningModule, PruningState, align
from madtp.ops.reference import merge_heads, split_heads


class PatchEmbed(nn.Module):
    """[B, 3, S, S] -> [B, (S / patch)^2, C], rows of the patch grid end to end."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).flatten(2).mT


class Attention(nn.Module):
    """Self-attention over tokens; with a temperature it returns the column and class scores too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, state: PruningState) -> tuple[Tensor, Tensor | None, Tensor | None]:
        qkv = self.qkv(x)
        if state.temperature is None:
            query, key, value = (split_heads(part, self.heads) for part in qkv.chunk(3, dim=-1))
            return self.proj(merge_heads(F.scaled_dot_product_attention(query, key, value))), None, None
        context, column, class_score = state.attend(qkv, 0, self.heads)
        return self.proj(context), column, class_score


class Mlp(nn.Module):
    """Two linear layers around an exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block; tokens are pruned between attention and feed-forward network."""

    def __init__(self, width: int, heads: int, mlp: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, mlp)

    def forward(self, x: Tensor, space_dict: Tensor, state: PruningState, layer: int) -> Tensor:
        attended, column, class_score = self.attn(self.norm1(x), state)
        hidden = x + attended
        if column is not None and class_score is not None:
            hidden = state.compact(hidden, align(x, space_dict, state), column, class_score, layer)
        return hidden + self.mlp(self.norm2(hidden))


class VisionTransformer(PruningModule):
    """Images [B, 3, S, S] -> tokens [B, n, C] after the final norm, or packed rows [R, C].

    Attributes:
        images: of a request.
    """

    def __init__(self, config: BlipConfig, images: int = 1) -> None:
        super().__init__()
        self.images = images
        width, eps = config.vit_dim, config.vit_layer_norm_eps
        self.grid = config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(width, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2 + 1, width))
        self.blocks = nn.ModuleList(
            Block(width, config.vit_heads, config.vit_mlp, eps) for _ in range(config.vit_depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(
        self, image: Tensor, space_dict: Tensor, temperature: Tensor | None, *, collect_aligned: bool = False
    ) -> tuple[Tensor, PruningState]:
        patches = self.patch_embed(image)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        everything = x.new_zeros(x.shape[:2], dtype=torch.float32)  # patches are never masked
        state = PruningState.start(
            everything, temperature, keep_margin=self.keep_margin, collect_aligned=collect_aligned
        )
        if self.packed:
            x, state = pack_state(x, state, group=self.images, capacities=self.capacities)
        for layer, block in enumerate(self.blocks):
            x = block(x, space_dict, state, layer)
            if state.temperature is None:
                state.count_unpruned(x)
        return self.norm(x), state
