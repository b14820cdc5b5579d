"""How good the demonstration's model is, measured as it is deployed: one request at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from madtp.data.preprocess import Sample, image_tensor
from madtp.data.tokenize import TextProcessor
from madtp.models.config import NlvrConfig
from madtp.models.nlvr import NlvrModel
from madtp.ops.flops import count_flops

FLOPS_SAMPLES = 64  # GFLOPs are the mean over the first so many


@dataclass(frozen=True)
class Evaluation:
    """Results at one temperature.

    Attributes:
        vision_tokens, text_tokens: mean tokens after each layer, class token included.
    """

    accuracy: float
    gflops: float
    vision_tokens: tuple[float, ...]
    text_tokens: tuple[float, ...]


def model_inputs(sample: Sample, text: TextProcessor, model_config: NlvrConfig) -> dict[str, Tensor]:
    """The model's inputs for one sample, batch 1."""
    ids, mask = text.batch([sample.text or ""])
    return {
        "image0": image_tensor(sample.images[0], model_config.image_size)[None],
        "image1": image_tensor(sample.images[1], model_config.image_size)[None],
        "input_ids": ids,
        "attention_mask": mask,
    }


@torch.no_grad()
def evaluate(
    model: NlvrModel,
    vocab: Path,
    samples: Sequence[Sample],
    temperature: float,
    progress: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Judge labelled `samples` at a temperature, zero being the dense model; `progress` is called after each."""
    text = TextProcessor(vocab, model.config)
    right = 0
    gflops: list[float] = []
    vision: list[Tensor] = []
    words: list[Tensor] = []
    for sample in samples:
        inputs = model_inputs(sample, text, model.config)
        output = model(**inputs, temperature=temperature)
        right += int(bool(output.logits.argmax()) == sample.label)
        vision.append(output.vision_token_counts[0].float())
        words.append(output.text_token_counts[0].float())
        if len(gflops) < FLOPS_SAMPLES:
            gflops.append(count_flops(model, inputs, temperature).giga)
        progress()
    return Evaluation(right / len(samples), sum(gflops) / len(gflops), _mean(vision), _mean(words))


def _mean(rows: Sequence[Tensor]) -> tuple[float, ...]:
    return tuple(torch.stack(list(rows)).mean(dim=0).tolist())
