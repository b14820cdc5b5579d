"""Multiply-adds of the torch model."""

from collections.abc import Mapping
from functools import partial

from export.artifact.manifest import Gflops
from madtp.checkpoint.loading import Model
from madtp.data.samples import Config, SampleSet, collate
from madtp.models.parts import Part, parts_of
from madtp.ops.flops import count_call
from madtp.tasks.requests import run_request, torch_runners

FLOP_SAMPLES = 8


def model_gflops(model: Model, samples: SampleSet, temperature: float) -> Gflops:
    """What a request costs dense and pruned, and what it would cost without the margin that the model has."""
    parts, keep_margin = parts_of(model), model.keep_margin
    dense, pruned = (mean_gflops(model.config, parts, samples, tau) for tau in (0.0, temperature))
    if not keep_margin:
        return Gflops(dense, pruned)
    model.set_keep_margin(0.0)
    try:
        return Gflops(dense, pruned, mean_gflops(model.config, parts, samples, temperature))
    finally:
        model.set_keep_margin(keep_margin)


def mean_gflops(config: Config, parts: Mapping[str, Part], samples: SampleSet, temperature: float) -> float:
    """Mean GFLOPs per request, each alone; a generated text counts with the length that it got."""
    runners = torch_runners(parts)
    requests = samples.requests[:FLOP_SAMPLES]
    total = 0.0
    for request in requests:
        inputs = collate([request], config)
        total += count_call(partial(run_request, config, runners, inputs, temperature)).giga
    return total / len(requests)
