"""Answers to questions, over the steps of a decoder: chosen from a list, or written freely."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.errors import InputError
from madtp.models.config import VqaConfig
from madtp.models.decoder import DecoderSession, DecoderStep, Source
from madtp.tasks.generation import write_texts

LABEL_SMOOTHING = 0.1  # part of the score by which the published code ranks answers
K_ANSWERS = 128  # candidates that the published evaluation reads to the end
IGNORED = -100


class RankedAnswers(NamedTuple):
    """Of each question the k answers [B, k] that are likeliest by their first word, and the best one's index [B].

    `topk_prob` is the probability of that word, `topk_index` the answer's place in the list, `topk_log_prob_sum` minus
    the label-smoothed loss of the whole answer, by which the best is chosen.
    """

    topk_prob: Tensor
    topk_index: Tensor
    topk_log_prob_sum: Tensor
    answer_index: Tensor


def start_logits(step: DecoderStep, source: Source, config: VqaConfig) -> Tensor:
    """Logits [B, V] float32 of an answer's first word; arguments as those of `rank_answers`."""
    return DecoderSession(step, source, 1)(_prompt(source, config), None)


def rank_answers(
    step: DecoderStep, source: Source, answer_ids: Tensor, answer_mask: Tensor, k: int, config: VqaConfig
) -> RankedAnswers:
    """Choose an answer from a list for each question.

    Args:
        source: keys and values of the question states.
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
        session = DecoderSession(step, source.of(number), k)
        score = -_smoothed_loss(start[number].expand(k, -1), ids[:, 1])
        for word in range(2, ids.shape[1]):
            newest = ids[:, :2] if word == 2 else ids[:, word - 1 : word]
            # What follows the end of a shorter answer is ignored, so any id will do there.
            logits = session(newest.masked_fill(newest == IGNORED, config.pad_token_id), None)
            score -= _smoothed_loss(logits, ids[:, word])
        scores.append(score)
    log_prob_sum = torch.stack(scores)
    best = index.gather(1, log_prob_sum.argmax(dim=1, keepdim=True))[:, 0]
    return RankedAnswers(prob, index, log_prob_sum, best)


def _smoothed_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[k]: label-smoothed loss of the ids `target` [k] under `logits` [k, V]; 0 where they are ignored."""
    return F.cross_entropy(logits, target, ignore_index=IGNORED, reduction="none", label_smoothing=LABEL_SMOOTHING)


def write_answers(
    step: DecoderStep,
    source: Source,
    config: VqaConfig,
    *,
    beams: int = 3,
    max_length: int = 10,
    min_length: int = 1,
) -> Tensor:
    """Write an answer to each question; see `write_texts`. [DEC] is the prompt, and counts."""
    lengths = {"max_length": max_length, "min_length": min_length}
    return write_texts(step, source, _prompt(source, config), config, beams=beams, **lengths)


def _prompt(source: Source, config: VqaConfig) -> Tensor:
    """[DEC] for each of the B questions of `source`."""
    return torch.full((source.batch, 1), config.bos_token_id, dtype=torch.int64, device=source.cache.device)


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
