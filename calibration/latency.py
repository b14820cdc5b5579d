"""Latencies of the torch model on this machine: of one request at a time, several temperatures taking turns."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from madtp.models.parts import parts_of
from madtp.tasks.requests import run_request, torch_runners

REQUESTS = 8  # of each round
ROUNDS = 9  # after one that warms up
QUICK_ROUNDS = 4  # where a search tries one temperature after the other


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a request: the median of all rounds, and p10 and p90 of the rounds' medians."""

    median: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The file's content."""
        return asdict(self)


def measure_latencies(
    model: Any,
    inputs: Sequence[Mapping[str, Tensor]],
    temperatures: Sequence[float],
    rounds: int,
    on_round: Callable[[int, int], None] = lambda *_: None,
) -> dict[float, Latency]:
    """By temperature, the latency of requests (inputs of `run_request`, batch 1 each).

    In every round every request runs at every temperature, so that what else the machine does hits all of them.
    """
    runners = torch_runners(parts_of(model))
    seconds = np.empty((rounds + 1, len(temperatures), len(inputs)))
    with torch.no_grad():
        for number in range(rounds + 1):
            for column, request in enumerate(inputs):
                for row, temperature in enumerate(temperatures):
                    begin = time.perf_counter()
                    run_request(model.config, runners, request, temperature)
                    seconds[number, row, column] = time.perf_counter() - begin
            on_round(number + 1, rounds + 1)
    measured = 1e3 * seconds[1:]
    medians = np.median(measured, axis=2)
    return {
        temperature: Latency(float(np.median(measured[:, row])), *map(float, np.quantile(medians[:, row], (0.1, 0.9))))
        for row, temperature in enumerate(temperatures)
    }
