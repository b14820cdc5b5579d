"""BLIP-VQA with MADTP: an image and a question -> an answer, chosen from a list or written freely."""

from typing import NamedTuple

from torch import Tensor

from madtp.models.bert import TextEncoder
from madtp.models.config import VqaConfig
from madtp.models.decoder import TextDecoder
from madtp.models.model import PrunedModel
from madtp.models.packed import padded, source_of
from madtp.models.vision import VisionTransformer


class VqaOutput(NamedTuple):
    """Question states [B, S, C], S tokens being left (packed: of the longest, the others are filled up with zeros);
    tokens after each layer, vision and text [B, layers] int32."""

    question_states: Tensor
    vision_token_counts: Tensor
    text_token_counts: Tensor


class VqaModel(PrunedModel[VqaConfig]):
    """BLIP-VQA with MADTP.

    `forward` is the question encoder, `text_decoder.source_cache` and `text_decoder.step` are the decoder, which
    `madtp.tasks.answers` drives.
    """

    task = "vqa"

    def __init__(self, config: VqaConfig, temperature: float = 0.0) -> None:
        super().__init__(config, temperature)
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
        """
        tau = self.resolve(temperature, image.device)
        states, vision = self.visual_encoder(image.to(self.space_dict.dtype), self.space_dict, tau)
        source = source_of(states, vision)
        words, text = self.text_encoder(input_ids, attention_mask, (source,), self.space_dict, tau)
        return VqaOutput(padded(words, text), vision.token_counts(), text.token_counts())
