"""Overflow: sums against brute force and known distributions, and intervals that say how little is known."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from calibration import overflow
from calibration.overflow import Draws, batches_to_show, clopper_pearson, sum_quantile, sum_tails


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_tails_of_sums_are_those_of_all_draws(counts: list[int], batch: int) -> None:
    times = Counter(sum(drawn) for drawn in product(counts, repeat=batch))
    everything = len(counts) ** batch
    expected = [
        sum(number for total, number in times.items() if total >= least) / everything
        for least in range(batch * max(counts) + 2)
    ]
    np.testing.assert_allclose(sum_tails(np.array(counts), batch), expected, atol=1e-12)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), st.integers(1, 64), st.floats(1e-6, 0.5))
@settings(max_examples=40, deadline=None)
def test_a_quantile_is_the_least_that_is_exceeded_no_more_often(counts: list[int], batch: int, level: float) -> None:
    tails = sum_tails(np.array(counts), batch)
    quantile = sum_quantile(tails, level)
    assert tails[quantile + 1] <= level
    assert quantile == 0 or tails[quantile] > level
    assert quantile <= batch * max(counts)


@pytest.mark.parametrize(("seen", "batches"), [(0, 50), (3, 200), (7, 7)])
def test_intervals_are_the_exact_ones(seen: int, batches: int) -> None:
    expected = stats.binomtest(seen, batches).proportion_ci(0.95, method="exact")
    found = clopper_pearson(seen / batches, batches)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_so_many_batches_without_an_overflow_show_it() -> None:
    needed = batches_to_show(1e-3)
    assert clopper_pearson(0.0, needed).high <= 1e-3 < clopper_pearson(0.0, needed - 1).high


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "MOST_DRAWS", 40_000)


def dependent(rng: np.random.Generator, requests: int) -> np.ndarray:
    """Three layers of which each keeps a share of one size, as images do that are rich or plain."""
    size = rng.binomial(100, 0.4, requests)
    return np.stack([size, size // 2, size // 3], axis=1)


@pytest.mark.usefixtures("few_draws")
def test_layers_that_depend_on_each_other_share_the_probability() -> None:
    rng = np.random.default_rng(0)
    together, alone = Draws.of(dependent(rng, 2000), 8), Draws.of(rng.binomial(100, 0.4, (2000, 3)), 8)
    assert together.level(0.03) > 2 * alone.level(0.03) >= 2 * 0.01
    for draws in (together, alone):
        assert 0.02 < draws.overflow(draws.quantiles(draws.level(0.03))).share <= 0.03


@pytest.mark.usefixtures("few_draws")
def test_a_probability_too_small_to_draw_is_split_over_the_layers() -> None:
    assert Draws.of(dependent(np.random.default_rng(0), 500), 8).level(1e-5) == pytest.approx(1e-5 / 3)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("batch", [1, 16])
def test_prediction_holds_for_a_known_distribution(batch: int) -> None:
    """The sum of 16 binomials is a binomial, so what a capacity really does is known."""
    rng = np.random.default_rng(1)
    chosen, checked = (Draws.of(rng.binomial(100, 0.4, (count, 1)), batch) for count in (6000, 2000))
    capacities = chosen.quantiles(chosen.level(0.01))
    truth = stats.binom.sf(capacities[0], 100 * batch, 0.4)
    assert truth == pytest.approx(0.01, rel=0.5)
    for found in (chosen.overflow(capacities), checked.overflow(capacities)):
        assert found.low <= truth <= found.high
        assert found.share == pytest.approx(truth, rel=0.6)


@pytest.mark.usefixtures("few_draws")
def test_batches_that_share_a_rare_request_count_once() -> None:
    """One request of 64 overflows whatever is with it: that it came once says little about how often it comes."""
    rows = np.ones((64, 1), dtype=np.int64)
    rows[5] = 1000
    found = Draws.of(rows, 8).overflow([100])
    assert found.share == pytest.approx(1 - (63 / 64) ** 8, abs=0.01)
    assert found.batches < 12
    assert found.low < 0.02
    assert found.high > 0.4


def test_intervals_hold_the_truth_in_most_sets_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """95 of 100 would do. Sums of 8 are binomial, so the truth is known; each set has 200 requests."""
    monkeypatch.setattr(overflow, "MOST_DRAWS", 10_000)
    rng = np.random.default_rng(0)
    capacity = int(stats.binom.isf(0.01, 8 * 100, 0.4))
    truth = stats.binom.sf(capacity, 8 * 100, 0.4)
    found = [Draws.of(rng.binomial(100, 0.4, (200, 1)), 8).overflow([capacity]) for _ in range(100)]
    assert sum(one.low <= truth <= one.high for one in found) >= 95
    assert np.median([one.high for one in found]) < 6 * truth
