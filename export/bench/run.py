"""`python -m export bench`: measure an artifact, and compare it with an earlier one."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.bench.artifact import Described, describe, identity, open_described
from export.bench.baseline import (
    Measured,
    Measurement,
    artifact_at_hand,
    check_comparable,
    read_measurement,
)
from export.bench.calls import (
    DEMO_SAMPLES,
    Case,
    Inputs,
    calls_of,
    cases_of,
    probe,
    samples_sha256,
)
from export.bench.environment import BUSY, Neighbours, activity, machine, pinned
from export.bench.measure import Call, Timer, WallTimer, measure, warm_up
from export.bench.operators import Operators, profile
from export.bench.statistics import paired_ratio, recorded_ratio, relative_half_width
from export.bench.verdict import Outcome, Verdict, judge
from export.errors import OptionError
from export.pipeline import Progress
from export.samples import artifact_samples
from madtp.samples import Config
from madtp.tasks import Runner, run_request

PRECISION = 0.02  # relative half-width of the median's confidence interval at which measuring ends
STAGES = 4

Opener = Callable[[Described, int | None], dict[str, Runner]]


@dataclass(frozen=True)
class BenchOptions:
    """One run.

    Attributes:
        artifact: the manifest or the artifact.
        samples: folder of samples; None is the demo's.
        synthetic: generated samples instead.
        temperatures: beside dense; none is the manifest's default.
        batches: requests of a call; none is the profile's usual number.
        seconds: time to measure, warm-up and comparison together; reading, probing and profiling come on top.
        threads: of ONNX Runtime and torch, and CPUs that the process stays on; None leaves that to them.
        against: saved measurement to compare with.
        against_engine: artifact to compare with, side by side.
        allowed: slow-down that passes, 0.05 for 5 %.
        profile: also look where the time goes.
    """

    artifact: Path
    samples: Path | None = None
    synthetic: bool = False
    temperatures: Sequence[float] = ()
    batches: Sequence[int] = ()
    seconds: float = 30.0
    threads: int | None = None
    against: Path | None = None
    against_engine: Path | None = None
    allowed: float = 0.05
    profile: bool = True

    def __post_init__(self) -> None:
        if self.samples is not None and self.synthetic:
            raise OptionError("--samples and --synthetic exclude each other", fix="Give one of them.")
        if self.against is not None and self.against_engine is not None:
            raise OptionError("--against and --against-engine exclude each other", fix="Give one of them.")
        if not 0 < self.seconds < float("inf"):
            raise OptionError(f"--seconds is {self.seconds}", "It has to be more than zero.", "E.g. 30.")


@dataclass(frozen=True)
class BenchResult:
    """All of a run.

    Attributes:
        described: the artifact.
        measurement: what `--save` keeps.
        verdicts: of every case, empty where nothing was compared.
        method: how it was compared, in words.
        operators: by case, where the artifact can be profiled; of the smallest batch.
        notes: what a reader has to know about the numbers, a sentence each.
        interrupted: by Ctrl-C or SIGTERM; a measurement that had ended by then is whole.
    """

    described: Described
    measurement: Measurement
    verdicts: list[Verdict] = field(default_factory=list)
    method: str = ""
    operators: dict[Case, Operators] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class _Comparison:
    """What the artifact is compared with: recorded series, or another artifact that runs side by side."""

    recorded: Measurement | None = None
    described: Described | None = None
    method: str = ""

    def verdicts(
        self, series: Mapping[tuple[str, Case], Sequence[float]], allowed: float, neighbours: float
    ) -> list[Verdict]:
        """Of the series so far, while others took the share `neighbours` of the CPUs."""
        found = []
        for (role, case), values in series.items():
            if role != "new":
                continue
            if self.recorded is not None:
                earlier = self.recorded.cases[case]
                floor = max(earlier.noise_floor, Measured(list(values), earlier.kept).noise_floor)
                ratio = recorded_ratio(values, earlier.milliseconds)
                then, now = self.recorded.neighbours > BUSY, neighbours > BUSY
                found.append(judge(case, ratio, allowed, floor, disturbed_now=now, disturbed_then=then))
            else:
                found.append(judge(case, paired_ratio(values, series["old", case]), allowed))
        return found


def bench(
    options: BenchOptions,
    progress: Progress,
    opener: Opener = open_described,
    timer: Timer | None = None,
    neighbours: Callable[[], float] | None = None,
) -> BenchResult:
    """Measure.

    Args:
        options: of the run.
        progress: told of STAGES stages.
        opener: makes the runners.
        timer: takes the time; None is the wall clock.
        neighbours: share of the CPUs that other processes take; None measures it.

    Returns:
        Also after Ctrl-C or SIGTERM once there is a whole round: `measurement.partial`.

    Raises:
        MadtpError: an artifact, samples, baseline or machine that cannot be used.
        KeyboardInterrupt: before there was anything to return.
    """
    timer = timer or WallTimer()
    progress.stage("reading")
    described = describe(options.artifact)
    cases = cases_of(described.manifest, options.temperatures, options.batches)
    where = (described.manifest, described.folder, described.config)
    samples = artifact_samples(*where, options.samples, options.synthetic, demos=DEMO_SAMPLES).prepared
    about = {"origin": samples.origin, "requests": len(samples), "sha256": samples_sha256(samples)}
    with pinned(options.threads):
        here = machine(options.threads)
        comparison = _comparison(options, described, here, about, cases)
        notes = _notes(len(samples), comparison, described)
        calls = {case: calls_of(samples, described.config, case.batch) for case in cases}
        progress.stage("opening the artifact, and one call of each kind")
        runners = opener(described, options.threads)
        kept = {case: probe(described.config, runners, calls[case], case) for case in cases}
        candidates = {("new", case): _call(described.config, runners, calls[case], case) for case in cases}
        if comparison is not None and comparison.described is not None:
            other = comparison.described
            earlier = opener(other, options.threads)
            for case in cases:
                probe(other.config, earlier, calls[case][:1], case)
                candidates["old", case] = _call(other.config, earlier, calls[case], case)
        before = activity()
        progress.stage(f"measuring {len(cases)} cases for up to {options.seconds:g} s")
        neighbours = neighbours or Neighbours().share
        began = timer.now()
        warmed = warm_up(candidates, timer, options.seconds)
        timings = measure(
            candidates,
            timer,
            options.seconds - (timer.now() - began),
            _settled(comparison, options.allowed, neighbours),
            lambda rounds: progress.detail(f"{rounds} rounds"),
            group=lambda key: key[1],
        )
        share = neighbours()
        if timings.rounds == 0:
            raise KeyboardInterrupt
        measurement = Measurement(
            identity(described),
            about,
            here,
            before,
            activity(),
            warmed,
            timings.ended,
            share,
            {case: Measured(timings.series["new", case], kept[case]) for case in cases},
        )
        if measurement.partial:
            return BenchResult(described, measurement, notes=notes, interrupted=True)
        operators: dict[Case, Operators] = {}
        interrupted = False
        try:
            operators = _profile(options, described, calls, progress)
        except KeyboardInterrupt:
            interrupted = True
    verdicts = [] if comparison is None else comparison.verdicts(timings.series, options.allowed, share)
    method = "" if comparison is None else comparison.method
    return BenchResult(described, measurement, verdicts, method, operators, notes, interrupted)


def _comparison(
    options: BenchOptions, described: Described, here: Any, samples: Mapping[str, Any], cases: Sequence[Case]
) -> _Comparison | None:
    if options.against_engine is not None:
        other = describe(options.against_engine)
        _check_other(other, described, cases)
        return _Comparison(described=other, method=f"side by side with '{other.path}'")
    if options.against is None:
        return None
    baseline = read_measurement(options.against)
    check_comparable(baseline, options.against, identity(described), here, samples, cases)
    at_hand = artifact_at_hand(baseline)
    if at_hand is not None:
        return _Comparison(described=describe(at_hand), method=f"side by side with the baseline's artifact '{at_hand}'")
    return _Comparison(recorded=baseline, method=f"with the latencies in '{options.against}'")


def _check_other(other: Described, described: Described, cases: Sequence[Case]) -> None:
    """Refuse an artifact that cannot answer the same calls."""
    for key in ("task", "image_size", "vocab_size"):
        theirs, ours = getattr(other.config, key), getattr(described.config, key)
        if theirs != ours:
            raise OptionError(
                f"'{other.path}' takes other inputs than the artifact",
                f"Its {key} is {theirs}, the artifact's {ours}.",
                "Name an artifact of the same kind.",
            )
    cases_of(other.manifest, [case.temperature for case in cases], [case.batch for case in cases])


def _notes(samples: int, comparison: _Comparison | None, described: Described) -> list[str]:
    notes = []
    if samples == 1:
        notes.append("there is one sample: an adaptive model has a distribution, and one is not one")
    other = comparison.described if comparison is not None else None
    if other is not None:
        for key in ("precision", "layout", "batching", "temperature"):
            if other.manifest[key] != described.manifest[key]:
                notes.append(f"{key} is {described.manifest[key]}, of the earlier artifact {other.manifest[key]}")
    return notes


def _call(config: Config, runners: Mapping[str, Runner], calls: Sequence[Inputs], case: Case) -> Call:
    return lambda number: run_request(config, runners, calls[number % len(calls)], case.temperature)


def _settled(
    comparison: _Comparison | None, allowed: float, neighbours: Callable[[], float]
) -> Callable[[Mapping[tuple[str, Case], Sequence[float]]], bool]:
    """Enough: every verdict is in, or without a comparison every median is known to PRECISION."""
    if comparison is None:
        return lambda series: all(relative_half_width(values) <= PRECISION for values in series.values())
    return lambda series: all(
        verdict.outcome != Outcome.UNDECIDED for verdict in comparison.verdicts(series, allowed, neighbours())
    )


def _profile(
    options: BenchOptions, described: Described, calls: Mapping[Case, Sequence[Inputs]], progress: Progress
) -> dict[Case, Operators]:
    if not options.profile or described.manifest["backend"]["name"] != "onnxruntime":
        return {}
    progress.stage("profiling operators")
    smallest = min(case.batch for case in calls)
    with tempfile.TemporaryDirectory() as scratch:
        return {
            case: profile(described, calls[case], case, Path(scratch), options.threads)
            for case in calls
            if case.batch == smallest
        }
