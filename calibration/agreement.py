"""Two runs of one model over the same requests, in float32 and otherwise: do they decide alike and keep the same?"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from madtp.models.config import BlipConfig, ClipConfig
from madtp.models.parts import encoder_layers, parts_of
from madtp.ops.recorder import CompactRecord, PruningRecorder, jaccards
from madtp.tasks.decisions import EMBEDDINGS, best_matches, decisions
from madtp.tasks.requests import Outputs, run_request, torch_runners

Layer = tuple[str, int]
WITHIN = 2.0  # times the noise of a score: tokens that near to the threshold may fall on either side


@dataclass(frozen=True)
class Observation:
    """One request: what came out, and every pruning step in the order of `encoder_layers`."""

    outputs: Outputs
    steps: tuple[CompactRecord, ...]


def observe(
    model: Any,
    inputs: Sequence[Mapping[str, Tensor]],
    temperature: float,
    context: AbstractContextManager[Any],
    on_sample: Callable[[], None] = lambda: None,
) -> list[Observation]:
    """Run requests (inputs of `run_request`, batch 1 each) inside a context that says how products are computed."""
    runners, seen = torch_runners(parts_of(model)), []
    with torch.no_grad(), context:
        for request in inputs:
            with PruningRecorder() as recorder:
                outputs = run_request(model.config, runners, request, temperature)
            seen.append(Observation(outputs, tuple(recorder.records)))
            on_sample()
    return seen


@dataclass(frozen=True)
class LayerAgreement:
    """One layer over all requests.

    Attributes:
        jaccard: mean of |kept by both| / |kept by either|.
        flips: share of the tokens that entered both runs and that one kept and the other did not.
        tokens: mean tokens after it, in float32 and otherwise.
        noise: how far scores moved against their threshold (root mean square), relative to the mean |score|; of
            requests of which the same tokens entered.
        shift: the mean of that: a threshold that moved, and not tokens that did.
        near: share of float32's tokens that lie within twice the noise of the threshold.
    """

    encoder: str
    layer: int
    jaccard: float
    flips: float
    tokens: tuple[float, float]
    noise: float
    shift: float
    near: float


@dataclass(frozen=True)
class Agreement:
    """How a run compares with float32.

    Attributes:
        decisions: share of equal ones: of logits which is largest, of texts all ids, of rankings the best text of
            every image and the best image of every text, among those of the requests.
        accuracy: of float32 and of the run, where it is known what is right.
        output_error: root mean square of the difference of outputs, relative to that of the outputs.
    """

    samples: int
    decisions: float
    accuracy: tuple[float, float] | None
    output_error: float
    layers: tuple[LayerAgreement, ...]

    @property
    def jaccard(self) -> float:
        """Mean over the layers."""
        return sum(layer.jaccard for layer in self.layers) / len(self.layers)

    @property
    def flips(self) -> float:
        """Mean over the layers."""
        return sum(layer.flips for layer in self.layers) / len(self.layers)

    @property
    def tokens(self) -> float:
        """Tokens after all layers relative to float32's, less one."""
        before, after = (sum(layer.tokens[run] for layer in self.layers) for run in (0, 1))
        return after / before - 1

    @property
    def damage(self) -> float:
        """What places are ranked by: kept tokens that differ, and the error of outputs."""
        return 1 - self.jaccard + self.output_error

    def to_json(self) -> dict[str, Any]:
        """Evidence for a file."""
        return {
            "samples": self.samples,
            "agreement": self.decisions,
            "accuracy": None if self.accuracy is None else list(self.accuracy),
            "output_error": self.output_error,
            "jaccard": self.jaccard,
            "flips": self.flips,
            "tokens": self.tokens,
            "layers": [asdict(layer) for layer in self.layers],
        }


def compare(
    model: Any, reference: Sequence[Observation], other: Sequence[Observation], labels: Sequence[int | None] = ()
) -> Agreement:
    """How a run compares with float32's of the same requests; `labels` are right classes of NLVR, None if unknown."""
    before, after = (all_decisions(model.config, [request.outputs for request in run]) for run in (reference, other))
    equal = [one == two for one, two in zip(before, after, strict=True)]
    errors = [_error(one.outputs, two.outputs) for one, two in zip(reference, other, strict=True)]
    layers = tuple(
        _layer(encoder, layer, [run.steps[index] for run in reference], [run.steps[index] for run in other])
        for index, (encoder, layer) in enumerate(encoder_layers(parts_of(model)))
    )
    known = [index for index, label in enumerate(labels) if label is not None]
    accuracy = None
    if known and model.config.task == "nlvr":
        right = [sum(run[index] == labels[index] for index in known) / len(known) for run in (before, after)]
        accuracy = right[0], right[1]
    return Agreement(len(reference), sum(equal) / len(equal), accuracy, sum(errors) / len(errors), layers)


def all_decisions(config: BlipConfig | ClipConfig, outputs: Sequence[Outputs]) -> list[Hashable]:
    pad_id = 0 if isinstance(config, ClipConfig) else config.pad_token_id
    ranked = all(set(EMBEDDINGS) <= one.keys() for one in outputs)
    matches = best_matches(outputs) if ranked else {}
    decided = [match for matched in matches.values() for match in matched]
    for one in outputs:
        alone = {name: value for name, value in one.items() if name != "sim"}
        decided += [answer for answers in decisions(alone, pad_id).values() for answer in answers]
    return decided


def _error(reference: Outputs, other: Outputs) -> float:
    """Of floating-point outputs of one shape, which tokens are not where other ones were kept."""
    moved = size = 0.0
    for name, value in reference.items():
        if value.is_floating_point() and value.shape == other[name].shape:
            moved += float((value - other[name]).square().mean())
            size += float(value.square().mean())
    return math.sqrt(moved / size) if size else 0.0


def _layer(
    encoder: str, layer: int, reference: Sequence[CompactRecord], other: Sequence[CompactRecord]
) -> LayerAgreement:
    kept: list[float] = []
    flipped = entered = 0
    moved: list[Tensor] = []
    margins: list[Tensor] = []
    for one, two in zip(reference, other, strict=True):
        kept += jaccards(one.source_ids, two.source_ids)
        rows = (one.entering_ids, two.entering_ids, one.source_ids, two.source_ids)
        for before, after, left, right in zip(*(row.tolist() for row in rows), strict=True):
            both = set(before) & set(after)
            flipped += len(both & (set(left) ^ set(right)))
            entered += len(both)
        margins.append(_margins(one).flatten())
        if torch.equal(one.entering_ids, two.entering_ids):
            moved.append((_margins(two) - _margins(one)).flatten())
    difference = torch.cat(moved) if moved else torch.zeros(1)
    noise = float(difference.square().mean().sqrt())
    return LayerAgreement(
        encoder,
        layer,
        sum(kept) / len(kept),
        flipped / max(entered, 1),
        (_mean_tokens(reference), _mean_tokens(other)),
        noise,
        float(difference.mean()),
        float((torch.cat(margins).abs() < WITHIN * noise).float().mean()),
    )


def _margins(record: CompactRecord) -> Tensor:
    """[B, N]: how far scores lie above the threshold, relative to the mean |score|."""
    return (record.importance - record.threshold[:, None]) / record.importance.abs().mean().clamp(min=1e-30)


def _mean_tokens(records: Sequence[CompactRecord]) -> float:
    return sum(record.tokens_out for record in records) / len(records)
