"""BLIP-VQA with MADTP: an image and a question -> an answer, chosen from a list or written freely."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.errors import InputError
from madtp.models.bert import TextEncoder
from madtp.models.config import VqaConfig
from madtp.models.decoder import DecoderSession, DecoderStep, TextDecoder
from madtp.models.pruning import resolve_temperature
from madtp.models.vision import VisionTransformer
from madtp.tasks.generation import Limits, beam_search, greedy_search

LABEL_SMOOTHING = 0.1  # part of the score by which the published code ranks answers
IGNORED = -100


class VqaOutput(NamedTuple):
    """Question states [B, S, C], S tokens being left; tokens after each layer, vision and text [B, layers] int32."""

    question_states: Tensor
    vision_token_counts: Tensor
    text_token_counts: Tensor


class Ranking(NamedTuple):
    """Of each question the k answers [B, k] that are likeliest by their first word, and the best one's index [B].

    `topk_prob` is the probability of that word, `topk_index` the answer's place in the list, `topk_log_prob_sum` minus
    the label-smoothed loss of the whole answer, by which the best is chosen.
    """

    topk_prob: Tensor
    topk_index: Tensor
    topk_log_prob_sum: Tensor
    answer_index: Tensor


class VqaModel(nn.Module):
    """BLIP-VQA with MADTP, parameters named as in the official checkpoints.

    `forward` is the question encoder, `text_decoder.source_cache` and `text_decoder.step` are the decoder, and `rank`
    and `generate` drive the latter. `model.half()` and `model.bfloat16()` work: images and logits stay float32, and so
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

    @torch.no_grad()
    def rank(self, question_states: Tensor, answer_ids: Tensor, answer_mask: Tensor, k: int) -> Ranking:
        """Choose an answer from a list for each of the questions [B, S, C], from `forward`; see `rank_answers`."""
        source = self.text_decoder.source_cache(question_states)
        return rank_answers(self.text_decoder.step, source, answer_ids, answer_mask, k, self.config)

    @torch.no_grad()
    def generate(self, question_states: Tensor, *, beams: int = 3, max_length: int = 10, min_length: int = 1) -> Tensor:
        """Write an answer to each of the questions [B, S, C], from `forward`; see `write_answers`."""
        source = self.text_decoder.source_cache(question_states)
        lengths = {"max_length": max_length, "min_length": min_length}
        return write_answers(self.text_decoder.step, source, self.config, beams=beams, **lengths)


def start_logits(step: DecoderStep, source: Tensor, config: VqaConfig) -> Tensor:
    """Logits [B, V] float32 of an answer's first word; arguments as those of `rank_answers`."""
    return DecoderSession(step, source, 1)(_prompt(source, config), None)


def rank_answers(
    step: DecoderStep, source: Tensor, answer_ids: Tensor, answer_mask: Tensor, k: int, config: VqaConfig
) -> Ranking:
    """Choose an answer from a list for each question.

    Args:
        step: the decoder, in torch or an engine.
        source: what its `source_cache` gave for the question states.
        answer_ids, answer_mask: [A, L] int64, [DEC] first and [SEP] last; the mask is 1 for words, 0 for padding.
        k: answers, likeliest first words first, that are read to the end.

    Raises:
        InputError: the list is empty or has no words, k is not 1 to A, or an answer does not start with [DEC].
    """
    _check_answers(answer_ids, answer_mask, k, config)
    start = start_logits(step, source, config)
    # Answers that begin with one word are equally likely: which of them come first is left to topk, as published.
    prob, index = start.softmax(dim=1).index_select(1, answer_ids[:, 1]).topk(k, dim=1)
    scores = []
    for number, chosen in enumerate(index):  # one question at a time: logits are [k, V] at every word
        ids = answer_ids[chosen].masked_fill(answer_mask[chosen] == 0, IGNORED)
        session = DecoderSession(step, source[:, :, number : number + 1].contiguous(), k)
        score = -_smoothed_loss(start[number].expand(k, -1), ids[:, 1])
        for word in range(2, ids.shape[1]):
            newest = ids[:, :2] if word == 2 else ids[:, word - 1 : word]
            # What follows the end of a shorter answer is ignored, so any id will do there.
            logits = session(newest.masked_fill(newest == IGNORED, config.pad_token_id), None)
            score -= _smoothed_loss(logits, ids[:, word])
        scores.append(score)
    log_prob_sum = torch.stack(scores)
    best = index.gather(1, log_prob_sum.argmax(dim=1, keepdim=True))[:, 0]
    return Ranking(prob, index, log_prob_sum, best)


def _smoothed_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[k]: label-smoothed loss of the ids `target` [k] under `logits` [k, V]; 0 where they are ignored."""
    return F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none", label_smoothing=LABEL_SMOOTHING)


def write_answers(
    step: DecoderStep,
    source: Tensor,
    config: VqaConfig,
    *,
    beams: int = 3,
    max_length: int = 10,
    min_length: int = 1,
) -> Tensor:
    """Write an answer to each question.

    Args:
        step, source: as those of `rank_answers`.
        beams: 1 is greedy search.
        max_length, min_length: see `Limits`; [DEC] counts.

    Returns:
        [B, length] int64, [DEC] first, padding behind [SEP].
    """
    prompt, limits = _prompt(source, config), Limits(max_length, min_length, config.sep_token_id, config.pad_token_id)
    limits.check(prompt, config.max_position)
    session = DecoderSession(step, source, beams)
    if beams == 1:
        return greedy_search(session, prompt, limits)
    return beam_search(session, prompt, limits, beams)


def _prompt(source: Tensor, config: VqaConfig) -> Tensor:
    """[DEC] for each of the B questions of `source`."""
    return torch.full((source.shape[2], 1), config.bos_token_id, dtype=torch.int64, device=source.device)


def _check_answers(answer_ids: Tensor, answer_mask: Tensor, k: int, config: VqaConfig) -> None:
    if answer_ids.dim() != 2 or answer_ids.shape[1] < 2 or answer_ids.shape != answer_mask.shape:
        raise InputError(
            f"the answers are of shape {list(answer_ids.shape)}, their mask of shape {list(answer_mask.shape)}",
            "Both are [answers, ids], with two ids at least: [DEC] and the first word.",
        )
    if answer_ids.shape[1] > config.max_position:
        raise InputError(
            f"answer {int(answer_mask.sum(dim=1).argmax())} is {answer_ids.shape[1]} ids long",
            f"The decoder has positions for {config.max_position}.",
            "Shorten it.",
        )
    if not 1 <= k <= len(answer_ids):
        raise InputError(
            f"the {k} likeliest of {len(answer_ids)} answers were asked for",
            fix="Set k to 1 or more, no more than them.",
        )
    others = (answer_ids[:, 0] != config.bos_token_id).nonzero()
    if len(others):
        raise InputError(
            f"answer {int(others[0])} does not start with [DEC], id {config.bos_token_id}",
            "The decoder was trained to begin with it.",
            "Replace the first id of every answer.",
        )
