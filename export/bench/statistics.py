"""Confidence intervals of latencies: milliseconds, in the order in which they were measured.

Consecutive latencies are correlated (a burst of other work lasts for many calls), so intervals come from a block
bootstrap: a series is cut into BLOCKS consecutive blocks, and blocks are resampled, not single calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCKS = 20
RESAMPLES = 1999
RESAMPLES_AT_ONCE = 100  # bounds memory: so many copies of a series
CONFIDENCE = 0.999  # of every interval: a run looks at several cases several times, and each look may err
SEED = 0  # the same numbers always give the same verdict
PARTS = 4  # of a session that is compared with itself
NOISY = 1.5  # an interval whose bounds are further apart than this factor says nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ratio:
    """How many times longer a call takes, 1.05 for 5 %, with the bounds of an interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_unknown(self) -> bool:
        """There were too few calls."""
        return self.high == float("inf")

    @property
    def may_be_none(self) -> bool:
        """The interval includes 1."""
        return self.low <= 1 <= self.high

    @property
    def is_wide(self) -> bool:
        """The bounds are further apart than the factor NOISY, or there were too few calls."""
        return self.high > NOISY * self.low

    def contradicted_by(self, over: float, under: float) -> bool:
        """Whether two medians, whose ratio this is about, say faster where it says slower, or the reverse."""
        return (over - under) * (self.ratio - 1) < 0


def relative_half_width(milliseconds: Sequence[float]) -> float:
    """Half the confidence interval of the median over the median; infinite for fewer than BLOCKS values."""
    if len(milliseconds) < BLOCKS:
        return float("inf")
    blocks = _blocks(milliseconds)
    low, high = _interval(_median, [blocks])
    return (high - low) / 2 / float(np.median(blocks))


def paired_ratio(new: Sequence[float], old: Sequence[float], swapped: int | None = None) -> Ratio:
    """How many times longer `new` takes than `old`, a value a round of each: the same input, measured side by side.

    From the median of the rounds' log ratios: what slows down a whole round cancels out. Where both artifacts were
    reopened in the other order before round `swapped`, it is the mean of the medians before and after: what the order
    does cancels out. The interval includes what both halves of the session say: a burst of noise proves nothing.
    """
    logs = _logs(new) - _logs(old)
    orders = [logs] if swapped is None else [logs[:swapped], logs[swapped:]]
    middle = _mean_median(*orders)
    if min(map(len, orders)) < BLOCKS:
        return _unknown(middle)
    low, high = _interval(_mean_median, [_blocks(order) for order in orders])
    halves = [_mean_median(*half) for half in zip(*(np.array_split(order, 2) for order in orders), strict=True)]
    return _from_logs(middle, min(low, *halves), max(high, *halves))


def recorded_ratio(new: Sequence[float], old: Sequence[float]) -> Ratio:
    """How many times longer `new` takes than `old`, measured in another session: the ratio of the medians.

    The interval knows the spread within both sessions, not what changed between them: widen it by `noise_floor`.
    """
    first, second = _logs(new), _logs(old)
    middle = float(np.median(first) - np.median(second))
    if min(len(new), len(old)) < BLOCKS:
        return _unknown(middle)
    low, high = _interval(lambda now, then: _median(now) - _median(then), [_blocks(first), _blocks(second)])
    return _from_logs(middle, low, high)


def noise_floor(milliseconds: Sequence[float]) -> float:
    """An artifact against itself (A/A): how far the medians of a session's quarters differ, 0.03 for 3 %.

    Infinite for fewer than BLOCKS values.
    """
    if len(milliseconds) < BLOCKS:
        return float("inf")
    medians = [float(np.median(part)) for part in np.array_split(np.asarray(milliseconds), PARTS)]
    return max(medians) / min(medians) - 1


def token_groups(totals: Sequence[float]) -> list[list[int]]:
    """Indices of the third of the calls that keeps fewest tokens, of the middle third, and of the one that keeps most.

    Calls of equal totals stay together, so there may be fewer groups.
    """
    values = np.asarray(totals, dtype=np.float64)
    edges = np.unique(np.quantile(values, [1 / 3, 2 / 3], method="lower"))
    groups = np.searchsorted(edges, values, side="left")
    return [np.flatnonzero(groups == number).tolist() for number in np.unique(groups)]


def evenly_spaced(values: Sequence[float], count: int) -> list[int]:
    """Indices of at most `count` representative values: one from the middle of each of as many equal shares."""
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    count = min(count, len(order))
    return [int(order[int((share + 0.5) * len(order) / count)]) for share in range(count)]


def _logs(milliseconds: Sequence[float]) -> Floats:
    return np.log(np.asarray(milliseconds, dtype=np.float64))


def _median(series: Floats) -> Any:
    """[..., values] -> [...]"""
    return np.median(series, axis=-1) if series.shape[-1] else np.nan


def _mean_median(*series: Floats) -> Any:
    return sum(map(_median, series)) / len(series)


def _blocks(values: Sequence[float] | Floats) -> Floats:
    """[BLOCKS, length]; what is left over is dropped from the beginning."""
    array = np.asarray(values, dtype=np.float64)
    return array[len(array) % BLOCKS :].reshape(BLOCKS, -1)


def _interval(statistic: Callable[..., Any], series: Sequence[Floats]) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of series of blocks, each [BLOCKS, length]."""
    rng = np.random.default_rng(SEED)
    found = []
    for start in range(0, RESAMPLES, RESAMPLES_AT_ONCE):
        count = min(RESAMPLES_AT_ONCE, RESAMPLES - start)
        drawn = [blocks[rng.integers(BLOCKS, size=(count, BLOCKS))].reshape(count, -1) for blocks in series]
        found.append(statistic(*drawn))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(np.concatenate(found), [tail, 100 - tail])
    return float(low), float(high)


def _from_logs(middle: float, low: float, high: float) -> Ratio:
    return Ratio(float(np.exp(middle)), float(np.exp(low)), float(np.exp(high)))


def _unknown(middle: float) -> Ratio:
    return Ratio(float(np.exp(middle)), 0.0, float("inf"))
