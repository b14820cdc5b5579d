"""The model's answers to the samples of a page, with their scores and labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from export.report.measurements import alone
from export.runtime.checked import finite_runners
from export.validate.teacher_forcing import forced_logits, generated_text, teacher_forcing_runners
from madtp.data.samples import Config, SampleSet
from madtp.data.tokenize import TextProcessor
from madtp.models.config import BlipConfig, RetrievalConfig
from madtp.tasks.requests import Outputs, Runners, run_request

LABELS = ("false", "true")


@dataclass(frozen=True)
class Answer:
    """One answer to a sample, as the page shows it."""

    what: str  # its kind, e.g. "answer" or "caption", or what is ranked
    text: str
    score: str  # the model's confidence
    label: str | None = ""  # the correct answer; empty if unknown; None if no label applies
    right: bool | None = None  # None if that is unknown or does not apply


def answers_to(
    config: Config, runners: Runners, samples: SampleSet, chosen: Sequence[int], temperature: float, least: int
) -> list[list[Answer]]:
    """The answer to each chosen sample, or for retrieval and clip the ranks of its text and of its image.

    Every sample runs alone, repeated to a batch of `least`. Ranks are among the texts and images of all samples.

    Raises:
        InputError: an output is not finite.
    """
    if config.task in ("retrieval", "clip"):
        return _ranks(config, runners, samples, chosen, temperature, least)
    return [[_answer(config, runners, samples, place, temperature, least)] for place in chosen]


def _answer(config: Config, runners: Runners, samples: SampleSet, place: int, temperature: float, least: int) -> Answer:
    request = samples.requests[place]
    noted = teacher_forcing_runners(finite_runners(runners, f"temperature {temperature:g}, sample {place}"))
    inputs = alone(request, config, least)
    outputs = run_request(config, noted, inputs, temperature)
    if config.task == "nlvr":
        false, true = outputs["logits"][0].softmax(dim=0).tolist()
        labels = [] if request.label is None else [LABELS[request.label]]
        return _judged(LABELS[true > false], f"probability {max(true, false):.3f}", labels)
    written = generated_text(inputs, outputs)
    assert written is not None
    assert isinstance(config, BlipConfig)
    ids = [index for index in written.ids[0].tolist() if index != config.pad_token_id]
    steps = forced_logits(noted, written)[0].log_softmax(dim=1)
    scores = torch.stack([step[index] for step, index in zip(steps, ids[written.prompt :], strict=False)])
    text, known = _decoded(ids, written.prompt, samples.processor), samples.answers[place]
    if config.task == "vqa":
        return _judged(text, f"probability {scores.sum().exp():.3g}", known)
    return Answer("caption", text, f"probability of a word {scores.mean().exp():.2f}, geometric mean", _either(known))


def _judged(text: str, score: str, known: Sequence[str]) -> Answer:
    right = _plain(text) in map(_plain, known) if known else None
    return Answer("answer", text, score, _either(known), right)


def _either(known: Sequence[str]) -> str:
    return " or ".join(f"“{text}”" for text in dict.fromkeys(known))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _decoded(ids: Sequence[int], prompt: int, processor: object) -> str:
    """The text after the prompt, or its ids if no vocabulary fits."""
    if not isinstance(processor, TextProcessor):
        return f"ids {' '.join(map(str, ids[prompt:]))} (no vocabulary fits)"
    return processor.decode(ids).removeprefix(processor.decode(ids[:prompt])).strip() or "nothing"


@dataclass(frozen=True)
class _Pairs:
    """All samples, encoded alone."""

    config: Config
    runners: Runners
    inputs: Sequence[dict[str, Tensor]]
    outputs: Sequence[Outputs]
    temperature: float

    def score(self, image: int, text: int) -> float:
        """The score that ranks a pair: similarity, in retrieval plus the matching logit."""
        embeddings = self.outputs[image]["image_embed"][0], self.outputs[text]["text_embed"][0]
        similarity = float(embeddings[0] @ embeddings[1])
        if not isinstance(self.config, RetrievalConfig):
            return similarity
        words = {name: self.inputs[text][name].clone() for name in ("input_ids", "attention_mask")}
        words["input_ids"][:, 0] = self.config.enc_token_id
        shown = {**words, "image_tokens": self.outputs[image]["image_tokens"]}
        return similarity + float(self.runners["match"].run(shown, self.temperature)["itm_logits"][0, 1])


def _ranks(
    config: Config, runners: Runners, samples: SampleSet, chosen: Sequence[int], temperature: float, least: int
) -> list[list[Answer]]:
    requests = samples.requests
    inputs = [alone(request, config, least) for request in requests]
    outputs = [
        run_request(config, finite_runners(runners, f"temperature {temperature:g}, sample {place}"), each, temperature)
        for place, each in enumerate(inputs)
    ]
    pairs = _Pairs(config, runners, inputs, outputs, temperature)
    everyone = range(len(requests))
    return [
        [
            _rank("its text, for the image", [pairs.score(place, other) for other in everyone], place, "texts"),
            _rank("its image, for the text", [pairs.score(other, place) for other in everyone], place, "images"),
        ]
        for place in chosen
    ]


def _rank(kind: str, scores: Sequence[float], own: int, plural: str) -> Answer:
    first = 1 + sum(score > scores[own] for score in scores)
    last = sum(score >= scores[own] for score in scores)
    rank = f"{first}" if first == last else f"{first} to {last}, with equal scores,"
    right = None if first == 1 and (last > 1 or len(scores) == 1) else first == 1  # rank 1 of 1 means nothing
    return Answer(kind, f"number {rank} of {len(scores)} {plural}", f"score {scores[own]:.3f}", None, right)
