"""Captions of images, over the steps of a decoder."""

from torch import Tensor

from madtp.models.config import CaptionConfig
from madtp.models.decoder import DecoderSession, DecoderStep
from madtp.tasks.generation import Limits, beam_search, greedy_search


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
