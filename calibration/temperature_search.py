"""The temperature that meets a budget: bisection on costs that are measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import optimize, stats

from calibration.budget import Budget
from calibration.runs import DENSE, Run
from calibration.temperature_file import Interval
from madtp.errors import TemperatureError
from madtp.models.config import MAX_TEMPERATURE

LEAST_TEMPERATURE = 1e-6  # at it and below, a word of the dictionary weighs one token alone
GRID = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)  # of the temperature to begin with: a curve to choose from, and brackets
STEPS = 12
CLOSE = 1e-3  # of a bracket's ends, relative: no nearer to each other
CONFIDENCE = 0.95
SEED = 19

Cost = Callable[[float], float]  # of a temperature, in the budget's unit


def mean_interval(values: Sequence[float]) -> Interval:
    """By bootstrap, with a fixed seed; of numbers that are all equal there is nothing to draw."""
    mean = float(np.mean(values))
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (np.array(values),), np.mean, confidence_level=CONFIDENCE, rng=np.random.default_rng(SEED), method="percentile"
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def check_reachable(budget: Budget, tolerance: float, dense: float, pruned: Sequence[float]) -> None:
    """Refuse a budget that no temperature meets.

    Args:
        dense: what the dense model costs, in the budget's unit.
        pruned: what it costs at temperatures from the least to the largest.

    Raises:
        TemperatureError: with the range that can be reached.
    """
    cost, unit = budget.cost(dense), budget.unit
    reach = (
        f"Temperatures reach {max(pruned):.4g} to {min(pruned):.4g} {unit}; the dense model takes {dense:.4g} {unit}"
    )
    if cost >= dense:
        raise TemperatureError(
            f"the budget of {budget} is no less than what the dense model takes", f"{reach}.", "Use --temperature 0."
        )
    if cost < min(pruned) * (1 - tolerance):
        raise TemperatureError(
            f"no temperature meets the budget of {budget}",
            f"{reach}. The highest temperature keeps the tokens above the mean importance, and no fewer.",
            "Ask for more, or train the model to prune more.",
        )
    if cost > max(pruned) * (1 + tolerance):
        raise TemperatureError(
            f"no temperature meets the budget of {budget}",
            f"{reach}. Any temperature above zero prunes at least that much.",
            f"Ask for {max(pruned):.4g} {unit} or less, or use the dense model.",
        )


def search(cost: Cost, target: float, near: float, start: float) -> float:
    """The temperature at which `cost` comes nearest to `target`.

    Costs at a grid around `start`, which is stretched as far as needed, bracket the target; bisection (Brent's) on the
    logarithm of the temperature goes on from there, until the cost is as `near` (a share of the target), or the ends of
    the bracket are as close as CLOSE.
    """
    seen: dict[float, float] = {}

    def excess(temperature: float) -> float:
        seen[temperature] = cost(temperature) - target
        return seen[temperature]

    def of_logarithm(logarithm: float) -> float:
        found = excess(short(math.exp(logarithm)))
        return 0.0 if abs(found) <= near * target else found

    for temperature in grid(start):
        excess(temperature)
    while seen[min(seen)] < 0 and min(seen) > LEAST_TEMPERATURE:
        excess(short(min(seen) * GRID[0]))
    for stretched in (1, 2, 3, 4):
        if seen[max(seen)] > 0 and max(seen) < MAX_TEMPERATURE:
            excess(short(max(seen) * GRID[-1]) if stretched < 4 else MAX_TEMPERATURE)
    ordered = sorted(seen)
    for low, high in pairwise(ordered):
        if seen[low] > 0 >= seen[high]:
            optimize.brentq(of_logarithm, math.log(low), math.log(high), xtol=CLOSE, maxiter=STEPS, disp=False)
            break
    return min(seen, key=lambda temperature: (abs(seen[temperature]), temperature))


def grid(start: float) -> list[float]:
    """GRID times the temperature to begin with, which is itself among them."""
    return [limited(start) if factor == 1 else short(start * factor) for factor in GRID]


def short(temperature: float) -> float:
    """Four digits of it, within the limits: what can be typed again."""
    return limited(float(f"{limited(temperature):.4g}"))


def limited(temperature: float) -> float:
    """Within LEAST_TEMPERATURE and MAX_TEMPERATURE."""
    return min(max(temperature, LEAST_TEMPERATURE), MAX_TEMPERATURE)


@dataclass(frozen=True)
class Rise:
    """Mean GFLOPs that rise, beyond noise, from one measured temperature to the next; `share` of the lower one."""

    temperature: float
    to: float
    share: float


def rises(runs: Sequence[Run]) -> list[Rise]:
    """Where runs, ascending by temperature, cost more at the higher one: by more than 1.96 standard errors.

    The same requests run at both, so it is their differences that have noise.
    """
    found = []
    pruned = [run for run in runs if run.temperature > DENSE]
    for one, two in pairwise(pruned):
        difference = np.subtract(two.gflops, one.gflops)
        error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else 0.0
        if difference.mean() > stats.norm.ppf((1 + CONFIDENCE) / 2) * error:
            found.append(Rise(one.temperature, two.temperature, float(difference.mean()) / one.mean))
    return found
