"""Models that generate text, run in torch from their encoder's states."""

import torch
from torch import Tensor

from madtp.models.caption import CaptionModel
from madtp.models.decoder import Source
from madtp.models.vqa import VqaModel
from madtp.tasks.answers import RankedAnswers, rank_answers, write_answers
from madtp.tasks.generation import write_texts


@torch.no_grad()
def rank(model: VqaModel, states: Tensor, answer_ids: Tensor, answer_mask: Tensor, k: int) -> RankedAnswers:
    """`rank_answers` on question states [B, S, C]."""
    decoder = model.text_decoder
    return rank_answers(decoder.step, Source(decoder.source_cache(states)), answer_ids, answer_mask, k, model.config)


@torch.no_grad()
def answer(model: VqaModel, states: Tensor, **search: int) -> Tensor:
    """`write_answers` on question states [B, S, C]."""
    decoder = model.text_decoder
    return write_answers(decoder.step, Source(decoder.source_cache(states)), model.config, **search)


@torch.no_grad()
def caption(model: CaptionModel, states: Tensor, prompt_ids: Tensor, **search: int) -> Tensor:
    """`write_texts` on image states [B, S, C]."""
    decoder = model.text_decoder
    return write_texts(decoder.step, Source(decoder.source_cache(states)), prompt_ids, model.config, **search)
