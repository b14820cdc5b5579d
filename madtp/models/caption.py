"""BLIP captioning with MADTP: an image -> a sentence about it."""

from typing import NamedTuple

from torch import Tensor

from madtp.models.config import CaptionConfig
from madtp.models.decoder import TextDecoder
from madtp.models.model import PrunedModel
from madtp.models.packed import padded
from madtp.models.vision import VisionTransformer


class CaptionOutput(NamedTuple):
    """Image states [B, S, C], S tokens being left (packed: of the longest, the others are filled up with zeros);
    tokens after each vision layer, [B, layers] int32."""

    image_states: Tensor
    vision_token_counts: Tensor


class CaptionModel(PrunedModel[CaptionConfig]):
    """BLIP captioning with MADTP.

    `forward` is the image encoder, `text_decoder.source_cache` and `text_decoder.step` are the decoder, which
    `madtp.tasks.generation` drives.
    """

    task = "caption"

    def __init__(self, config: CaptionConfig, temperature: float = 0.0) -> None:
        super().__init__(config, temperature)
        self.visual_encoder = VisionTransformer(config)
        self.text_decoder = TextDecoder(config, config.vit_dim)

    def forward(self, image: Tensor, temperature: Tensor | float | None = None) -> CaptionOutput:
        """Encode a batch of images.

        Args:
            image: [B, 3, S, S] float, normalised.
        """
        tau = self.resolve(temperature, image.device)
        states, vision = self.visual_encoder(image.to(self.space_dict.dtype), self.space_dict, tau)
        return CaptionOutput(padded(states, vision), vision.token_counts())
