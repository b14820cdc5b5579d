"""NLVR's BERT: twin cross-attention, one branch an image; prunes its words. Module names are checkpoint keys."""

import torch
from torch import Tensor, nn

from madtp.models.bert import Embeddings, Intermediate, Output, Projections, SelfAttention, cross_attend, key_mask
from madtp.models.config import NlvrConfig
from madtp.models.pruning import PruningState, align, compact


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

    def forward(self, x: Tensor, image0: Tensor, image1: Tensor) -> Tensor:
        first, second = (
            cross_attend(layers, self.heads, x, image) for layers, image in ((self.self0, image0), (self.self1, image1))
        )
        return self.output(first, second, x)


class Layer(nn.Module):
    """Post-norm BERT layer; words are pruned after self-attention, before cross-attention."""

    def __init__(self, config: NlvrConfig, merge: bool) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.crossattention = TwinCrossAttention(config, merge)
        self.intermediate = Intermediate(config.text_hidden, config.text_inter)
        self.output = Output(config.text_inter, config.text_hidden, config.text_layer_norm_eps)

    def forward(
        self, x: Tensor, image0: Tensor, image1: Tensor, space_dict: Tensor, state: PruningState, layer: int
    ) -> Tensor:
        hidden, column, class_score = self.attention(x, state)
        if column is not None and class_score is not None:
            hidden = compact(hidden, align(x, space_dict, state), column, class_score, state, layer)
        hidden = self.crossattention(hidden, image0, image1)
        return self.output(self.intermediate(hidden), hidden)


class Encoder(nn.Module):
    """Holds the layers under the checkpoint's key."""

    def __init__(self, config: NlvrConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config, index >= config.merge_from) for index in range(config.text_layers))


class TextEncoder(nn.Module):
    """Ids [B, L] and the tokens of two images -> hidden states [B, n, C]."""

    def __init__(self, config: NlvrConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image0: Tensor,
        image1: Tensor,
        space_dict: Tensor,
        temperature: Tensor | None,
        *,
        collect_aligned: bool = False,
    ) -> tuple[Tensor, PruningState]:
        x = self.embeddings(input_ids)
        state = PruningState.start(key_mask(attention_mask), temperature, collect_aligned=collect_aligned)
        for index, layer in enumerate(self.encoder.layer):
            x = layer(x, image0, image1, space_dict, state, index)
            if temperature is None:
                state.count_unpruned(x)
        return x, state
