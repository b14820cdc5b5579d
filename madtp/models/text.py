"""NLVR's BERT: twin cross-attention, one branch an image; prunes its words. Module names are checkpoint keys."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from madtp.models.bert import Projections, TextEncoder, cross_attend
from madtp.models.config import NlvrConfig
from madtp.models.packed import PackedTokens
from madtp.models.pruning import PruningState


class TwinOutput(nn.Module):
    """Joins the two branches: their mean, or (`merge`) a linear layer over both side by side; then residual, norm."""

    def __init__(self, width: int, eps: float, merge: bool) -> None:
        super().__init__()
        self.dense0 = nn.Linear(width, width)
        self.dense1 = nn.Linear(width, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.merge_layer = nn.Linear(2 * width, width) if merge else None

    def forward(self, first: Tensor, second: Tensor, residual: Tensor) -> Tensor:
        first, second = self.dense0(first), self.dense1(second)
        joined = (first + second) / 2
        if self.merge_layer is not None:
            joined = self.merge_layer(torch.cat([first, second], dim=-1))
        return self.LayerNorm(joined + residual)


class TwinCrossAttention(nn.Module):
    """Words attend to the tokens of each image in a branch of its own. No statistics: images are pruned already."""

    def __init__(self, config: NlvrConfig, merge: bool) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.self0 = Projections(config.text_hidden, config.vit_dim)
        self.self1 = Projections(config.text_hidden, config.vit_dim)
        self.output = TwinOutput(config.text_hidden, config.text_layer_norm_eps, merge)

    def forward(
        self, x: Tensor, state: PruningState, image0: Tensor | PackedTokens, image1: Tensor | PackedTokens
    ) -> Tensor:
        branches = ((self.self0, image0), (self.self1, image1))
        first, second = (cross_attend(layers, self.heads, x, state, image) for layers, image in branches)
        return self.output(first, second, x)


class TwinTextEncoder(TextEncoder):
    """Ids [B, L] and the tokens of two images -> hidden states [B, n, C]."""

    @staticmethod
    def crossattentions(config: NlvrConfig) -> Iterator[nn.Module]:
        return (TwinCrossAttention(config, index >= config.merge_from) for index in range(config.text_layers))
