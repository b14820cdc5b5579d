"""Requests to the open parts of an artifact, one batch of prepared tensors at a time.

`export.session.session.Session` asks with images and texts; recorded tensors are replayed through the same functions.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from export.session.products import Ranking, RankingBatch, Tokens
from madtp.models.config import CaptionConfig, RetrievalConfig, VqaConfig
from madtp.models.decoder import Source
from madtp.tasks.answers import RankedAnswers, rank_answers, write_answers
from madtp.tasks.generation import write_texts
from madtp.tasks.ranking import rank
from madtp.tasks.requests import Outputs, RetrievalRunners, Runner, Runners, decoder_step, source_of, token_counts


def judge_statements(runners: Runners, inputs: Mapping[str, Tensor], temperature: float) -> tuple[Tensor, list[Tokens]]:
    """Logits [B, 2] (false, true) of sentences about two images, and the tokens of each request.

    Args:
        inputs: image0, image1, input_ids, attention_mask.
    """
    outputs = runners["model"].run(inputs, temperature)
    logits = outputs["logits"]
    return logits, _tokens(outputs, len(logits))


def choose_answers(
    config: VqaConfig,
    runners: Runners,
    inputs: Mapping[str, Tensor],
    answers: tuple[Tensor, Tensor],
    k: int,
    temperature: float,
) -> tuple[RankedAnswers, list[Tokens]]:
    """Rank answers to questions, see `madtp.tasks.answers.rank_answers`; and the tokens of each request.

    Args:
        inputs: image, input_ids, attention_mask.
        answers: ids and mask [A, L] of the candidates.
        k: of them that are read to the end.
    """
    source, tokens = _encode(runners, inputs, temperature)
    return rank_answers(decoder_step(runners["decoder"]), source, *answers, k, config), tokens


def generate_answers(
    config: VqaConfig,
    runners: Runners,
    inputs: Mapping[str, Tensor],
    temperature: float,
    *,
    beams: int,
    max_length: int,
    min_length: int,
) -> tuple[Tensor, list[Tokens]]:
    """Ids [B, length] of answers written freely, see `madtp.tasks.answers.write_answers`; and the tokens of each
    request."""
    source, tokens = _encode(runners, inputs, temperature)
    lengths = {"max_length": max_length, "min_length": min_length}
    return write_answers(decoder_step(runners["decoder"]), source, config, beams=beams, **lengths), tokens


def generate_captions(
    config: CaptionConfig,
    runners: Runners,
    inputs: Mapping[str, Tensor],
    temperature: float,
    *,
    beams: int,
    max_length: int,
    min_length: int,
) -> tuple[Tensor, list[Tokens]]:
    """Ids [B, length] of captions, prompt included, see `madtp.tasks.generation.write_texts`; and the tokens of each
    request.

    Args:
        inputs: image, prompt_ids.
    """
    source, tokens = _encode(runners, {"image": inputs["image"]}, temperature)
    step, lengths = decoder_step(runners["decoder"]), {"max_length": max_length, "min_length": min_length}
    return write_texts(step, source, inputs["prompt_ids"], config, beams=beams, **lengths), tokens


def rank_pairs(
    config: RetrievalConfig,
    runners: Runners,
    images: Iterable[Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    k_test: int,
    batch: RankingBatch,
    temperature: float,
) -> Ranking:
    """Rank images and texts with a retrieval model, see `madtp.tasks.ranking.rank`; `images` are cut as `batch`
    says."""
    counted = count_runs(runners)
    result = rank(
        RetrievalRunners(config, counted, temperature),
        images,
        input_ids,
        attention_mask,
        k_test=k_test,
        text_batch=batch.texts,
        match_batch=batch.pairs,
    )
    return Ranking(*result, kept_tokens(counted), batch)


def compare_embeddings(
    runners: Runners, images: Iterable[Tensor], texts: Iterable[Tensor], batch: RankingBatch, temperature: float
) -> Ranking:
    """Rank images and texts with a clip model, by their embeddings.

    Args:
        images: batches [b, 3, S, S] float32, normalised, cut as `batch` says.
        texts: batches of ids [b, context_length] int64, likewise.
    """
    counted = count_runs(runners)
    words = [counted["text"].run({"input_ids": ids}, temperature)["text_embed"] for ids in texts]
    pictures = [counted["image"].run({"image": shown}, temperature)["image_embed"] for shown in images]
    sim = torch.cat(pictures) @ torch.cat(words).mT
    return Ranking(sim, sim, sim.mT, kept_tokens(counted), batch)


class FilledRunner:
    """A runner of a part that takes no fewer than `least` rows: the last row is repeated to fill them.

    Every input and output of the part has its rows first. What is cut off are copies, which keep as many tokens as what
    they are copies of: nothing depends on them.
    """

    def __init__(self, runner: Runner, least: int) -> None:
        self._runner, self._least = runner, least

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        rows = len(next(iter(inputs.values())))
        if rows >= self._least:
            return self._runner.run(inputs, temperature)
        places = torch.arange(self._least).clamp(max=rows - 1)
        outputs = self._runner.run({name: value[places] for name, value in inputs.items()}, temperature)
        return {name: value[:rows] for name, value in outputs.items()}


class CountedRunner:
    """A runner that keeps the token counts of its calls until they are taken."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._counts: list[Tensor] = []

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        outputs = self._runner.run(inputs, temperature)
        self._counts += token_counts(outputs).values()  # a part of these tasks has one encoder
        return outputs

    def take(self) -> Tensor:
        """[sequences, layers] int32, of all calls since the last time."""
        counts, self._counts = self._counts, []
        return torch.cat(counts)


def count_runs(runners: Runners) -> dict[str, CountedRunner]:
    """The runners of a model that ranks, counting tokens."""
    return {name: CountedRunner(runner) for name, runner in runners.items()}


def kept_tokens(counted: Mapping[str, CountedRunner]) -> dict[str, Tensor]:
    """Token counts by encoder: "vision", "text", and in retrieval "match"."""
    return {"vision" if name == "image" else name: runner.take() for name, runner in counted.items()}


def _encode(runners: Runners, inputs: Mapping[str, Tensor], temperature: float) -> tuple[Source, list[Tokens]]:
    """What the decoder looks at, and the tokens of each request."""
    outputs = runners["encoder"].run(inputs, temperature)
    source = source_of(outputs)
    return source, _tokens(outputs, source.batch)


def _tokens(outputs: Outputs, requests: int) -> list[Tokens]:
    counts = token_counts(outputs)
    return [{encoder: tuple(rows[request].tolist()) for encoder, rows in counts.items()} for request in range(requests)]
