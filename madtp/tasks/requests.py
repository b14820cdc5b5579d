"""Requests on top of parts: what each task makes of its encoders and decoder, whatever runs them."""

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from madtp.models.config import BlipConfig, CaptionConfig, ClipConfig, RetrievalConfig, VqaConfig
from madtp.models.decoder import DecoderStep, Source
from madtp.models.parts import Part
from madtp.models.retrieval import ImageOutput, MatchOutput, PackedImageOutput, TextOutput
from madtp.tasks.answers import start_logits, write_answers
from madtp.tasks.generation import write_texts

COUNTS_SUFFIX = "_token_counts"  # of the outputs that say how many tokens each layer kept
Outputs = dict[str, Tensor]


class Runner(Protocol):
    """Something that runs one part: torch, an ONNX file or a plan."""

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        """Outputs by name. `inputs` are all but the temperature, which parts that prune nothing ignore."""
        ...


Runners = Mapping[str, Runner]  # by the name of the part


class TorchRunner:
    """A part in torch; a temperature of zero runs it dense, without statistics."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.prunes = any(spec.name == "temperature" for spec in part.inputs)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        arguments = {**inputs, "temperature": temperature} if self.prunes else inputs
        return dict(self.part.module(**arguments)._asdict())


def torch_runners(parts: Mapping[str, Part]) -> dict[str, Runner]:
    """Every part in torch."""
    return {name: TorchRunner(part) for name, part in parts.items()}


def decoder_step(runner: Runner) -> DecoderStep:
    """The part `decoder` as what generation and ranking are driven with."""

    def step(input_ids: Tensor, rows: Tensor, past: Tensor, source: Source) -> tuple[Tensor, Tensor]:
        inputs = {"input_ids": input_ids, "rows": rows, "past": past, "source_cache": source.cache}
        if source.lengths is not None:
            inputs["source_lengths"] = source.lengths
        output = runner.run(inputs, 0.0)
        return output["logits"], output["present"]

    return step


def source_of(encoded: Outputs) -> Source:
    """What a decoder looks at, among the outputs of an encoder; those of the packed layout say its lengths."""
    return Source(encoded["source_cache"], encoded.get("source_lengths"))


class RetrievalRunners:
    """The parts of retrieval as `madtp.tasks.ranking.rank` wants them; the temperature is the one given here."""

    def __init__(self, config: RetrievalConfig, runners: Runners, temperature: float) -> None:
        self.config = config
        self._runners = runners
        self._temperature = temperature

    def encode_image(self, image: Tensor, temperature: Tensor | float | None = None) -> ImageOutput | PackedImageOutput:
        outputs = self._run("image", image=image)
        return PackedImageOutput(**outputs) if "image_lengths" in outputs else ImageOutput(**outputs)

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, temperature: Tensor | float | None = None
    ) -> TextOutput:
        return TextOutput(**self._run("text", input_ids=input_ids, attention_mask=attention_mask))

    def match(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_tokens: Tensor,
        temperature: Tensor | float | None = None,
        image_lengths: Tensor | None = None,
    ) -> MatchOutput:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "image_tokens": image_tokens}
        if image_lengths is not None:
            inputs["image_lengths"] = image_lengths
        return MatchOutput(**self._run("match", **inputs))

    def _run(self, part: str, **inputs: Tensor) -> Outputs:
        return self._runners[part].run(inputs, self._temperature)


def run_request(
    config: BlipConfig | ClipConfig, runners: Runners, inputs: Mapping[str, Tensor], temperature: float
) -> Outputs:
    """Everything that a batch of requests comes to, through all parts.

    Args:
        inputs: of the request, see `madtp.data.samples.collate`; retrieval and clip take pairs, as many images as
            texts.

    Returns:
        Outputs of the parts by name, and what follows from them: `answer_ids` [B, length] and `start_logits` of vqa,
        `caption_ids` of caption, `sim` [B, B] of retrieval and clip. Token counts of the matching are
        `match_token_counts`.
    """
    return _REQUESTS[config.task](config, runners, inputs, temperature)


def token_counts(outputs: Outputs) -> Outputs:
    """The token counts among outputs, by encoder: [sequences, layers] int32."""
    return {name.removesuffix(COUNTS_SUFFIX): value for name, value in outputs.items() if name.endswith(COUNTS_SUFFIX)}


def count_tokens(
    config: BlipConfig | ClipConfig, runners: Runners, inputs: Mapping[str, Tensor], temperature: float
) -> Outputs:
    """The token counts of a batch of requests by encoder; as `run_request`, but nothing is written."""
    if "encoder" in runners:  # the decoder is not asked for
        asked = {name: tensor for name, tensor in inputs.items() if name != "prompt_ids"}
        return token_counts(runners["encoder"].run(asked, temperature))
    return token_counts(run_request(config, runners, inputs, temperature))


def _nlvr(config: BlipConfig, runners: Runners, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
    return runners["model"].run(inputs, temperature)


def _vqa(config: VqaConfig, runners: Runners, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
    outputs = runners["encoder"].run(inputs, temperature)
    source, step = source_of(outputs), decoder_step(runners["decoder"])
    del outputs["source_cache"]
    return {
        **outputs,
        "start_logits": start_logits(step, source, config),
        "answer_ids": write_answers(step, source, config),
    }


def _caption(config: CaptionConfig, runners: Runners, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
    outputs = runners["encoder"].run({"image": inputs["image"]}, temperature)
    source, step = source_of(outputs), decoder_step(runners["decoder"])
    del outputs["source_cache"]
    return {**outputs, "caption_ids": write_texts(step, source, inputs["prompt_ids"], config)}


def _retrieval(config: RetrievalConfig, runners: Runners, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
    images = runners["image"].run({"image": inputs["image"]}, temperature)
    words = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    texts = runners["text"].run(words, temperature)
    words["input_ids"] = words["input_ids"].clone()
    words["input_ids"][:, 0] = config.enc_token_id
    seen: Outputs = {name: images[name] for name in ("image_tokens", "image_lengths") if name in images}
    matches = runners["match"].run({**words, **seen}, temperature)
    return {
        **images,
        **texts,
        "sim": images["image_embed"] @ texts["text_embed"].mT,
        "itm_logits": matches["itm_logits"],
        "match_token_counts": matches["text_token_counts"],
    }


def _clip(config: ClipConfig, runners: Runners, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
    images = runners["image"].run({"image": inputs["image"]}, temperature)
    texts = runners["text"].run({"input_ids": inputs["input_ids"]}, temperature)
    return {**images, **texts, "sim": images["image_embed"] @ texts["text_embed"].mT}


_REQUESTS: dict[str, Callable[..., Outputs]] = {
    "nlvr": _nlvr,
    "vqa": _vqa,
    "caption": _caption,
    "retrieval": _retrieval,
    "clip": _clip,
}
