"""Histograms of activations: the ranges that they give, whatever the values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from calibration import histograms as module
from calibration.histograms import MOST_BINS, Histograms

SIZES = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)
BATCHES = st.lists(arrays(np.float32, st.integers(1, 40), elements=SIZES), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(BATCHES)
def test_ranges_hold_the_data_and_none_is_wider_than_it(batches: list[np.ndarray]) -> None:
    histograms = Histograms()
    for batch in batches:
        histograms.add("x", batch)
    ranges, values = histograms.ranges()["x"], np.concatenate(batches)
    assert ranges["minmax"] == (values.min(), values.max())
    for low, high in ranges.values():
        assert values.min() <= low <= high <= values.max()


def test_a_range_by_percentile_leaves_the_rarest_values_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTROPY_BINS", 512)
    values = np.random.default_rng(0).standard_normal(10**6).astype(np.float32)
    values[0] = 100
    histograms = Histograms()
    for batch in np.split(values, 10):
        histograms.add("x", batch)
    ranges = histograms.ranges()["x"]
    assert ranges["minmax"][1] == 100
    low, high = ranges["percentile"]
    assert -4.5 < low < -3.5
    assert 3.5 < high < 4.5
    assert ranges["entropy"][1] < 100


def test_values_that_grow_without_end_do_not_take_memory_without_end() -> None:
    histograms = Histograms()
    for exponent in range(-40, 30, 10):
        histograms.add("x", np.linspace(-1, 1, 100, dtype=np.float64) * 10.0**exponent)
    content = histograms.to_json()["x"]
    assert len(content["counts"]) <= 2 * MOST_BINS
    assert sum(content["counts"]) == 700
    assert histograms.ranges()["x"]["minmax"] == pytest.approx((-1e20, 1e20))


def test_histograms_survive_being_written() -> None:
    histograms = Histograms()
    histograms.add("x", np.linspace(-1, 3, 50, dtype=np.float32))
    again = Histograms.from_json(histograms.to_json())
    for one in (histograms, again):
        one.add("x", np.linspace(-5, 2, 70, dtype=np.float32))
    assert again.to_json() == histograms.to_json()
    assert again.ranges() == histograms.ranges()
