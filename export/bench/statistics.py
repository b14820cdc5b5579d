"""What a series of latencies says, and how sure that is. Times are milliseconds, in the order in which they were taken.

Latencies that follow each other resemble each other (a neighbour's burst of work lasts for many calls), so intervals
come from a block bootstrap: the series is cut into BLOCKS consecutive blocks, and blocks are drawn, not single calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from export.bench.latency import NOISY

BLOCKS = 20
RESAMPLES = 1999
CONFIDENCE = 0.999  # of every interval; a run looks at several cases several times, and each look may err
RESAMPLES_AT_ONCE = 100  # bounds memory: so many copies of a series
SEED = 0  # the same numbers always give the same verdict
OFTEN = 3
PARTS = 4  # of a session that is compared with itself

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A series in numbers: milliseconds, but for `calls` and `relative_half_width`.

    Attributes:
        relative_half_width: half the confidence interval of the median over the median; how well it is known.
    """

    calls: int
    mean: float
    deviation: float
    p50: float
    p90: float
    p99: float
    relative_half_width: float


@dataclass(frozen=True)
class Ratio:
    """How many times longer a call takes: 1.05 is 5 % slower. With the bounds of its confidence interval."""

    ratio: float
    low: float
    high: float

    @property
    def is_unknown(self) -> bool:
        """Calls were too few to tell."""
        return self.high == float("inf")

    @property
    def may_be_none(self) -> bool:
        """No difference lies within the interval."""
        return self.low <= 1 <= self.high

    @property
    def is_wide(self) -> bool:
        """The bounds are further apart than the factor NOISY; so they are where calls were too few to tell."""
        return self.high > NOISY * self.low

    def contradicted_by(self, over: float, under: float) -> bool:
        """The medians beside it say faster where it says slower, or the other way round."""
        return (over - under) * (self.ratio - 1) < 0

    @property
    def says_nothing(self) -> bool:
        """It may be much slower as well as much faster."""
        return self.may_be_none and self.is_wide


def summarize(milliseconds: Sequence[float]) -> Summary:
    """Mean, deviation, percentiles; of one value they are that value, and how well it is known is not (infinity)."""
    values = np.asarray(milliseconds, dtype=np.float64)
    p50, p90, p99 = (float(value) for value in np.percentile(values, [50, 90, 99]))
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Summary(len(values), float(values.mean()), deviation, p50, p90, p99, relative_half_width(values))


def median(milliseconds: Sequence[float]) -> float:
    """The p50 of `summarize`."""
    return float(np.percentile(np.asarray(milliseconds, dtype=np.float64), 50))


def relative_half_width(milliseconds: Sequence[float] | Floats) -> float:
    """Half the confidence interval of the median over the median; infinite for fewer than BLOCKS values."""
    if len(milliseconds) < BLOCKS:
        return float("inf")
    blocks = _blocks(milliseconds)
    low, high = _interval(lambda drawn: _medians(blocks, drawn), 1)
    return (high - low) / 2 / float(np.median(blocks))


def paired_ratio(new: Sequence[float], old: Sequence[float], swapped: int | None = None) -> Ratio:
    """How many times longer `new` takes, from calls that were made side by side.

    Args:
        new: one value a round.
        old: of the same rounds: the same input, a moment earlier or later.
        swapped: the first round before which both were opened anew in the other order; None: they were not.

    Returns:
        From the median of the rounds' log ratios: what slowed down a whole round cancels out. Where both were opened in
        both orders, it is the mean of the two medians: what the order does cancels out. The interval holds what both
        halves of the session give too: a burst of noise in one of them proves nothing.
    """
    logs = np.log(np.asarray(new, dtype=np.float64)) - np.log(np.asarray(old, dtype=np.float64))
    orders = [logs] if swapped is None else [logs[:swapped], logs[swapped:]]
    middle = _mean_median(orders)
    if min(map(len, orders)) < BLOCKS:
        return _unknown(middle)
    blocks = [_blocks(order) for order in orders]
    low, high = _interval(
        lambda *drawn: sum(_medians(*each) for each in zip(blocks, drawn, strict=True)) / len(blocks), len(blocks)
    )
    halves = [_mean_median(half) for half in zip(*(np.array_split(order, 2) for order in orders), strict=True)]
    return _from_logs(middle, (min(low, *halves), max(high, *halves)))


def recorded_ratio(new: Sequence[float], old: Sequence[float]) -> Ratio:
    """How many times longer `new` takes than a series of another session: the ratio of the medians.

    The interval knows the spread within both sessions, not what changed between them: widen it by `noise_floor`.
    """
    logs = [np.log(np.asarray(values, dtype=np.float64)) for values in (new, old)]
    difference = float(np.median(logs[0]) - np.median(logs[1]))
    if min(len(new), len(old)) < BLOCKS:
        return _unknown(difference)
    first, second = (_blocks(values) for values in logs)
    bounds = _interval(lambda drawn, others: _medians(first, drawn) - _medians(second, others), 2)
    return _from_logs(difference, bounds)


def of_one_input(new: Sequence[float], old: Sequence[float], calls: int) -> tuple[list[float], list[float]]:
    """Two sessions as if they had made one call only: what differs between their calls is no noise.

    A model that prunes takes longer for some inputs, and quarters of a session see others.

    Args:
        new: a value a round, which made call number round modulo `calls`.
        old: likewise, of another session.
        calls: different ones, the same in both.

    Returns:
        Both, over what a call takes in both of them beside the others. As they are where a session made its calls fewer
        than OFTEN times: then that cannot be told from noise.
    """
    if min(len(new), len(old)) < OFTEN * calls:
        return list(new), list(old)
    logs = [np.log(np.asarray(values, dtype=np.float64)) for values in (new, old)]
    usual = [np.array([np.median(values[call::calls]) for call in range(calls)]) for values in logs]
    beside = (usual[0] + usual[1]) / 2
    beside -= np.median(beside)
    first, second = (np.exp(values - beside[np.arange(len(values)) % calls]) for values in logs)
    return first.tolist(), second.tolist()


def noise_floor(milliseconds: Sequence[float]) -> float:
    """An artifact against itself: by how much the medians of the quarters of one session differ at most, 0.03 for 3 %.

    Quarters follow each other in time, so this sees the machine drift, as it also does between two sessions. Infinite
    for fewer than BLOCKS values.
    """
    if len(milliseconds) < BLOCKS:
        return float("inf")
    medians = [float(np.median(part)) for part in np.array_split(np.asarray(milliseconds), PARTS)]
    return max(medians) / min(medians) - 1


def level_change(now: Sequence[float], then: Sequence[float]) -> float:
    """By how much the medians of the same work in two sessions differ, 0.03 for 3 %, whichever is the slower one."""
    medians = float(np.median(now)), float(np.median(then))
    return max(medians) / min(medians) - 1


def token_groups(totals: Sequence[float]) -> list[list[int]]:
    """Calls by the tokens that they keep: indices of the third that keeps fewest, the middle one, the most.

    Args:
        totals: tokens of each call. Equal ones stay together, so there may be fewer groups; where all are equal, one.
    """
    values = np.asarray(totals, dtype=np.float64)
    edges = np.unique(np.quantile(values, [1 / 3, 2 / 3], method="lower"))
    which = np.searchsorted(edges, values, side="left")
    return [np.flatnonzero(which == number).tolist() for number in np.unique(which)]


def spread(values: Sequence[float], count: int) -> list[int]:
    """Indices of at most `count` values that stand for all: one from the middle of each of as many equal shares."""
    order = np.argsort(np.asarray(values, dtype=np.float64), kind="stable")
    count = min(count, len(order))
    return [int(order[int((share + 0.5) * len(order) / count)]) for share in range(count)]


def _mean_median(series: Sequence[Floats]) -> float:
    return float(np.mean([np.median(values) if len(values) else np.nan for values in series]))


def _blocks(values: Sequence[float] | Floats) -> Floats:
    """[BLOCKS, length]; what is left over is dropped from the beginning."""
    array = np.asarray(values, dtype=np.float64)
    return array[len(array) % BLOCKS :].reshape(BLOCKS, -1)


def _medians(blocks: Floats, drawn: NDArray[np.int64]) -> Any:
    """Medians [...] of the drawn blocks [..., BLOCKS]."""
    values = blocks[drawn]
    return np.median(values.reshape(*drawn.shape[:-1], -1), axis=-1)


def _interval(statistic: Callable[..., Any], series: int) -> tuple[float, float]:
    """Confidence interval of a statistic of drawn blocks of one or two series."""

    def of_drawn(*drawn: Any, axis: int = -1) -> Any:
        return statistic(*(np.moveaxis(np.asarray(indices, dtype=np.int64), axis, -1) for indices in drawn))

    interval = stats.bootstrap(
        tuple(np.arange(BLOCKS) for _ in range(series)),
        of_drawn,
        n_resamples=RESAMPLES,
        batch=RESAMPLES_AT_ONCE,
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _from_logs(middle: float, bounds: tuple[float, float]) -> Ratio:
    return Ratio(float(np.exp(middle)), float(np.exp(bounds[0])), float(np.exp(bounds[1])))


def _unknown(middle: float) -> Ratio:
    return Ratio(float(np.exp(middle)), 0.0, float("inf"))
