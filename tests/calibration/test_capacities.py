"""Capacities: within the dense size, growing with the batch and with what is asked, chosen without what checks them."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration import overflow
from calibration.capacities import MULTIPLE, Bucket, Capacities, check_held_out, choose_capacities, dense_rows
from calibration.counts import RequestCounts
from calibration.tokens import Source
from madtp.errors import CapacityError
from tests.helpers.sizes import BASE, CLIP

SOURCE = Source("a" * 64, "nlvr", 0.5, "some samples", None)
PARTS = {"model": ("vision", "text")}
DENSE = {"vision": 60, "text": 10}


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overflow, "MOST_DRAWS", 20_000)
        yield


def counts_of(vision: np.ndarray, text: np.ndarray) -> RequestCounts:
    """Of [samples, layers] each; two images a request."""
    return RequestCounts(SOURCE, {"vision": 2, "text": 1}, {"vision": vision.tolist(), "text": text.tolist()})


def random_counts(seed: int, samples: int) -> RequestCounts:
    """Counts of two layers that fall from layer to layer and depend on each other."""
    rng = np.random.default_rng(seed)
    size = rng.beta(2, 5, (samples, 1))
    vision = np.maximum(np.floor(size * [50, 30]), 2)
    return counts_of(vision.astype(np.int64), rng.integers(2, 8, (samples, 1)) - [0, 1])


def choose(counts: RequestCounts, batches: list[int], share: float, held_out: int) -> Capacities:
    return choose_capacities(counts, PARTS, DENSE, batches, share, held_out)


def rows_of(bucket: Bucket) -> np.ndarray:
    return np.concatenate(list(bucket.rows.values()))


@given(st.integers(0, 1000), st.integers(8, 60), st.floats(1e-6, 0.3), st.floats(1e-6, 0.3))
@settings(max_examples=12, deadline=None)
def test_capacities_grow_with_the_batch_and_the_demand_up_to_the_dense_size(
    seed: int, samples: int, one: float, other: float
) -> None:
    counts, batches = random_counts(seed, samples), [1, 3, 24]
    strict, lax = (choose(counts, batches, share, samples // 4) for share in sorted((one, other)))
    for found in (strict, lax):
        before = np.zeros(4)
        for batch in batches:
            calibrated, *_, last = (rows_of(bucket) for bucket in found.buckets[batch])
            dense = batch * np.repeat(list(DENSE.values()), 2)
            assert (last == dense).all()
            assert (calibrated >= before).all()
            assert ((calibrated % MULTIPLE == 0) | (calibrated == dense)).all()
            for smaller, larger in zip(found.buckets[batch], found.buckets[batch][1:], strict=False):
                assert (rows_of(smaller) <= rows_of(larger)).all()
                assert rows_of(smaller).sum() < rows_of(larger).sum()
            before = calibrated
    for batch in batches:
        assert (rows_of(lax.buckets[batch][0]) <= rows_of(strict.buckets[batch][0])).all()


def test_held_out_requests_choose_nothing() -> None:
    counts = random_counts(0, 200)
    order = np.random.default_rng(overflow.SEED).permutation(200)
    changed = random_counts(0, 200)
    for number in order[:50]:
        changed.rows["vision"][number] = [60, 60]
    found, other = (choose(given, [8], 0.05, 50).buckets[8] for given in (counts, changed))
    assert rows_of(found[0]).tolist() == rows_of(other[0]).tolist()
    assert found[0].overflow["model"].predicted == other[0].overflow["model"].predicted
    assert other[0].overflow["model"].observed.share == 1.0


def test_prediction_and_observation_agree_and_repeat() -> None:
    counts = random_counts(3, 4000)
    found = choose(counts, [16], 0.02, 1000)
    shares = found.buckets[16][0].overflow["model"]
    assert 0 < shares.predicted.share <= 0.02
    assert shares.observed.low <= shares.predicted.share <= shares.observed.high
    assert choose(counts, [16], 0.02, 1000) == found


def test_nothing_overflows_the_lossless_bucket() -> None:
    for shares in choose(random_counts(0, 40), [4], 0.01, 10).buckets[4][-1].overflow.values():
        assert shares.predicted.share == shares.observed.share == 0.0


def test_a_bucket_lies_between_where_overflowing_is_dear() -> None:
    counts = random_counts(0, 2000)
    assert [len(choose(counts, [32], share, 500).buckets[32]) for share in (0.1, 1e-3)] == [3, 2]


def test_a_batch_that_needs_everything_has_the_lossless_bucket_alone() -> None:
    counts = counts_of(np.full((20, 2), 60), np.full((20, 2), 10))
    assert [rows_of(bucket).tolist() for bucket in choose(counts, [1], 0.1, 5).buckets[1]] == [[60, 60, 10, 10]]


def test_what_the_data_cannot_show_is_said() -> None:
    (few,) = choose(random_counts(0, 40), [1], 1e-3, 10).doubts
    assert "the 10 held-out requests show that at most" in few
    assert "3,688 independent batches" in few
    assert choose(random_counts(0, 4000), [1], 0.1, 1000).doubts == ()


def test_held_out_requests_that_contradict_are_said() -> None:
    changed = random_counts(0, 400)
    for number in np.random.default_rng(overflow.SEED).permutation(400)[:100]:
        changed.rows["vision"][number] = [60, 60]
    assert "more than the 5% that were asked for" in choose(changed, [4], 0.05, 100).doubts[0]


def test_dense_rows_are_those_of_all_sequences_of_a_request() -> None:
    assert dense_rows(BASE, {"vision": 2, "text": 1}, 64) == {"vision": 2 * 577, "text": 64}
    assert dense_rows(CLIP, {"vision": 1, "text": 1}, 0) == {"vision": 577, "text": 77}


@pytest.mark.parametrize(("samples", "share"), [(7, 0.25), (8, 0.01), (8, 0.99), (1, 0.25)])
def test_too_few_samples_are_refused(samples: int, share: float) -> None:
    with pytest.raises(CapacityError, match="say nothing about others"):
        check_held_out(samples, share, "some")
    assert check_held_out(8, 0.25, "some") == 2
