"""What is said of latencies: caveats go where the numbers go, and what is noise is not shown as a number."""

import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import junitparser
import pytest

import export.bench.run
from export.bench.calls import Case
from export.bench.measurement import read_measurement
from export.bench.operators import Operators, typical
from export.bench.report import (
    junit,
    latency_table,
    lines,
    markdown,
    operator_table,
    speed_up_table,
    verdict_table,
)
from export.bench.run import BenchOptions, BenchResult
from export.bench.statistics import Ratio
from export.bench.summary import to_json
from export.bench.verdict import Verdict, judge
from export.bench.words import TOO_FEW, TOO_NOISY, floor, half_width, sentence, sign, times
from tests.helpers.bench import FakeRunner, FakeTimer, fake_bench, save
from tests.helpers.checkpoints import TAU
from tests.helpers.command_line import Ran

CASE = Case(TAU, 1)
HALF = "other processes took 50 % of the CPUs while this was measured"


def unsteady(seed: int) -> Callable[[float], float]:
    """A machine that does anything."""
    rng = random.Random(seed)
    return lambda _: rng.lognormvariate(0, 2.5)


def cells(table: Any) -> str:
    return " | ".join(str(cell) for column in table.columns for cell in column.cells)


def cases_of(document: str) -> list[junitparser.TestCase]:
    return [entry for suite in junitparser.JUnitXml.fromstring(document) for entry in suite]


def properties_of(document: str) -> list[tuple[str, str]]:
    (suite,) = junitparser.JUnitXml.fromstring(document)
    return [(entry.name, entry.value) for entry in suite.properties()]


@pytest.fixture
def noisy(options: BenchOptions, tiny_artifact: Path) -> BenchResult:
    """Compared side by side on a machine that does anything."""
    timer = FakeTimer()
    beside = replace(options, against_engine=tiny_artifact / "out.onnx", seconds=2)
    runners = [FakeRunner(timer, seed, slowness=unsteady(seed)) for seed in (1, 2)]
    result: BenchResult = fake_bench(beside, timer, *runners, neighbours=0.5)
    return result


@pytest.fixture
def disturbed(options: BenchOptions) -> BenchResult:
    """Measured while others had half of the CPUs."""
    timer = FakeTimer()
    result: BenchResult = fake_bench(options, timer, FakeRunner(timer), neighbours=0.5)
    return result


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (Ratio(2.4, 0.03, 109.2), TOO_NOISY),
        (Ratio(1.0, 0.0, math.inf), TOO_FEW),
        (Ratio(1.1, 0.8, 1.3), TOO_NOISY),
        (Ratio(1.01, 0.98, 1.03), "undecided (0.98 to 1.03)"),
        (Ratio(0.8, 0.7, 0.9), "0.80x (0.70 to 0.90)"),
        (Ratio(3.0, 1.5, 6.0), "3.00x (1.50 to 6.00)"),
    ],
)
def test_a_speed_up_that_may_be_none_is_no_number(ratio: Ratio, said: str) -> None:
    assert times(ratio, 10.0, 10.0 / ratio.ratio) == said


@pytest.mark.parametrize("ratio", [Ratio(1.11, 1.02, 1.92), Ratio(0.9, 0.8, 0.95)])
def test_a_speed_up_that_the_p50s_contradict_is_no_number(ratio: Ratio) -> None:
    assert times(ratio, 10.0, 10.0 * ratio.ratio) == TOO_NOISY


@pytest.mark.parametrize(
    ("ratio", "p50", "said"),
    [
        (Ratio(2.4, 0.03, 109.2), (10.0, 24.0), TOO_NOISY),
        (Ratio(1.04, 1.0, 1.08), (10.0, 9.0), TOO_NOISY),  # the medians fell
        (Ratio(0.96, 0.9, 1.08), (10.0, 11.0), TOO_NOISY),  # the medians rose
        (Ratio(1.04, 1.0, 1.08), (10.0, 10.3), "undecided"),
        (Ratio(1.0, 0.99, 1.01), (10.0, 9.9), "passed"),
        (Ratio(9.0, 2.0, 40.0), (10.0, 90.0), "FAILED"),
    ],
)
def test_an_interval_that_says_nothing_is_no_percentage(ratio: Ratio, p50: tuple[float, float], said: str) -> None:
    verdict = judge(CASE, ratio, 0.05, p50=p50)
    assert sign(verdict) == said
    assert sentence(verdict).startswith(said)
    assert (said == TOO_NOISY) == ("(" not in sentence(verdict))


def test_noise_is_said_to_be_noise_in_tables(noisy: BenchResult) -> None:
    assert {verdict.outcome for verdict in noisy.verdicts} == {Verdict.UNDECIDED}
    assert all(verdict.too_noisy for verdict in noisy.verdicts)
    assert cells(verdict_table(noisy)).count(TOO_NOISY) == 2
    assert re.fullmatch(rf"temperature .*, batch 1 \| {TOO_NOISY} \| [\d.]+x \| ", cells(speed_up_table(noisy)))


def test_noise_is_said_to_be_noise_in_json(noisy: BenchResult) -> None:
    content = to_json(noisy)
    assert [entry["said"] for entry in content["comparison"]["verdicts"]] == [TOO_NOISY] * 2
    assert (content["comparison"]["verdict"], content["comparison"]["said"]) == ("undecided", TOO_NOISY)
    assert content["speed_ups"][0]["said"] == TOO_NOISY


def test_noise_is_said_to_be_noise_in_junit(noisy: BenchResult) -> None:
    for entry in cases_of(junit(noisy)):
        (skipped,) = entry.result
        assert isinstance(skipped, junitparser.Skipped)
        assert skipped.message == f"{TOO_NOISY}; allowed 5 %"
        assert TOO_NOISY in entry.system_out


def test_noise_has_no_percentages(noisy: BenchResult) -> None:
    document = junit(noisy)
    verdict = f"verdict: {TOO_NOISY} (of 2 cases 2 undecided; allowed 5 % slower; side by side"
    assert f"\n\n**{verdict}" in markdown(noisy)
    assert lines(noisy)[-1].startswith(verdict)
    for said in (markdown(noisy), document, cells(verdict_table(noisy)), cells(latency_table(noisy))):
        assert not re.search(r"[-+±] ?\d+\.\d %", said), "a percentage"
    assert cells(latency_table(noisy)).count("too noisy") == 2
    assert "ms (too noisy), p90" in document


def test_every_p50_is_the_same_number(options: BenchOptions, tiny_artifact: Path) -> None:
    """With neighbours that take the CPU: verdicts leave the waiting out, and p50s hold it everywhere."""
    timer = FakeTimer(lost=0.0)
    runners = [FakeRunner(timer, seed, waits=True) for seed in (1, 2)]
    result = fake_bench(replace(options, against_engine=tiny_artifact / "out.onnx"), timer, *runners)
    content = to_json(result)
    for number, verdict in enumerate(result.verdicts):
        now = f"{content['summaries'][number]['latency']['p50']:.2f}"
        then = f"{content['comparison']['earlier'][number]['latency']['p50']:.2f}"
        columns = [list(column.cells) for column in verdict_table(result).columns]
        assert [columns[1][number], columns[2][number]] == [then, now]
        assert [f"{value:.2f}" for value in content["comparison"]["verdicts"][number]["p50"]] == [then, now]
        assert list(latency_table(result).columns[1].cells)[number] == now
        assert f"| {verdict.case} | {now} |" in markdown(result)
        assert f"p50 {now} ms" in cases_of(junit(result))[number].system_out
        kept = sorted(content["measurement"]["cases"][number]["milliseconds"])
        assert f"{(kept[(len(kept) - 1) // 2] + kept[len(kept) // 2]) / 2:.2f}" == now


def test_a_verdict_that_the_p50s_do_not_show_is_explained(noisy: BenchResult) -> None:
    def said(verdict: Any) -> bool:
        return any("the p50s disagree with the slow-down" in line for line in lines(replace(noisy, verdicts=[verdict])))

    assert said(judge(CASE, Ratio(1.3, 1.2, 1.4), 0.05, p50=(10.0, 8.0)))
    assert said(judge(CASE, Ratio(1.0, 0.9, 1.02), 0.05, p50=(10.0, 12.0)))
    assert not said(judge(CASE, Ratio(1.3, 1.2, 1.4), 0.05, p50=(10.0, 13.0)))
    assert not said(judge(CASE, Ratio(1.01, 0.9, 1.02), 0.05, p50=(10.0, 9.9)))


def test_caveats_go_with_the_numbers(disturbed: BenchResult, tmp_path: Path) -> None:
    assert HALF in disturbed.measurement.caveats
    assert f"note: {HALF}" in lines(disturbed)
    assert f"- note: {HALF}" in markdown(disturbed)
    document = junit(disturbed)
    assert ("caveat", HALF) in properties_of(document)
    assert all(HALF in entry.system_out for entry in cases_of(document))
    content = to_json(disturbed)
    assert HALF in content["measurement"]["caveats"]
    assert HALF in content["notes"]
    noted = replace(disturbed.measurement, notes=["the room was hot"])
    path = save(noted, tmp_path / "base.json")
    assert read_measurement(path).caveats == noted.caveats
    older = json.loads(path.read_text())
    del older["caveats"]
    path.write_text(json.dumps(older))
    assert HALF in read_measurement(path).caveats


def test_caveats_of_a_baseline_are_said_too(disturbed: BenchResult, options: BenchOptions, tmp_path: Path) -> None:
    noted = replace(disturbed.measurement, notes=["the room was hot"])
    path = save(noted, tmp_path / "base.json", path="/gone/out.json")
    timer = FakeTimer()
    result = fake_bench(replace(options, against=path), timer, FakeRunner(timer, 3))
    assert HALF not in result.measurement.caveats
    for text in (HALF, "the room was hot"):
        assert f"note: of the baseline: {text}" in lines(result)
        assert ("caveat", f"of the baseline: {text}") in properties_of(junit(result))


def test_without_a_baseline_nothing_passes(
    options: BenchOptions, run_cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = FakeTimer()
    monkeypatch.setattr(
        export.bench.run, "bench", lambda options, progress, keep: fake_bench(options, timer, FakeRunner(timer))
    )
    report, table, everything = (tmp_path / name for name in ("bench.xml", "bench.md", "bench.json"))
    ran = run_cli("bench", options.artifact, "--junit", report, "--markdown", table, "--json", everything)
    assert ran.status == 0, ran.err
    for entry in cases_of(report.read_text()):
        (skipped,) = entry.result
        assert isinstance(skipped, junitparser.Skipped)
        assert "nothing was compared" in skipped.message
        assert "p50 " in entry.system_out
    assert "**verdict: none, nothing was compared" in table.read_text()
    assert "verdict: none, nothing was compared" in " ".join(ran.out.split())
    said = json.loads(everything.read_text())["comparison"]
    assert (said["verdict"], said["said"], said["verdicts"]) == (None, "nothing was compared", [])


@pytest.mark.parametrize(
    ("relative", "said"),
    [(0.021, "± 2.1 %"), (0.19, "± 19.0 %"), (0.21, "too noisy"), (1.87, "too noisy"), (None, "too few calls")],
)
def test_the_interval_of_a_median(relative: float | None, said: str) -> None:
    assert half_width(relative) == said


@pytest.mark.parametrize(
    ("noise_floor", "said"),
    [(0.0, "paired"), (0.14, "14.0 %"), (126.1, "too noisy"), (math.inf, "too few calls")],
)
def test_a_noise_floor_beyond_all_measure_is_no_percentage(noise_floor: float, said: str) -> None:
    assert floor(noise_floor) == said


def test_a_baseline_of_one_round_is_too_few_and_not_too_noisy(options: BenchOptions, tmp_path: Path) -> None:
    timer = FakeTimer()
    path = save(
        fake_bench(options, timer, FakeRunner(timer)).measurement, tmp_path / "base.json", path="/gone/out.json"
    )
    content = json.loads(path.read_text())
    for case in content["cases"]:
        for name in ("milliseconds", "waited_milliseconds"):
            case[name] = None if case[name] is None else case[name][:1]
    path.write_text(json.dumps(content))
    result = fake_bench(replace(options, against=path), timer, FakeRunner(timer, 3))
    assert lines(result)[-1].startswith(f"verdict: {TOO_FEW} (of 2 cases 2 undecided; ")
    assert [entry["said"] for entry in to_json(result)["comparison"]["verdicts"]] == [TOO_FEW] * 2
    assert cells(verdict_table(result)).count(TOO_FEW) == 2
    assert all(TOO_NOISY not in said for said in (markdown(result), junit(result), cells(verdict_table(result))))


def test_operators_that_the_profiled_calls_disagree_on_have_no_ratio(disturbed: BenchResult) -> None:
    def operators(steady: float, unsteady: list[float]) -> Operators:
        return typical([Operators("a profiler", {"MatMul": steady, "Add": value}, steady) for value in unsteady])

    dense, pruned = disturbed.measurement.cases
    profiled = {dense: operators(4.0, [1.0, 9.0, 2.0, 8.0]), pruned: operators(1.0, [9.0, 1.0, 8.0, 3.0])}
    table = operator_table(replace(disturbed, operators=profiled))
    rows = dict(zip(*(list(table.columns[place].cells) for place in (0, -2)), strict=True))
    assert rows == {"MatMul": "4.00x", "Add": "undecided", "all": "undecided"}
    losses = dict(zip(*(list(table.columns[place].cells) for place in (0, -1)), strict=True))
    assert losses["Add"] == "undecided"
    assert table.caption is not None
    assert "medians of 4 calls" in str(table.caption)


def test_what_a_file_says_cannot_change_how_a_result_reads(
    disturbed: BenchResult, options: BenchOptions, tmp_path: Path
) -> None:
    """A caveat of a baseline with what a terminal obeys, no XML takes, and a line of its own."""
    noted = replace(disturbed.measurement, notes=["hot\x1b[2J\n\n**verdict: passed**"])
    path = save(noted, tmp_path / "base.json", path="/gone/out.json")
    timer = FakeTimer()
    result = fake_bench(replace(options, against=path), timer, FakeRunner(timer, 3))
    said = "of the baseline: hot\\x1b[2J\\n\\n**verdict: passed**"
    assert ("caveat", said) in properties_of(junit(result))
    assert f"\n- note: {said}\n" in markdown(result)
    named = replace(result.measurement, samples={**result.measurement.samples, "origin": "a\x1bb"}, notes=["c\x1bd"])
    changed = replace(result, measurement=named, method="with '\x1b'")
    assert cases_of(junit(changed)), "it is XML"
    assert "\x1b" not in markdown(changed)
