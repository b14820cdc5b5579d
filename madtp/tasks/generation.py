"""Writing a text with a decoder: greedy and beam search over a step function, whatever runs the step.

Both give the ids that transformers 4.15, which the published models were evaluated with, gives for a length penalty of
1, no early stopping and no repetition penalty. Kept from it, because they decide the result: a finished text is scored
by its length without [SEP]; a sample is done when no running beam could beat its worst finished text *at the present
length*. Kept too, so that every step can be compared: the rows of a sample that is done go on, on padding, from row 0
of the whole batch; they do not matter.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from madtp.errors import InputError
from madtp.models.config import BlipConfig
from madtp.models.decoder import DecoderSession, DecoderStep, Source

NEVER = -1e9  # initial score of all beams of a sample but the first, which would otherwise all be the same


class Step(Protocol):
    """What runs the decoder and keeps its cache.

    The first call hands over the prompts [R, P], every later one the newest id of each row, [R, 1]. R is the batch
    size, or batch size * beams with the beams of a sample end to end.
    """

    def __call__(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        """Logits [R, V] float after the given ids.

        Args:
            input_ids: [R, L] int64.
            rows: [R] int64, the row of the previous call that each row continues; None where each continues itself.
        """


@dataclass(frozen=True)
class Limits:
    """How long a text may become, and the ids that end and fill it. Lengths count the prompt.

    Attributes:
        max_length: ids after which a text is cut, [SEP] included.
        min_length: [SEP] does not follow on fewer ids.
        end_id: the id that ends a text, [SEP].
        pad_id: what fills the rows of shorter texts.
    """

    max_length: int
    min_length: int
    end_id: int
    pad_id: int

    def check(self, prompt_ids: Tensor, max_position: int | None = None) -> None:
        """Raise InputError where a search from `prompt_ids` [B, P] cannot work.

        Args:
            max_position: ids that the decoder has position embeddings for, if it is known.
        """
        if prompt_ids.dim() != 2 or prompt_ids.numel() == 0:
            raise InputError(
                f"the prompts are of shape {list(prompt_ids.shape)}",
                "Generation starts from [batch, ids], with one id at least.",
            )
        padded = (prompt_ids == self.pad_id).any(dim=1).nonzero()
        if len(padded):
            raise InputError(
                f"prompt {int(padded[0])} holds padding",
                "All prompts of a batch are of one length: what is attended to in a cache is not masked.",
                "Put prompts of other lengths into another batch.",
            )
        if self.max_length <= prompt_ids.shape[1]:
            raise InputError(
                f"max_length {self.max_length} leaves nothing to write after a prompt of {prompt_ids.shape[1]} ids",
                "Lengths count the prompt.",
                "Raise max_length.",
            )
        if self.min_length > self.max_length:
            raise InputError(f"min_length {self.min_length} is larger than max_length {self.max_length}")
        if max_position is not None and self.max_length > max_position:
            raise InputError(
                f"max_length {self.max_length} is more than the decoder has positions for, {max_position}",
                fix=f"Set max_length to {max_position} or less.",
            )


def write_texts(
    step: DecoderStep,
    source: Source,
    prompt_ids: Tensor,
    config: BlipConfig,
    *,
    beams: int = 3,
    max_length: int = 20,
    min_length: int = 5,
) -> Tensor:
    """Texts about encoder states; by default as the published evaluation writes captions.

    Args:
        step: the decoder, in torch or an engine.
        source: keys and values of the states.
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


def greedy_search(step: Step, prompt_ids: Tensor, limits: Limits) -> Tensor:
    """The likeliest next id again and again.

    Args:
        prompt_ids: [B, P] int64, without padding.

    Returns:
        [B, length] int64, prompt included, [SEP] where a text has ended, padding behind it.
    """
    limits.check(prompt_ids)
    ids = newest = prompt_ids
    running = torch.ones(ids.shape[0], dtype=torch.bool, device=ids.device)
    while ids.shape[1] < limits.max_length and running.any():
        logits = _allowed(step(newest, None), ids.shape[1], limits)
        chosen = logits.argmax(dim=-1).to(ids.device).masked_fill(~running, limits.pad_id)
        running = running & (chosen != limits.end_id)
        newest = chosen[:, None]
        ids = torch.cat([ids, newest], dim=1)
    return ids


def beam_search(step: Step, prompt_ids: Tensor, limits: Limits, beams: int) -> Tensor:
    """The text of the best mean log probability among those that `beams` parallel searches find.

    Args:
        prompt_ids: [B, P] int64, without padding.

    Returns:
        [B, length] int64, prompt included, [SEP] where a text has ended, padding behind it.
    """
    limits.check(prompt_ids)
    if beams < 1:
        raise InputError(f"{beams} beams were asked for", fix="Set their number to 1 or more.")
    device = prompt_ids.device
    samples = [_Sample(beams) for _ in range(prompt_ids.shape[0])]
    ids = newest = prompt_ids.repeat_interleave(beams, dim=0)
    scores = [0.0 if beam == 0 else NEVER for _ in samples for beam in range(beams)]
    rows: Tensor | None = None
    while ids.shape[1] < limits.max_length and not all(sample.done for sample in samples):
        log_probs = _allowed(step(newest, rows).to(torch.float32).log_softmax(dim=-1), ids.shape[1], limits)
        totals = log_probs + torch.tensor(scores, dtype=torch.float32, device=log_probs.device)[:, None]
        vocabulary = totals.shape[1]
        # A beam has one way to end, so half of these are sure to go on.
        best = totals.view(len(samples), -1).topk(2 * beams, dim=1)
        scores, tokens, origins = [], [], []
        for number, (sample, values, places) in enumerate(
            zip(samples, best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            candidates = [
                _Candidate(value, number * beams + place // vocabulary, place % vocabulary)
                for value, place in zip(values, places, strict=True)
            ]
            for candidate in sample.advance(candidates, ids, limits):
                scores.append(candidate.score)
                tokens.append(candidate.token)
                origins.append(candidate.row)
        rows = torch.tensor(origins, device=device)
        newest = torch.tensor(tokens, device=device)[:, None]
        ids = torch.cat([ids[rows], newest], dim=1)
    for number, sample in enumerate(samples):
        if not sample.done:
            for row in range(number * beams, (number + 1) * beams):
                sample.finish(scores[row], ids[row])
    return _padded([sample.best() for sample in samples], prompt_ids, limits)


@dataclass(frozen=True)
class _Candidate:
    """A way to go on: the score with it, the row that it continues, the id that it adds."""

    score: float
    row: int
    token: int


@dataclass
class _Sample:
    """What beam search knows of one sample.

    Attributes:
        beams: texts pursued, and finished ones kept.
        finished: mean log probability and ids, without [SEP], of the best finished texts; in the order they came.
        done: whether nothing that is still pursued can become the result.
    """

    beams: int
    finished: list[tuple[float, Tensor]] = field(default_factory=list)
    done: bool = False

    def advance(self, candidates: list[_Candidate], ids: Tensor, limits: Limits) -> list[_Candidate]:
        """Take in the best candidates, in their order; returns the ones to pursue, as many as there are beams."""
        if self.done:
            return [_Candidate(0.0, 0, limits.pad_id)] * self.beams
        pursued = []
        for rank, candidate in enumerate(candidates):
            if candidate.token != limits.end_id:
                pursued.append(candidate)
            elif rank < self.beams:
                self.finish(candidate.score, ids[candidate.row])
            if len(pursued) == self.beams:
                break
        if len(self.finished) == self.beams:
            self.done = min(self.finished, key=_score)[0] >= candidates[0].score / ids.shape[1]
        return pursued

    def finish(self, score: float, ids: Tensor) -> None:
        """Keep a finished text of summed log probability `score` if it is among the best."""
        mean = score / len(ids)
        if len(self.finished) < self.beams or mean > min(self.finished, key=_score)[0]:
            self.finished.append((mean, ids))
        if len(self.finished) > self.beams:
            worst = min(self.finished, key=_score)
            self.finished = [text for text in self.finished if text is not worst]

    def best(self) -> Tensor:
        """The ids of the best finished text; of equal ones the latest."""
        return max(reversed(self.finished), key=_score)[1]


def _score(finished: tuple[float, Tensor]) -> float:
    return finished[0]


def _allowed(scores: Tensor, length: int, limits: Limits) -> Tensor:
    """Scores [R, V] of the next id; a text of `length` ids that is too short must not end."""
    if length >= limits.min_length:
        return scores
    end = torch.arange(scores.shape[1], device=scores.device) == limits.end_id
    return scores.masked_fill(end, -math.inf)


def _padded(texts: list[Tensor], like: Tensor, limits: Limits) -> Tensor:
    """Texts end to end as rows, [SEP] behind those that are not cut, as wide as the longest needs."""
    width = min(max(len(text) for text in texts) + 1, limits.max_length)
    result = like.new_full((len(texts), width), limits.pad_id)
    for row, text in zip(result, texts, strict=True):
        row[: len(text)] = text
        if len(text) < limits.max_length:
            row[len(text)] = limits.end_id
    return result
