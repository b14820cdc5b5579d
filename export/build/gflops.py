"""Multiply-adds of the torch model."""

from collections.abc import Mapping
from functools import partial

from madtp.data.samples import Config, SampleSet, collate
from madtp.models.parts import Part
from madtp.ops.flops import count_call
from madtp.tasks.requests import run_request, torch_runners

FLOP_SAMPLES = 8


def mean_gflops(config: Config, parts: Mapping[str, Part], samples: SampleSet, temperature: float) -> float:
    """Mean GFLOPs per request, each alone; a generated text counts with the length that it got."""
    runners = torch_runners(parts)
    requests = samples.requests[:FLOP_SAMPLES]
    total = 0.0
    for request in requests:
        inputs = collate([request], config)
        total += count_call(partial(run_request, config, runners, inputs, temperature)).giga
    return total / len(requests)
