"""Latency: percentiles of milliseconds, and a short side-by-side measurement."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from export.bench.statistics import Ratio, relative_half_width


@dataclass(frozen=True)
class Latency:
    """Statistics of timed calls, in milliseconds."""

    calls: int  # number of calls
    mean: float
    deviation: float  # standard deviation
    p10: float
    p50: float
    p90: float
    p99: float
    relative_half_width: float | None  # half the confidence interval of p50, over p50; None: too few calls


def summarize(milliseconds: Sequence[float]) -> Latency:
    """The latency of at least one timed call."""
    values = np.asarray(milliseconds, dtype=np.float64)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    p10, p50, p90, p99 = map(float, np.percentile(values, [10, 50, 90, 99]))
    width = relative_half_width(milliseconds)
    known = width if math.isfinite(width) else None
    return Latency(len(values), float(values.mean()), deviation, p10, p50, p90, p99, known)


def ratio_of(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """How many times longer `slow` took than `fast` in the same round: the median of the rounds, with p10 and p90."""
    p10, p50, p90 = np.percentile(np.divide(slow, fast), [10, 50, 90])
    return Ratio(float(p50), float(p10), float(p90))


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 3, max_rounds: int = 50
) -> dict[str, Latency]:
    """The latencies of what `time_rounds` times."""
    times = time_rounds(candidates, seconds=seconds, min_rounds=min_rounds, max_rounds=max_rounds)
    return {name: summarize(values) for name, values in times.items()}


def time_rounds(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 3, max_rounds: int = 50
) -> dict[str, list[float]]:
    """Call every candidate once a round for about `seconds`, at least `min_rounds` rounds after a warm-up.

    Noise hits the candidates of a round alike.

    Returns:
        Milliseconds of every call, in order.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for call in candidates.values():  # warm-up
        call()
    started = time.perf_counter()
    rounds = 0
    while rounds < min_rounds or (rounds < max_rounds and time.perf_counter() - started < seconds):
        for name, call in candidates.items():
            begin = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - begin) * 1e3)
        rounds += 1
    return times
