"""Side-by-side latency: every candidate is timed in turn, round after round, so that noise hits all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WARMUP_ROUNDS = 1
NOISY = 1.5  # an interval whose bounds are further apart than this factor, no change within, says nothing
TOO_NOISY = "undecided: too noisy"


@dataclass(frozen=True)
class Latency:
    """Milliseconds a call: median, 10th and 90th percentile of `calls` timed calls."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    calls: int


@dataclass(frozen=True)
class Spread:
    """A ratio of latencies of the same round: median, 10th and 90th percentile of the rounds."""

    median: float
    p10: float
    p90: float

    @property
    def may_be_none(self) -> bool:
        """Rounds do not agree on which of the two is faster."""
        return self.p10 <= 1 <= self.p90

    @property
    def says_nothing(self) -> bool:
        """It may be much slower as well as much faster."""
        return self.may_be_none and self.p90 > NOISY * self.p10


def interleave(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 3, max_rounds: int = 50
) -> dict[str, Latency]:
    """What `time_rounds` measures, summarised."""
    times = time_rounds(candidates, seconds=seconds, min_rounds=min_rounds, max_rounds=max_rounds)
    return {name: summarize(values) for name, values in times.items()}


def ratio_of(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """How many times longer calls of `slow` took than those of `fast` in the same round."""
    p10, median, p90 = np.percentile(np.divide(slow, fast), [10, 50, 90])
    return Spread(float(median), float(p10), float(p90))


def time_rounds(
    candidates: Mapping[str, Callable[[], object]], *, seconds: float, min_rounds: int = 3, max_rounds: int = 50
) -> dict[str, list[float]]:
    """Call every candidate once a round for about `seconds`, at least `min_rounds` rounds after a warm-up.

    Returns:
        Milliseconds of every call, in order.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(WARMUP_ROUNDS):
        for call in candidates.values():
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


def summarize(values: Sequence[float]) -> Latency:
    """Median and percentiles of the milliseconds of calls."""
    p10, median, p90 = np.percentile(values, [10, 50, 90])
    return Latency(float(median), float(p10), float(p90), len(values))
