"""Budgets: read with their units, one of them, and no nonsense."""

from typing import Any

import pytest

from calibration.budget import Budget, choose_budget, parse_duration
from madtp.errors import InputError


@pytest.mark.parametrize(
    ("text", "seconds"), [("3ms", 3e-3), ("0.5s", 0.5), ("250us", 2.5e-4), (" 1e3 ms ", 1.0), ("2 s", 2.0)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text, "--latency") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["3", "ms", "-1ms", "0s", "nan s", "1e999s", "3 minutes", "1-2ms", ""])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="a duration with its unit"):
        parse_duration(text, "--latency")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gflops": 26.5}, Budget("gflops", 26.5)),
        ({"reduction": 0.8}, Budget("reduction", 0.8)),
        ({"latency": "3ms"}, Budget("latency", 0.003)),
    ],
)
def test_a_budget_is_the_one_that_is_given(given: dict[str, Any], expected: Budget) -> None:
    assert choose_budget(**{"gflops": None, "reduction": None, "latency": None, **given}) == expected


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({}, "no budgets are given"),
        ({"gflops": 1.0, "reduction": 0.5}, "2 budgets are given"),
        ({"gflops": float("nan")}, "--gflops is nan"),
        ({"gflops": float("inf")}, "--gflops is inf"),
        ({"gflops": -1.0}, "--gflops is -1"),
        ({"reduction": float("nan")}, "--reduction is nan"),
        ({"reduction": 1.0}, "--reduction is 1"),
        ({"reduction": 0.0}, "--reduction is 0"),
    ],
)
def test_nonsense_is_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        choose_budget(**{"gflops": None, "reduction": None, "latency": None, **given})


def test_a_cost_is_in_the_unit_that_is_measured() -> None:
    assert Budget("reduction", 0.8).cost(10.0) == pytest.approx(2.0)
    assert (Budget("latency", 0.003).cost(10.0), Budget("latency", 0.003).unit) == (pytest.approx(3.0), "ms")
    assert (Budget("gflops", 4.0).cost(10.0), Budget("gflops", 4.0).unit) == (4.0, "GFLOPs")
