"""BLIP captioning with MADTP: an image -> a sentence about it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from madtp.models.config import CaptionConfig
from madtp.models.decoder import TextDecoder
from madtp.models.pruning import resolve_temperature
from madtp.models.vision import VisionTransformer


class CaptionOutput(NamedTuple):
    """Image states [B, S, C], S tokens being left; tokens after each vision layer, [B, layers] int32."""

    image_states: Tensor
    vision_token_counts: Tensor


class CaptionModel(nn.Module):
    """BLIP captioning with MADTP, parameters named as in the official checkpoints.

    `forward` is the image encoder, `text_decoder.source_cache` and `text_decoder.step` are the decoder, which
    `madtp.tasks.captions` drives. `model.half()` and `model.bfloat16()` work: images and logits stay float32, and so
    do all scores.

    Attributes:
        config: its sizes.
        task: "caption".
        temperature: the pruning temperature that the checkpoint was trained to; the default of `forward`.
    """

    task = "caption"
    input_names = ("image", "temperature")
    output_names = CaptionOutput._fields

    def __init__(self, config: CaptionConfig, temperature: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.temperature = temperature
        self.space_dict = nn.Parameter(torch.zeros(config.sd_num, config.sd_dim))
        self.visual_encoder = VisionTransformer(config)
        self.text_decoder = TextDecoder(config, config.vit_dim)

    def forward(self, image: Tensor, temperature: Tensor | float | None = None) -> CaptionOutput:
        """Encode a batch of images.

        Args:
            image: [B, 3, S, S] float, normalised.
            temperature: [] float32 tensor or float; None is the model's own. A float of zero or less runs the dense
                model without any statistics, a tensor of zero or less computes them and prunes nothing.
        """
        tau = resolve_temperature(temperature, self.temperature, image.device)
        states, vision = self.visual_encoder(image.to(self.space_dict.dtype), self.space_dict, tau)
        return CaptionOutput(states, vision.token_counts())
