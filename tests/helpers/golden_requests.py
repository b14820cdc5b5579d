"""Computes the recorded outputs of each task with any runner of its parts."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from madtp.models.clip import normalize
from madtp.models.config import CaptionConfig, ClipConfig, NlvrConfig, RetrievalConfig, VqaConfig
from madtp.models.decoder import DecoderSession
from madtp.models.retrieval import PackedImageOutput
from madtp.tasks.answers import rank_answers, start_logits, write_answers
from madtp.tasks.generation import Limits, Step, beam_search, greedy_search
from madtp.tasks.ranking import rank
from madtp.tasks.requests import Outputs, RetrievalRunners, Runners, decoder_step, run_request, source_of

if TYPE_CHECKING:
    from tests.golden import GoldenCase

CAPTION_BEAMS = 3


@dataclass
class RecordedStep:
    """A step that records the ids of every row and the logits of every call."""

    step: Step
    ids: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, rows: Tensor | None) -> Tensor:
        if self.ids:
            before = self.ids[-1] if rows is None else self.ids[-1][rows]
            self.ids.append(torch.cat([before, input_ids], dim=1))
        else:
            self.ids.append(input_ids)
        self.logits.append(self.step(input_ids, rows))
        return self.logits[-1]

    def outputs(self, prefix: str) -> Outputs:
        """Ids and logits under their recorded names."""
        return {
            f"{prefix}/step{number:02d}/{name}": tensor
            for name, tensors in (("input_ids", self.ids), ("logits", self.logits))
            for number, tensor in enumerate(tensors)
        }


def outputs_of(config: Any, runners: Runners, case: "GoldenCase") -> Outputs:
    """Compute all recorded outputs of a case."""
    return _OUTPUTS[config.task](config, runners, case)


def _nlvr(config: NlvrConfig, runners: Runners, case: "GoldenCase") -> Outputs:
    return {"logits": run_request(config, runners, case.inputs, case.temperature)["logits"]}


def _vqa(config: VqaConfig, runners: Runners, case: "GoldenCase") -> Outputs:
    inputs, k_test = case.inputs, case.entry["k_test"]
    step = decoder_step(runners["decoder"])
    answers = (inputs["answer_ids"], inputs["answer_mask"])
    if case.evaluates:
        chosen = []
        for number, images in enumerate(inputs["image"].split(case.entry["image_batch"])):
            words = {name: inputs[f"batch{number}/{name}"] for name in ("input_ids", "attention_mask")}
            encoded = runners["encoder"].run({"image": images, **words}, case.temperature)
            chosen.append(rank_answers(step, source_of(encoded), *answers, k_test, config).answer_index)
        return {"answer_index": torch.cat(chosen)}
    question = {name: inputs[name] for name in ("image", "input_ids", "attention_mask")}
    encoded = runners["encoder"].run(question, case.temperature)
    source = source_of(encoded)
    return {
        "question_states": encoded["question_states"],
        "start_logits": start_logits(step, source, config),
        "generate_ids": write_answers(step, source, config),
        **rank_answers(step, source, *answers, k_test, config)._asdict(),
    }


def _caption(config: CaptionConfig, runners: Runners, case: "GoldenCase") -> Outputs:
    source = source_of(runners["encoder"].run({"image": case.inputs["image"]}, case.temperature))
    prompt = case.inputs["prompt_ids"]
    limits = Limits(case.entry["max_length"], case.entry["min_length"], config.sep_token_id, config.pad_token_id)
    outputs: Outputs = {}
    for search, beams in (("beam3", CAPTION_BEAMS), ("greedy", 1)):
        step = RecordedStep(DecoderSession(decoder_step(runners["decoder"]), source, beams))
        ids = beam_search(step, prompt, limits, beams) if beams > 1 else greedy_search(step, prompt, limits)
        outputs |= {f"{search}/ids": ids, **step.outputs(search)}
    return outputs


def _retrieval(config: RetrievalConfig, runners: Runners, case: "GoldenCase") -> Outputs:
    image, ids, mask = (case.inputs[name] for name in ("image", "input_ids", "attention_mask"))
    parts = RetrievalRunners(config, runners, case.temperature)
    if case.evaluates:
        ranking = rank(parts, image.split(case.entry["image_batch"]), ids, mask, k_test=case.entry["k_test"])
        return {"score_i2t": ranking.score_i2t, "score_t2i": ranking.score_t2i}
    images, texts = parts.encode_image(image), parts.encode_text(ids, mask)
    lengths = images.image_lengths if isinstance(images, PackedImageOutput) else None
    return {
        "image_embed": images.image_embed,
        "text_embed": texts.text_embed,
        "sim": images.image_embed @ texts.text_embed.mT,
        "itm_logits": parts.match(case.inputs["itm_input_ids"], mask, images.image_tokens, None, lengths).itm_logits,
    }


def _clip(config: ClipConfig, runners: Runners, case: "GoldenCase") -> Outputs:
    images = case.inputs["image"]
    batch = case.entry.get("image_batch") or len(images)
    run_image = runners["image"].run
    features = [run_image({"image": part}, case.temperature)["image_feature"] for part in images.split(batch)]
    texts = runners["text"].run({"input_ids": case.inputs["text"]}, case.temperature)
    image_feature, text_feature = torch.cat(features), texts["text_feature"]
    image_embed, text_embed = normalize(image_feature), normalize(text_feature)
    sim = image_embed @ text_embed.mT
    computed = {
        "image_feature": image_feature,
        "text_feature": text_feature,
        "image_embed": image_embed,
        "text_embed": text_embed,
        "sim": sim,
        "text_picked_position": texts["text_picked_position"],
        "score_i2t": sim,
        "score_t2i": sim.mT,
    }
    return {name: value for name, value in computed.items() if name in case.recorded.outputs}


_OUTPUTS: dict[str, Any] = {
    "nlvr": _nlvr,
    "vqa": _vqa,
    "caption": _caption,
    "retrieval": _retrieval,
    "clip": _clip,
}
