"""Damage of a quantized precision: each bound alone fails, and none does within them."""

import math

import pytest

from export.validate.cost_bounds import CostBounds
from export.validate.precision_cost import PrecisionCost

GOOD = {"decisions": 100, "equal": 95, "jaccards": [0.97] * 4, "tokens": [(100, 101)], "flips": 3, "explained": 3}


def test_a_careful_quantization_is_no_damage() -> None:
    assert PrecisionCost(CostBounds(), **GOOD).damage == []


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"equal": 89}, "11 of 100 answers"),
        ({"jaccards": [0.97, 0.62]}, "Jaccard"),
        ({"tokens": [(100, 111)]}, "+11.0% tokens"),
        ({"tokens": [(100, 89)]}, "-11.0% tokens"),
        ({"explained": 2}, "1 of 3 tokens"),
    ],
)
def test_each_bound_fails_alone(changed: dict[str, object], named: str) -> None:
    (sentence,) = PrecisionCost(CostBounds(), **(GOOD | changed)).damage  # type: ignore[arg-type]
    assert named in sentence


def test_near_ties_are_not_other_answers() -> None:
    assert PrecisionCost(CostBounds(), **(GOOD | {"equal": 85, "tied": 10})).damage == []


def test_it_says_how_far_from_the_threshold_the_flips_lay() -> None:
    cost = PrecisionCost(CostBounds(), **(GOOD | {"margins": [0.02, 0.001, 0.004]}))  # type: ignore[arg-type]
    assert "3 tokens decided otherwise first, 3 of them near the threshold (at the median 4.0e-03" in str(cost)
    assert (cost.entry()["margin_median"], cost.entry()["margin_max"]) == (0.004, 0.02)
    cost.margins.append(math.inf)  # which JSON does not have
    assert cost.entry()["margin_max"] is None
