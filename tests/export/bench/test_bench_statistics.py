"""Latencies to verdicts: on recorded series of this kind of machine, and on made-up ones whose truth is known."""

import math
import random
import time
from pathlib import Path

import numpy as np
import pytest

from export.bench.calls import Case
from export.bench.latency import summarize
from export.bench.measure import FIRST_LOOK, MAX_ROUNDS, Ended, is_stable, measure, warm_up
from export.bench.measurement import read_measurement
from export.bench.operators import BETWEEN, summarize_events
from export.bench.statistics import (
    Ratio,
    evenly_spaced,
    noise_floor,
    paired_ratio,
    recorded_ratio,
    relative_half_width,
    token_groups,
)
from export.bench.timer import WallTimer
from export.bench.verdict import Verdict, judge, overall, parse_regression
from export.errors import OptionError
from tests.helpers.bench import FakeTimer
from tests.helpers.paths import ROOT

RECORDED = ROOT / "tests" / "data" / "bench"
CASE = Case(0.5, 1)
ALLOWED = 0.05


def recorded(name: str) -> dict[Case, list[float]]:
    measurement = read_measurement(RECORDED / f"{name}.json")
    return {case: measured.milliseconds for case, measured in measurement.cases.items()}


def noisy(count: int, seed: int, median: float = 10.0) -> list[float]:
    """Latencies with bursts of 20 slow calls, as a neighbour makes them."""
    rng = np.random.default_rng(seed)
    bursts = np.repeat(rng.random(-(-count // 20)) < 0.2, 20)[:count]
    return list(median * rng.lognormal(0, 0.08, count) * np.where(bursts, 1.8, 1.0))


def outcome(ratio: Ratio, floor: float = 0.0) -> Verdict:
    return judge(CASE, ratio, ALLOWED, floor).outcome


def test_a_summary_has_the_usual_numbers() -> None:
    summary = summarize([float(value) for value in range(1, 101)])
    assert (summary.calls, summary.mean, summary.p50) == (100, 50.5, 50.5)
    assert summary.p90 == pytest.approx(90.1)
    assert summary.p99 == pytest.approx(99.01)
    assert summary.deviation == pytest.approx(29.01, abs=0.01)


def test_of_too_few_calls_nothing_is_sure() -> None:
    few = [1.0, 2.0, 3.0]
    assert summarize([4.0]).deviation == 0
    assert relative_half_width(few) == noise_floor(few) == math.inf
    for ratio in (paired_ratio(few, few), recorded_ratio(few, few)):
        assert (ratio.low, ratio.high) == (0, math.inf)
        assert outcome(ratio) == Verdict.UNDECIDED


def test_more_calls_make_a_median_surer() -> None:
    assert relative_half_width(noisy(2000, 1)) < relative_half_width(noisy(100, 1)) / 2


def test_intervals_hold_the_truth() -> None:
    pairs = [(noisy(800, seed), noisy(800, 1000 + seed)) for seed in range(20)]
    for ratio in (paired_ratio, recorded_ratio):
        missed = sum(not (found := ratio(new, old)).low <= 1 <= found.high for new, old in pairs)
        assert missed <= 1, ratio.__name__  # of 20 intervals of 99.9 %


def test_what_the_order_of_opening_does_cancels_out() -> None:
    new, old = np.random.default_rng(0).lognormal(0, 0.05, (2, 400))
    new[:150], new[150:] = 1.1 * new[:150], new[150:] / 1.1
    assert paired_ratio(list(new), list(old), 150).ratio == pytest.approx(1.0, rel=0.02)
    assert paired_ratio(list(new), list(old)).ratio < 0.97
    few = paired_ratio(list(new), list(old), 390)
    assert (few.low, few.high) == (0, math.inf)


def test_noise_that_hits_a_whole_round_cancels_out_in_pairs() -> None:
    common = np.repeat(np.random.default_rng(0).lognormal(0, 1.0, 20), 10)
    new, old = np.array(noisy(200, 1)) * common, np.array(noisy(200, 1)) * common * 1.0001
    found = paired_ratio(list(new), list(old))
    assert found.high - found.low < 1e-9
    assert recorded_ratio(list(new), list(old)).high > 1.2


def test_identical_artifacts_never_fail_and_slower_ones_always_do() -> None:
    for seed in range(10):
        common = np.array(noisy(800, seed))
        own = [np.random.default_rng(100 * seed + which).lognormal(0, 0.1, 800) for which in range(2)]
        old, new = list(common * own[0]), list(common * own[1])
        assert outcome(paired_ratio(new, old)) == Verdict.PASS
        assert outcome(paired_ratio([1.15 * value for value in new], old)) == Verdict.FAIL


def test_recorded_series_of_the_same_artifact_do_not_fail() -> None:
    first, second = recorded("first"), recorded("second")
    for case, values in first.items():
        floor = max(noise_floor(values), noise_floor(second[case]))
        assert outcome(recorded_ratio(second[case], values), floor) != Verdict.FAIL
        assert outcome(recorded_ratio([2 * value for value in second[case]], values), floor) == Verdict.FAIL


def test_a_recorded_slow_artifact_fails_beside_its_original() -> None:
    original, slow = recorded("original"), recorded("slow")
    for case, values in original.items():
        ratio = paired_ratio(slow[case], values)
        assert ratio.ratio > 1.1
        assert outcome(ratio) == Verdict.FAIL


def test_the_noise_floor_is_the_drift_within_a_session() -> None:
    assert noise_floor([10.0] * 100) == 0
    assert noise_floor([10.0] * 50 + [11.0] * 50) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("low", "high", "floor", "expected"),
    [
        (0.98, 1.02, 0.0, Verdict.PASS),
        (1.06, 1.20, 0.0, Verdict.FAIL),
        (1.02, 1.08, 0.0, Verdict.UNDECIDED),
        (0.98, 1.02, 0.04, Verdict.UNDECIDED),
        (1.06, 1.20, 0.04, Verdict.UNDECIDED),
        (1.12, 1.20, 0.04, Verdict.FAIL),
        (1.05, 1.05, 0.0, Verdict.UNDECIDED),
    ],
)
def test_verdicts_follow_from_the_interval_alone(low: float, high: float, floor: float, expected: Verdict) -> None:
    assert outcome(Ratio((low + high) / 2, low, high), floor) == expected


def test_one_failure_fails_all() -> None:
    verdicts = {
        Verdict.PASS: judge(CASE, Ratio(1.0, 0.99, 1.01), ALLOWED),
        Verdict.UNDECIDED: judge(CASE, Ratio(1.0, 0.5, 2.0), ALLOWED),
        Verdict.FAIL: judge(CASE, Ratio(1.2, 1.1, 1.3), ALLOWED),
    }
    assert overall([]) == Verdict.PASS
    assert overall([verdicts[Verdict.PASS], verdicts[Verdict.UNDECIDED]]) == Verdict.UNDECIDED
    assert overall(verdicts.values()) == Verdict.FAIL


def test_regressions_are_percentages() -> None:
    assert parse_regression("5%") == 0.05
    assert parse_regression(" 2.5 %") == 0.025
    for text in ("", "5", "0.05", "x%", "-1%", "nan%", "inf%", "%"):
        with pytest.raises(OptionError, match="--max-regression"):
            parse_regression(text)


@pytest.mark.parametrize(
    ("totals", "groups"),
    [
        ([7.0], [[0]]),
        ([5.0, 5.0, 5.0], [[0, 1, 2]]),
        ([3.0, 1.0, 2.0, 9.0, 8.0, 7.0], [[1, 2], [0, 5], [3, 4]]),
        ([1.0, 1.0, 1.0, 2.0], [[0, 1, 2], [3]]),
    ],
)
def test_groups_by_tokens(totals: list[float], groups: list[list[int]]) -> None:
    assert token_groups(totals) == groups


def test_values_that_stand_for_all() -> None:
    values = [float(value) for value in random.Random(0).sample(range(24), 24)]
    assert [values[index] for index in evenly_spaced(values, 8)] == [1, 4, 7, 10, 13, 16, 19, 22]
    assert sorted(evenly_spaced(values, 99)) == list(range(24))
    assert evenly_spaced([1.0, 1.0], 1) == [1]


def never(_: object) -> bool:
    return False


def test_a_warm_up_ends_when_latencies_are_stable() -> None:
    timer = FakeTimer()
    slow_start = iter([100.0, 50.0, 25.0, 20.0, 15.0] + [10.0] * 1000)
    found = warm_up({"a": timer.takes(lambda _: next(slow_start))}, timer, seconds=1000)
    assert found.stable
    assert 17 <= found.rounds <= 20


def test_a_warm_up_that_does_not_settle_is_cut_and_says_so() -> None:
    timer, rng = FakeTimer(), random.Random(0)
    found = warm_up({"a": timer.takes(lambda _: rng.uniform(1, 100))}, timer, seconds=4)
    assert not found.stable
    assert 1.0 <= timer.seconds < 1.2
    assert not is_stable([1.0] * 14)


def test_measuring_ends_when_it_is_enough() -> None:
    timer = FakeTimer()
    seen: list[int] = []
    candidates = {name: timer.takes(lambda _: 10.0) for name in "ab"}
    found = measure(
        candidates,
        timer,
        100,
        lambda timings: len(timings.rounds) > FIRST_LOOK,
        lambda timings: seen.append(len(timings.rounds)),
    )
    assert found.ended == Ended.SETTLED
    assert len(found.rounds) == int(1.5 * FIRST_LOOK) + 1
    assert seen == list(range(1, len(found.rounds) + 1))
    assert found.series("a").milliseconds == pytest.approx([10.0] * len(found.rounds))


def test_measuring_ends_with_the_budget_but_not_before_the_first_look() -> None:
    timer = FakeTimer()
    assert len(measure({"a": timer.takes(lambda _: 10.0)}, timer, 1.0, never, lambda _: None).rounds) == 100
    short = measure({"a": timer.takes(lambda _: 10.0)}, timer, 0.001, never, lambda _: None)
    assert (len(short.rounds), short.ended) == (FIRST_LOOK, Ended.BUDGET)


def test_measuring_ends_after_very_many_rounds() -> None:
    timer = FakeTimer()
    found = measure({"a": timer.takes(lambda _: 0.0)}, timer, 1.0, never, lambda _: None)
    assert (len(found.rounds), found.ended) == (MAX_ROUNDS, Ended.ROUNDS)


def test_all_candidates_run_every_round_on_its_input_in_varying_order() -> None:
    calls: list[tuple[str, int]] = []
    timer = FakeTimer()
    candidates = {name: (lambda number, name=name: calls.append((name, number))) for name in "abc"}
    rounds = len(measure(candidates, timer, 0.0, never, lambda _: None).rounds)
    by_round = [calls[3 * number : 3 * number + 3] for number in range(rounds)]
    assert all(sorted(entries) == [(name, number) for name in "abc"] for number, entries in enumerate(by_round))
    assert len({tuple(name for name, _ in entries) for entries in by_round}) == 6


def test_what_a_call_waited_for_a_cpu_is_kept_apart() -> None:
    timer = FakeTimer(lost=0.0)

    def preempted(number: int) -> None:
        timer.seconds += 0.010 + 0.004 * (number % 3)
        timer.lost = (timer.lost or 0.0) + 0.004 * (number % 3)

    assert warm_up({"a": preempted}, timer, seconds=1000).rounds == 15
    found = measure({"a": preempted}, timer, 1.0, never, lambda _: None).series("a")
    assert found.milliseconds[:3] == pytest.approx([10.0, 14.0, 18.0])
    assert found.waited is not None
    assert found.waited[:3] == pytest.approx([0.0, 4.0, 8.0])
    assert found.own == pytest.approx([10.0] * len(found.own))


@pytest.mark.parametrize(
    ("before", "after", "waited"),
    [
        ("5 1000000 3", "6 6000000 4", 5.0),
        ("5 1000000 3", "6 1000000 3", 0.0),
        (
            "5 1000000 3",
            "6 60000000000 9",
            None,
        ),  # it waited before and after the call too: at most while it did not work
        ("0 0 0", "0 0 0", math.nan),
        ("5", "6", math.nan),
    ],
)
def test_waiting_is_read_off_the_scheduler(
    before: str, after: str, waited: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = tmp_path / "schedstat"
    counts.write_text(before)
    monkeypatch.setattr("export.bench.timer.SCHEDULED", counts)

    def call() -> None:
        time.sleep(0.02)
        counts.write_text(after)

    found = WallTimer().time(call)
    assert found.wall >= 20
    if waited is None:
        assert found.waited is not None
        assert 15 < found.waited < found.wall
    elif math.isnan(waited):
        assert found.waited is None
        assert found.own == found.wall
    else:
        assert found.waited == waited


def test_where_the_system_does_not_tell_nothing_was_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.bench.timer.SCHEDULED", Path("/nowhere"))
    assert WallTimer().time(lambda: None).waited is None


def test_an_interrupt_keeps_whole_rounds() -> None:
    timer = FakeTimer()

    def interrupted(number: int) -> None:
        if number == 7:
            raise KeyboardInterrupt
        timer.seconds += 0.01

    candidates = {"a": timer.takes(lambda _: 10.0), "b": interrupted}
    found = measure(candidates, timer, 100, never, lambda _: None)
    assert found.ended == Ended.INTERRUPTED
    assert [len(found.series(key).milliseconds) for key in "ab"] == [7, 7]


def test_a_profile_is_added_up_by_operator_and_custom_op() -> None:
    def node(name: str, operator: str, duration: int, inputs: list[list[int]], output: list[int]) -> dict[str, object]:
        shapes = {"input_type_shape": [{"float": s} for s in inputs], "output_type_shape": [{"float": output}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": duration, "args": {"op_name": operator, **shapes}}

    found = summarize_events(
        [
            {"cat": "Session", "name": "model_run", "dur": 5000},
            {"cat": "Session", "name": "session_initialization", "dur": 99999},
            node("linear", "MatMul", 1000, [[1, 8, 80]], [1, 8, 240]),
            node(
                "_inlfunc_AlignedAttention_token_4_AlignedAttention", "MatMul", 600, [[2, 8, 20], [2, 20, 8]], [2, 8, 8]
            ),
            node("_inlfunc_AlignedAttention_AlignedAttention", "Softmax", 400, [[2, 8, 8]], [2, 8, 8]),
            node("patches", "Conv", 1000, [[1, 3, 32, 32], [16, 3, 16, 16]], [1, 16, 2, 2]),
            node("constant", "Constant", 0, [], [1]),
        ],
        requests=2,
    )
    milliseconds = {"MatMul": 0.5, "AlignedAttention": 0.5, "Conv": 0.5, BETWEEN: 1.0, "Constant": 0.0}
    assert found.milliseconds == pytest.approx(milliseconds)
    expected = 8 * 80 * 240 + 2 * 8 * 8 * 20 + 2 * 2 * 16 * 3 * 16 * 16
    assert found.gflops == pytest.approx(expected / 1e9 / 2)
