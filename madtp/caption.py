"""BLIP captioning with MADTP: an image -> a sentence about it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from madtp.config import CaptionConfig
from madtp.decoder import DecoderSession, TextDecoder
from madtp.generation import Limits, beam_search, greedy_search
from madtp.pruning import resolve_temperature
from madtp.vision import VisionTransformer


class CaptionOutput(NamedTuple):
    """Image states [B, S, C], S tokens being left; tokens after each vision layer, [B, layers] int32."""

    image_states: Tensor
    vision_token_counts: Tensor


class CaptionModel(nn.Module):
    """BLIP captioning with MADTP, parameters named as in the official checkpoints.

    `forward` is the image encoder, `text_decoder.source_cache` and `text_decoder.step` are the decoder, and `generate`
    drives the latter. `model.half()` and `model.bfloat16()` work: images and logits stay float32, and so do all scores.

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

    def limits(self, max_length: int, min_length: int) -> Limits:
        """Lengths, prompt included, with this model's ids."""
        return Limits(max_length, min_length, self.config.sep_token_id, self.config.pad_token_id)

    @torch.no_grad()
    def generate(
        self, image_states: Tensor, prompt_ids: Tensor, *, beams: int = 3, max_length: int = 20, min_length: int = 5
    ) -> Tensor:
        """Captions of encoded images.

        Args:
            image_states: [B, S, C], from `forward`.
            prompt_ids: [B, P] int64, [DEC] first, without [SEP].
            beams: 1 is greedy search.
            max_length, min_length: see `Limits`; the prompt counts.

        Returns:
            [B, length] int64, prompt included, padding behind [SEP].
        """
        limits = self.limits(max_length, min_length)
        limits.check(prompt_ids, self.config.max_position)
        session = DecoderSession(self.text_decoder, image_states, beams)
        if beams == 1:
            return greedy_search(session, prompt_ids, limits)
        return beam_search(session, prompt_ids, limits, beams)
