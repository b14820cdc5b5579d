"""BLIP-VQA with MADTP: an image and a question -> an answer, chosen from a list or written freely."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from madtp.models.bert import TextEncoder
from madtp.models.config import VqaConfig
from madtp.models.decoder import TextDecoder
from madtp.models.pruning import resolve_temperature
from madtp.models.vision import VisionTransformer


class VqaOutput(NamedTuple):
    """Question states [B, S, C], S tokens being left; tokens after each layer, vision and text [B, layers] int32."""

    question_states: Tensor
    vision_token_counts: Tensor
    text_token_counts: Tensor


class VqaModel(nn.Module):
    """BLIP-VQA with MADTP, parameters named as in the official checkpoints.

    `forward` is the question encoder, `text_decoder.source_cache` and `text_decoder.step` are the decoder, which
    `madtp.tasks.answers` drives. `model.half()` and `model.bfloat16()` work: images and logits stay float32, and so
    do all scores.

    Attributes:
        config: its sizes.
        task: "vqa".
        temperature: the pruning temperature that the checkpoint was trained to; the default of `forward`.
    """

    task = "vqa"
    input_names = ("image", "input_ids", "attention_mask", "temperature")
    output_names = VqaOutput._fields

    def __init__(self, config: VqaConfig, temperature: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.temperature = temperature
        self.space_dict = nn.Parameter(torch.zeros(config.sd_num, config.sd_dim))
        self.visual_encoder = VisionTransformer(config)
        self.text_encoder = TextEncoder(config)
        self.text_decoder = TextDecoder(config, config.text_hidden)

    def forward(
        self,
        image: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        temperature: Tensor | float | None = None,
    ) -> VqaOutput:
        """Encode a batch of questions about images.

        Args:
            image: [B, 3, S, S] float, normalised.
            input_ids: [B, L] int64, first id [ENC]; attention_mask: [B, L], 1 for words and 0 for padding.
            temperature: [] float32 tensor or float; None is the model's own. A float of zero or less runs the dense
                model without any statistics, a tensor of zero or less computes them and prunes nothing.
        """
        tau = resolve_temperature(temperature, self.temperature, image.device)
        states, vision = self.visual_encoder(image.to(self.space_dict.dtype), self.space_dict, tau)
        words, text = self.text_encoder(input_ids, attention_mask, states, self.space_dict, tau)
        return VqaOutput(words, vision.token_counts(), text.token_counts())
