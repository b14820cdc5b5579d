"""Damage of a quantized precision: each bound alone fails, and none does within them."""

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
