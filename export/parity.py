"""Does the artifact give the model's answers, and keep the model's tokens?"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from export.options import Range
from export.runner import Outputs, Runner
from madtp.nlvr import NlvrModel
from madtp.recorder import CompactRecord, PruningRecorder
from madtp.samples import SampleSet, collate

LOGIT_TOLERANCE = 1e-4  # absolute, or relative to the largest |logit| where that is above 1
THRESHOLD_MARGIN = 1e-5  # relative to the mean |score|: below it float32 rounding decides which tokens are kept


@dataclass
class ParityResult:
    """Comparison at one temperature.

    Attributes:
        temperature: what the artifact was given.
        requests: compared requests; a request counts once alone and once in each batch it was part of.
        worst_logit: largest |difference| of a logit over all comparisons with equal token counts.
        tolerance: the largest that was allowed.
        decisions_equal: requests whose answer (larger logit) is the same.
        layers_equal: layers (both encoders) whose token counts are equal in every comparison.
        layers: all layers.
        explained: batches whose counts differ first at a layer where a score lies so close to the threshold that
            rounding decides; their logits are not compared.
        failures: what is wrong, in words; empty when parity holds.
        mean_tokens: mean tokens after each layer, per encoder, of the requests alone.
    """

    temperature: float
    requests: int = 0
    worst_logit: float = 0.0
    tolerance: float = LOGIT_TOLERANCE
    decisions_equal: int = 0
    layers_equal: int = 0
    layers: int = 0
    explained: int = 0
    failures: list[str] = field(default_factory=list)
    mean_tokens: dict[str, list[float]] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No failure, and something was compared to the end."""
        return not self.failures and self.requests > self.explained


def batches_of(samples: SampleSet, batch: Range) -> list[list[int]]:
    """Indices of the batches to compare: every sample in the smallest batch, then all in batches of the largest."""
    everyone = list(range(len(samples)))
    groups: list[list[int]] = []
    for size in sorted({batch.min, min(batch.max, len(samples))}):
        if batch.min <= size:
            padded = everyone + everyone[: -len(everyone) % size]
            groups += [padded[start : start + size] for start in range(0, len(padded), size)]
    return groups


def compare(model: NlvrModel, candidate: Runner, samples: SampleSet, temperature: float, batch: Range) -> ParityResult:
    """Run both on all batches and compare outputs and tokens.

    Args:
        model: the reference.
        candidate: the artifact.
        samples: prepared requests.
        temperature: zero compares dense answers.
        batch: the profile; batches of its smallest and largest size are compared.
    """
    result = ParityResult(temperature)
    depth = model.config.vit_depth
    equal_layers = np.ones(depth + model.config.text_layers, dtype=bool)
    alone: list[tuple[Tensor, Tensor]] = []
    for indices in batches_of(samples, batch):
        inputs = collate([samples.requests[index] for index in indices], model.config)
        with torch.no_grad(), PruningRecorder() as recorder:
            reference = model(**inputs, temperature=torch.tensor(temperature, dtype=torch.float32))
        answer = candidate.run(inputs, temperature)
        result.requests += len(indices)
        if len(indices) == batch.min:
            alone.append((reference.vision_token_counts[0], reference.text_token_counts[0]))
        expected = np.concatenate([reference.vision_token_counts[0], reference.text_token_counts[0]])
        equal = expected == _counts(answer)
        equal_layers &= equal
        name = f"temperature {temperature:g}, samples {indices}"
        if not equal.all():
            _judge_counts(result, recorder.records, int(np.argmin(equal)), depth, name, len(indices))
            continue
        _judge_logits(result, reference.logits.numpy(), answer["logits"], name)
    result.layers = len(equal_layers)
    result.layers_equal = int(equal_layers.sum())
    result.mean_tokens = {
        tower: torch.stack(part).double().mean(dim=0).tolist()
        for tower, part in zip(("vision", "text"), zip(*alone, strict=True), strict=True)
    }
    return result


def _counts(outputs: Outputs) -> np.ndarray:
    """Tokens after every layer, vision then text; one K serves the whole batch, so row 0 stands for all."""
    return np.concatenate([outputs["vision_token_counts"][0], outputs["text_token_counts"][0]])


def _judge_counts(
    result: ParityResult, records: Sequence[CompactRecord], layer: int, depth: int, name: str, requests: int
) -> None:
    where = f"vision layer {layer}" if layer < depth else f"text layer {layer - depth}"
    margin = records[layer].margin
    if margin < THRESHOLD_MARGIN:
        result.explained += requests
        return
    result.failures.append(
        f"{name}: token counts differ first at {where}, where no score is closer than {margin:.1e} to the threshold"
    )


def _judge_logits(result: ParityResult, expected: np.ndarray, answer: np.ndarray, name: str) -> None:
    tolerance = LOGIT_TOLERANCE * max(1.0, float(np.abs(expected).max()))
    result.tolerance = max(result.tolerance, tolerance)
    difference = float(np.abs(answer.astype(np.float64) - expected).max())
    result.worst_logit = max(result.worst_logit, difference)
    if not difference <= tolerance:  # a NaN is a failure too
        result.failures.append(f"{name}: logits differ by {difference:.2e}, allowed {tolerance:.0e}")
    # Two logits closer than the tolerance are a tie that rounding may break either way.
    tie = np.abs(expected[:, 0] - expected[:, 1]) <= 2 * tolerance
    same = answer.argmax(axis=1) == expected.argmax(axis=1)
    result.decisions_equal += int((same | tie).sum())
    if not (same | tie).all():
        result.failures.append(f"{name}: {int((~(same | tie)).sum())} decisions differ")
