"""Measurements for a page: tokens of every sample, latencies side by side."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.bench.latency import time_rounds
from export.runtime.checked import finite_runners
from madtp.data.samples import Config, Request, SampleSet, collate
from madtp.tasks.requests import Outputs, Runners, count_tokens, run_request

LATENCY_SECONDS = 10.0
EVERY_IMAGE = "vision"  # the encoder whose tokens are patches; it takes every image of a request
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the default temperature, unless temperatures are given

Counts = dict[str, NDArray[np.int64]]  # by encoder: tokens [samples, layers]


def temperatures_of(default: float, given: Sequence[float]) -> list[float]:
    """Ascending: dense, the default, and those given or, without any, some around the default."""
    around = given or [float(f"{default * factor:.4g}") for factor in FACTORS]
    return sorted({0.0, default, *around})


def alone(request: Request, config: Config, least: int) -> dict[str, Any]:
    """Inputs of one request; repeated where the artifact takes `least` or more at once, which changes no K."""
    return collate([request] * least, config)


def tokens_of(config: Config, runners: Runners, samples: SampleSet, temperature: float, least: int) -> Counts:
    """Tokens after each layer of every sample alone; of both images of an nlvr sample there are equally many.

    Raises:
        InputError: an output is not finite.
    """
    found: dict[str, list[Any]] = {}
    for number, request in enumerate(samples.requests):
        checked = finite_runners(runners, f"temperature {temperature:g}, sample {number}")
        for encoder, counts in count_tokens(config, checked, alone(request, config, least), temperature).items():
            found.setdefault(encoder, []).append(counts[0].numpy().astype(np.int64))
    return {encoder: np.stack(rows) for encoder, rows in found.items()}


def latencies(
    config: Config, runners: Runners, samples: SampleSet, temperatures: Sequence[float], least: int
) -> dict[float, list[float]]:
    """Milliseconds of calls with the smallest batch, by temperature; round after round on the next sample.

    Raises:
        InputError: an output is not finite.
    """
    inputs = [alone(request, config, least) for request in samples.requests]
    for tau in temperatures:  # decoders have not run before
        run_request(config, finite_runners(runners, f"temperature {tau:g}"), inputs[0], tau)
    calls = {str(tau): partial(_next_call, config, runners, cycle(inputs), tau) for tau in temperatures}
    times = time_rounds(calls, seconds=LATENCY_SECONDS)
    return {tau: times[str(tau)] for tau in temperatures}


def _next_call(config: Config, runners: Runners, inputs: Iterator[dict[str, Any]], temperature: float) -> Outputs:
    return run_request(config, runners, next(inputs), temperature)


def total_tokens(counts: Counts, images: int) -> NDArray[np.int64]:
    """[samples]: tokens of a request with so many images, summed over all layers and encoders, as `bench` sums them."""
    weighed = [rows.sum(axis=1) * (images if encoder == EVERY_IMAGE else 1) for encoder, rows in counts.items()]
    totals: NDArray[np.int64] = np.sum(weighed, axis=0)
    return totals
