"""Does the artifact give the model's answers, and keep the model's tokens?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from export.engine.range import Range
from export.validate.teacher_forcing import TEXT_LOGITS, noted_runners, read_text, written_text
from madtp.data.samples import SampleSet, collate
from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import Part, encoder_layers
from madtp.ops.recorder import CompactRecord, PruningRecorder
from madtp.tasks.requests import COUNTS_SUFFIX, Outputs, Runners, run_request, token_counts, torch_runners

TOLERANCE = 1e-4  # absolute, or relative to the largest |value| of an output where that is above 1
THRESHOLD_MARGIN = 1e-5  # relative to the mean |score|: below it float32 rounding decides which tokens are kept
DECIDED_BY_LARGEST = ("logits", "itm_logits", "sim")  # outputs whose largest column is the answer
DECIDED_AS_WRITTEN = ("answer_ids", "caption_ids")  # outputs that are the answer


@dataclass
class ParityResult:
    """Comparison at one temperature.

    Attributes:
        temperature: what the artifact was given.
        requests: compared requests; a request counts once alone and once in each batch it was part of.
        worst: largest |difference| of a float output over all comparisons with equal token counts.
        worst_output: which output that was.
        tolerance: the largest that was allowed.
        decisions_equal: requests whose answer is the same.
        layers_equal: layers (all encoders) whose token counts are equal in every comparison.
        layers: all layers.
        explained: requests of batches whose counts differ first at a layer where a score lies so close to the
            threshold that rounding decides; their outputs are not compared.
        failures: what is wrong, in words; empty when parity holds.
        mean_tokens: mean tokens after each layer, per encoder, of the requests alone.
    """

    temperature: float
    requests: int = 0
    worst: float = 0.0
    worst_output: str = ""
    tolerance: float = TOLERANCE
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


def compare(
    config: BlipConfig | ClipConfig,
    parts: Mapping[str, Part],
    candidate: Runners,
    samples: SampleSet,
    temperature: float,
    batch: Range,
) -> ParityResult:
    """Run both on all batches and compare outputs and tokens.

    Args:
        config: of the model.
        parts: of the torch model, the reference.
        candidate: the artifact's parts.
        samples: prepared requests.
        temperature: zero compares dense answers.
        batch: the profile; batches of its smallest and largest size are compared.
    """
    result = ParityResult(temperature)
    reference_runners, candidate = noted_runners(torch_runners(parts)), noted_runners(candidate)
    layers = encoder_layers(parts)
    equal_layers = torch.ones(len(layers), dtype=torch.bool)
    alone: list[Outputs] = []
    for indices in batches_of(samples, batch):
        inputs = collate([samples.requests[index] for index in indices], config)
        with PruningRecorder() as recorder:
            reference = run_request(config, reference_runners, inputs, temperature)
        answer = run_request(config, candidate, inputs, temperature)
        result.requests += len(indices)
        if len(indices) == batch.min:
            alone.append(token_counts(reference))
        equal = _counts(reference) == _counts(answer)
        equal_layers &= equal
        name = f"temperature {temperature:g}, samples {indices}"
        if not equal.all():
            first = int((~equal).nonzero()[0])
            _judge_counts(result, recorder.records, first, layers[first], name, len(indices))
            continue
        text = written_text(inputs, reference)
        if text is not None:  # ids alone would hide a decoder that is somewhat off
            for runners, outputs in ((reference_runners, reference), (candidate, answer)):
                outputs[TEXT_LOGITS] = read_text(runners, text)
        _judge_outputs(result, reference, answer, name, len(indices))
    result.layers = len(equal_layers)
    result.layers_equal = int(equal_layers.sum())
    result.mean_tokens = {
        encoder: torch.stack([counts[encoder][0] for counts in alone]).double().mean(dim=0).tolist()
        for encoder in alone[0]
    }
    return result


def _counts(outputs: Outputs) -> Tensor:
    """Tokens after every layer of every encoder; one K serves the whole batch, so row 0 stands for all."""
    return torch.cat([counts[0] for counts in token_counts(outputs).values()])


def _judge_counts(
    result: ParityResult,
    records: Sequence[CompactRecord],
    index: int,
    layer: tuple[str, int],
    name: str,
    requests: int,
) -> None:
    if not records:
        result.failures.append(
            f"{name}: token counts differ first at {layer[0]} layer {layer[1]}, where torch prunes nothing"
        )
        return
    margin = records[index].margin
    if margin < THRESHOLD_MARGIN:
        result.explained += requests
        return
    result.failures.append(
        f"{name}: token counts differ first at {layer[0]} layer {layer[1]}, where no score is closer than "
        f"{margin:.1e} to the threshold"
    )


def _judge_outputs(result: ParityResult, reference: Outputs, answer: Outputs, name: str, requests: int) -> None:
    same = torch.ones(requests, dtype=torch.bool)
    for output, expected in reference.items():
        if output.endswith(COUNTS_SUFFIX):
            continue
        actual = answer[output]
        if not expected.is_floating_point():
            equal = _rows_equal(expected, actual)
            if output in DECIDED_AS_WRITTEN:
                same &= equal
            elif not equal.all():
                result.failures.append(f"{name}: {output} differs")
            continue
        tolerance = TOLERANCE * max(1.0, float(expected.abs().max()))
        result.tolerance = max(result.tolerance, tolerance)
        difference = float((actual.double() - expected.double()).abs().max())
        if not difference <= result.worst:
            result.worst, result.worst_output = difference, output
        if not difference <= tolerance:  # a NaN is a failure too
            result.failures.append(f"{name}: {output} differ by {difference:.2e}, allowed {tolerance:.0e}")
        if output in DECIDED_BY_LARGEST and expected.shape[1] > 1:
            # Two values closer than the tolerance are a tie that rounding may break either way.
            best = expected.topk(2, dim=1).values
            tie = best[:, 0] - best[:, 1] <= 2 * tolerance
            same &= (actual.argmax(dim=1) == expected.argmax(dim=1)) | tie
    result.decisions_equal += int(same.sum())
    if not same.all():
        result.failures.append(f"{name}: {int((~same).sum())} decisions differ")


def _rows_equal(expected: Tensor, actual: Tensor) -> Tensor:
    """[B]: which rows are the same; texts of another length are not."""
    if expected.shape != actual.shape:
        width = max(expected.shape[-1], actual.shape[-1])
        expected, actual = (
            torch.nn.functional.pad(ids, (0, width - ids.shape[-1]), value=-1) for ids in (expected, actual)
        )
    return (expected == actual).flatten(1).all(dim=1) if expected.dim() > 1 else expected == actual
