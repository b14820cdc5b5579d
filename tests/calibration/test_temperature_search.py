"""The search on curves that are known: found where it can be, refused where it cannot, doubted where it rises."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.budget import Budget
from calibration.runs import Run
from calibration.temperature_search import (
    LEAST_TEMPERATURE,
    check_reachable,
    mean_interval,
    rises,
    search,
)
from madtp.errors import TemperatureError
from madtp.models.config import MAX_TEMPERATURE


@given(st.floats(-4, 6), st.floats(0.3, 3), st.floats(0.05, 0.95), st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_a_falling_curve_is_followed_to_the_budget(middle: float, width: float, share: float, start: float) -> None:
    """From 10 to 2, around 10^middle."""
    asked: list[float] = []

    def cost(temperature: float) -> float:
        asked.append(temperature)
        return 2 + 8 / (1 + math.exp(min((math.log10(temperature) - middle) / width, 700)))

    ends = cost(LEAST_TEMPERATURE), cost(MAX_TEMPERATURE)
    target = ends[1] + share * (ends[0] - ends[1])
    found = search(cost, target, 0.02, 10**start)
    assert cost(found) == pytest.approx(target, rel=0.02)
    assert len(asked) < 35
    assert found == float(f"{found:.4g}") or found in (LEAST_TEMPERATURE, MAX_TEMPERATURE) or found in asked


def test_a_step_is_left_at_its_nearer_side() -> None:
    found = search(lambda temperature: 10.0 if temperature < 0.3 else 4.0, 5.0, 0.02, 1.0)
    assert found >= 0.3


BUDGETS = [
    (Budget("gflops", 20.0), "no less than what the dense model takes"),
    (Budget("gflops", 10.0), "no less than what the dense model takes"),
    (Budget("gflops", 9.0), "prunes at least that much"),
    (Budget("gflops", 1.0), "keeps the tokens above the mean"),
    (Budget("reduction", 0.9), "Temperatures reach 8 to 2 GFLOPs; the dense model takes 10 GFLOPs"),
    (Budget("latency", 0.001), "Temperatures reach 8 to 2 ms"),
]


@pytest.mark.parametrize(("budget", "part"), BUDGETS)
def test_impossible_budgets_are_refused_with_what_is_possible(budget: Budget, part: str) -> None:
    with pytest.raises(TemperatureError, match=part):
        check_reachable(budget, 0.02, 10.0, [8.0, 2.0])


@pytest.mark.parametrize("gflops", [8.1, 5.0, 1.97])
def test_budgets_at_the_ends_are_within_the_tolerance(gflops: float) -> None:
    check_reachable(Budget("gflops", gflops), 0.02, 10.0, [8.0, 2.0])


def test_an_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(5, 1, 400)
    found = mean_interval(list(values))
    assert found.half_width == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert found.low < found.mean < found.high
    assert mean_interval(list(values)) == found
    assert mean_interval([2.0] * 9).half_width == 0.0


def run(temperature: float, gflops: np.ndarray) -> Run:
    return Run(temperature, list(gflops), [])


def test_a_rise_beyond_noise_is_told() -> None:
    rng = np.random.default_rng(0)
    cost = rng.normal(10, 1, 100)
    dense, low, noisy, high = (
        run(0.0, cost - 5),
        run(1.0, cost),
        run(2.0, cost + rng.normal(0, 1, 100) * 0.01 + 1e-5),
        run(3.0, cost + rng.normal(0.5, 0.1, 100)),
    )
    (rise,) = rises([dense, low, noisy, high])
    assert (rise.temperature, rise.to) == (2.0, 3.0)
    assert rise.share == pytest.approx(0.05, rel=0.1)
    assert rises([run(1.0, cost), run(2.0, cost - 0.1)]) == []
