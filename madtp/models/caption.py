"""BLIP captioning with MADTP: an image -> a sentence about it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from madtp.models.config import CaptionConfig
from madtp.models.decoder import DecoderSession, DecoderStep, TextDecoder
from madtp.models.pruning import resolve_temperature
from madtp.models.vision import VisionTransformer
from madtp.tasks.generation import Limits, beam_search, greedy_search


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

    @torch.no_grad()
    def generate(
        self, image_states: Tensor, prompt_ids: Tensor, *, beams: int = 3, max_length: int = 20, min_length: int = 5
    ) -> Tensor:
        """Captions of encoded images [B, S, C], from `forward`; see `write_captions`."""
        source = self.text_decoder.source_cache(image_states)
        lengths = {"max_length": max_length, "min_length": min_length}
        return write_captions(self.text_decoder.step, source, prompt_ids, self.config, beams=beams, **lengths)


def write_captions(
    step: DecoderStep,
    source: Tensor,
    prompt_ids: Tensor,
    config: CaptionConfig,
    *,
    beams: int = 3,
    max_length: int = 20,
    min_length: int = 5,
) -> Tensor:
    """Captions of encoded images.

    Args:
        step: the decoder, in torch or an engine.
        source: what its `source_cache` gave for the image states.
        prompt_ids: [B, P] int64, [DEC] first, without [SEP].
        beams: 1 is greedy search.
        max_length, min_length: see `Limits`; the prompt counts.

    Returns:
        [B, length] int64, prompt included, padding behind [SEP].
    """
    limits = Limits(max_length, min_length, config.sep_token_id, config.pad_token_id)
    limits.check(prompt_ids, config.max_position)
    session = DecoderSession(step, source, beams)
    if beams == 1:
        return greedy_search(session, prompt_ids, limits)
    return beam_search(session, prompt_ids, limits, beams)
