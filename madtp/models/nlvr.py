"""BLIP-NLVR with MADTP: two images and a sentence -> is the sentence true of them?"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from madtp.models.config import NlvrConfig
from madtp.models.model import PrunedModel
from madtp.models.packed import halves
from madtp.models.text import TwinTextEncoder
from madtp.models.vision import VisionTransformer


class NlvrOutput(NamedTuple):
    """Logits [B, 2] (false, true); tokens after each layer, vision [2B, layers] and text [B, layers], int32."""

    logits: Tensor
    vision_token_counts: Tensor
    text_token_counts: Tensor


class NlvrModel(PrunedModel[NlvrConfig]):
    """BLIP-NLVR with MADTP."""

    task = "nlvr"

    def __init__(self, config: NlvrConfig, temperature: float = 0.0) -> None:
        super().__init__(config, temperature)
        self.visual_encoder = VisionTransformer(config, images=2)
        self.text_encoder = TwinTextEncoder(config)
        self.cls_head = nn.Sequential(
            nn.Linear(config.text_hidden, config.text_hidden), nn.ReLU(), nn.Linear(config.text_hidden, 2)
        )

    def forward(
        self,
        image0: Tensor,
        image1: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        temperature: Tensor | float | None = None,
    ) -> NlvrOutput:
        """Judge a batch of requests.

        Args:
            image0, image1: [B, 3, S, S] float, normalised.
            input_ids: [B, L] int64, first id [ENC]; attention_mask: [B, L], 1 for words and 0 for padding.
        """
        tau = self.resolve(temperature, image0.device)
        pixels = torch.cat([image0, image1]).to(self.space_dict.dtype)
        images, vision = self.visual_encoder(pixels, self.space_dict, tau)
        pair = halves(images, vision, image0.shape[0])
        words, text = self.text_encoder(input_ids, attention_mask, pair, self.space_dict, tau)
        logits = self.cls_head(text.class_tokens(words))
        return NlvrOutput(logits.to(image0.dtype), vision.token_counts(), text.token_counts())
