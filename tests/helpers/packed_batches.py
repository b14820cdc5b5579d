"""Requests together in the packed layout, and each of them alone in the dynamic one, which is the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from export.validate.packed_batch import inputs_alone, split_requests
from export.validate.run_result import LayerTokens, RunResult
from madtp.models.parts import Part, encoder_layers
from madtp.tasks.requests import Outputs, Runner, run_request, token_counts

if TYPE_CHECKING:
    from tests.golden import GoldenCase

Inputs = Mapping[str, Tensor]
INPUTS = {
    "nlvr": ("image0", "image1", "input_ids", "attention_mask"),
    "vqa": ("image", "input_ids", "attention_mask"),
    "caption": ("image", "prompt_ids"),
    "retrieval": ("image", "input_ids", "attention_mask"),
    "clip": ("image", "input_ids"),
}


@dataclass(frozen=True)
class PruningRunner:
    """A part in torch; a temperature of zero runs the pruning ops too."""

    part: Part

    @torch.no_grad()
    def run(self, inputs: Inputs, temperature: float) -> Outputs:
        given: dict[str, Any] = dict(inputs)
        if self.part.encoders:
            given["temperature"] = torch.tensor(temperature)
        return dict(self.part.module(**given)._asdict())


def inputs_of(case: "GoldenCase") -> dict[str, Tensor]:
    """What `run_request` takes of a recorded case."""
    given = {"input_ids": case.inputs["text"]} if "text" in case.inputs else {}
    return given | {name: case.inputs[name] for name in INPUTS[case.task] if name in case.inputs}


def alone(config: Any, runners: Mapping[str, Runner], inputs: Inputs, temperature: float) -> list[Outputs]:
    """What every request of a batch gets by itself."""
    return [run_request(config, runners, own, temperature) for own in inputs_alone(config, inputs)]


def differences(
    config: Any,
    parts: Mapping[str, Part],
    packed: Mapping[str, Runner],
    inputs: Inputs,
    temperature: float,
    expected: Sequence[Outputs],
) -> tuple[float, list[str]]:
    """Run a batch packed: the largest |difference| of outputs that are numbers, relative to an output's largest value
    where that is above one; and what is not equal but has to be."""
    outputs = run_request(config, packed, inputs, temperature)
    layers = [LayerTokens(encoder, index, 0) for encoder, index in encoder_layers(parts)]
    singles = [RunResult(one, []) for one in expected]
    worst, wrong = 0.0, []
    for index, (own, single) in enumerate(
        zip(split_requests(RunResult(outputs, layers), singles), expected, strict=True)
    ):
        for name, counts in token_counts(single).items():
            if not torch.equal(own.outputs[f"{name}_token_counts"], counts):
                wrong.append(f"{name} counts of request {index}")
        for name, value in single.items():
            found = own.outputs[name]
            if name.endswith("_ids"):
                length = value.shape[1]
                if not torch.equal(found[:, :length], value) or found[:, length:].any():
                    wrong.append(f"{name} of request {index}")
            elif value.is_floating_point():
                if found.shape != value.shape:
                    wrong.append(f"shape of {name} of request {index}")
                else:
                    scale = max(1.0, float(value.abs().max()))
                    worst = max(worst, float((found - value).abs().max()) / scale)
    return worst, wrong
