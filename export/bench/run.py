"""`python -m export bench`: measure an artifact, and compare it with an earlier one."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from export.bench.artifact import identity, uncaptured
from export.bench.baseline import Comparison, changes, differences, side_by_side, with_baseline
from export.bench.calls import DEMO_SAMPLES, Case, Inputs, Kept, calls_of, cases_of, probe, samples_sha256
from export.bench.environment import Activity, Machine, activity, machine, pinned
from export.bench.instruments import Instruments, instruments_for
from export.bench.measure import FIRST_LOOK, Call, Ended, Timings, WarmUp, measure, warm_up
from export.bench.measurement import Measured, Measurement, Timed
from export.bench.operators import Operators, profile, summarize_layers, turns, typical
from export.bench.statistics import relative_half_width, spread
from export.bench.verdict import Outcome, Verdict
from export.bench.yardstick import Yardstick, repetitions
from export.console import Progress
from export.engine.profile import batch_and_text
from export.errors import OptionError
from export.runtime.artifact import Artifact
from export.runtime.runner import RunnerOptions
from export.samples.choice import DataOptions, choose_samples
from madtp.data.samples import Config
from madtp.errors import MadtpError
from madtp.files.scratch import scratch_folder
from madtp.tasks.requests import Runner, run_request

PRECISION = 0.02  # relative half-width of the median's confidence interval at which measuring ends
STAGES = 4
SWAPPED_LOOK = 40  # rounds at least with what is compared opened in one order, and then in the other
DIGITS = 4  # of milliseconds
KEEP_SECONDS = 10.0  # between writings of what was measured so far
PROFILED_CALLS = 8  # of the smallest batch
FEWEST_PROFILED_CALLS = 2  # of larger ones
NEW, OLD, WORK = "new", "old", "yardstick"  # what is timed of a case

Opener = Callable[[Artifact, RunnerOptions], dict[str, Runner]]
Key = tuple[str, Case]


@dataclass(frozen=True)
class BenchOptions:
    """One run.

    Attributes:
        artifact: the manifest or the artifact.
        samples: folder of samples; None is the demo's.
        synthetic: generated samples instead.
        temperatures: beside dense; none is the manifest's default.
        batches: requests of a call; none is the profile's usual number.
        seconds: time to measure, warm-up and comparison together, more where FIRST_LOOK rounds take longer; reading,
            probing and profiling come on top.
        threads: of ONNX Runtime and torch, and CPUs that the process stays on; None leaves that to them.
        against: saved measurement to compare with.
        against_engine: artifact to compare with, side by side.
        allowed: slow-down that passes, 0.05 for 5 %.
        profile: also look where the time goes.
        cuda_graphs: replay plans as CUDA graphs, where TensorRT can.
        allow_outside: also take samples' images whose names lead out of their folder.
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
    cuda_graphs: bool = False
    allow_outside: bool = False

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
        runs: of each part in a call, by case.
        verdicts: of every case, empty where nothing was compared.
        method: how it was compared, in words.
        earlier: latencies of what it was compared with, by case.
        operators: by case; empty where nothing was profiled.
        notes: what a reader has to know about the comparison, a sentence each; `measurement.caveats` has the rest.
        interrupted: by Ctrl-C or SIGTERM; a measurement that had ended by then is whole.
    """

    described: Artifact
    measurement: Measurement
    runs: dict[Case, dict[str, float]]
    verdicts: list[Verdict] = field(default_factory=list)
    method: str = ""
    earlier: dict[Case, Timed] = field(default_factory=dict)
    operators: dict[Case, Operators] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


@dataclass(frozen=True)
class _Run:
    """A run on its way, from when everything is opened.

    Attributes:
        options: of it.
        described: the artifact.
        about: the samples, as a measurement names them.
        here: the machine.
        comparison: with what; None compares nothing.
        using: what measures.
        kept: tokens of the calls of every case.
        times: repetitions of the yardstick beside a call of each case.
        before: what the machine was doing.
        neighbours: share of the CPUs that others took since measuring began.
        warmed: how the warm-up went.
        notes: what makes the numbers worth less, a sentence each.
    """

    options: BenchOptions
    described: Artifact
    about: Mapping[str, Any]
    here: Machine
    comparison: Comparison | None
    using: Instruments
    kept: dict[Case, Kept]
    times: dict[Case, int]
    before: Activity
    neighbours: Callable[[], float]
    warmed: WarmUp
    notes: list[str]

    def cases(self, timings: Timings[Key]) -> dict[Case, Measured]:
        """What was timed, by case."""
        found = {}
        for case, kept in self.kept.items():
            key = (NEW, case)
            beside = None
            if self.using.yardstick is not None:
                beside = [value / self.times[case] for value in timings.own((WORK, case))]
            device, timed = timings.device.get(key), _timed(timings, key)
            device = None if device is None else _rounded(device)
            found[case] = Measured(timed.milliseconds, kept, device, timed.waited, beside, self.times.get(case))
        return found

    def measurement(self, timings: Timings[Key]) -> Measurement:
        """What was measured so far; partial while it goes on."""
        return Measurement(
            identity(self.described),
            self.about,
            self.here,
            self.before,
            activity(),
            self.warmed,
            timings.ended,
            self.neighbours(),
            self.options.cuda_graphs,
            None if self.using.yardstick is None else self.using.yardstick.name,
            self.cases(timings),
            self.notes,
        )

    def verdicts(self, timings: Timings[Key]) -> list[Verdict]:
        """Of every case; none where nothing is compared."""
        if self.comparison is None:
            return []
        old = self.earlier(timings)
        beside = None if self.using.yardstick is None else self.using.yardstick.name
        return self.comparison.verdicts(
            self.cases(timings), old, self.options.allowed, self.neighbours(), beside, timings.swapped
        )

    def earlier(self, timings: Timings[Key]) -> dict[Case, Timed]:
        """Latencies of what it is compared with; empty where nothing is."""
        if self.comparison is not None and self.comparison.recorded is not None:
            recorded = self.comparison.recorded.cases
            return {case: Timed(recorded[case].milliseconds, recorded[case].waited) for case in self.kept}
        return {case: _timed(timings, (what, case)) for what, case in timings.series if what == OLD}

    def settled(self, timings: Timings[Key]) -> bool:
        """Every verdict is in, or without a comparison every median is known to PRECISION."""
        if self.comparison is not None:
            return all(verdict.outcome != Outcome.UNDECIDED for verdict in self.verdicts(timings))
        return all(relative_half_width(timings.series[NEW, case]) <= PRECISION for case in self.kept)


def bench(
    options: BenchOptions,
    progress: Progress,
    keep: Callable[[Measurement], None] = lambda _: None,
    opener: Opener = Artifact.open_runners,
    instruments: Callable[[Artifact], Instruments] = instruments_for,
) -> BenchResult:
    """Measure.

    Args:
        options: of the run.
        progress: told of STAGES stages.
        keep: given what was measured so far, marked partial, after the first round and every KEEP_SECONDS: a run that
            is killed leaves that.
        opener: makes the runners.
        instruments: what measures an artifact.

    Returns:
        Also after Ctrl-C or SIGTERM once there is a whole round: `measurement.partial`.

    Raises:
        MadtpError: an artifact, samples, baseline or machine that cannot be used.
        KeyboardInterrupt: before there was anything to return.
    """
    progress.stage("reading")
    described = Artifact.open(options.artifact)
    if options.cuda_graphs and not described.manifest.is_plan:
        raise OptionError("--cuda-graphs applies to plans", f"'{described.path}' runs on the CPU.", "Leave it out.")
    cases = cases_of(described.manifest, options.temperatures, options.batches)
    data = DataOptions(options.samples, synthetic=options.synthetic, limit=None, allow_outside=options.allow_outside)
    ranges = batch_and_text(described.manifest)
    samples = choose_samples(data, None, described.vocabulary, described.config, *ranges, demos=DEMO_SAMPLES)
    about = {"origin": samples.origin, "requests": len(samples), "sha256": samples_sha256(samples)}
    with pinned(options.threads):
        here = machine(options.threads)
        comparison: Comparison | None = None
        if options.against_engine is not None:
            comparison = side_by_side(options.against_engine, described, cases)
        elif options.against is not None:
            comparison = with_baseline(options.against, described, here, about, cases, options.cuda_graphs)
        calls = {case: calls_of(samples, described.config, case.batch) for case in cases}
        progress.stage("opening the artifact, and one call of each kind")
        using = instruments(described)
        how = RunnerOptions(options.threads, options.cuda_graphs, using.meter)
        other = None if comparison is None else comparison.described
        compared = {NEW: described} if other is None else {NEW: described, OLD: other}
        opened = _Opened(compared, calls, lambda which: opener(which, how))
        kept: dict[Case, Kept] = {}
        runs: dict[Case, dict[str, float]] = {}
        for case in cases:
            kept[case], runs[case] = probe(described.config, opened.runners[NEW], calls[case], case)
        candidates = opened.candidates()
        times: dict[Case, int] = {}
        recorded = None if comparison is None else comparison.recorded
        if using.yardstick is not None:
            for case in cases:
                as_then = None if recorded is None else recorded.cases[case].repetitions
                times[case] = as_then or _repetitions(using, using.yardstick, candidates[NEW, case])
            candidates |= {(WORK, case): _work(using.yardstick, times[case]) for case in cases}
        uncaptured_parts = uncaptured(opened.runners[NEW]) if options.cuda_graphs else []
        notes = [] if other is None else differences(other, described)
        if recorded is not None:
            notes += changes(recorded, described, here)
            if using.yardstick is not None and recorded.yardstick != using.yardstick.name:
                beside = recorded.yardstick or "nothing"
                notes.append(f"bare latencies were compared: beside the baseline's ran {beside}")
        before = activity()
        least = FIRST_LOOK if other is None else 2 * SWAPPED_LOOK
        progress.stage(f"measuring {len(cases)} cases for up to {options.seconds:g} s, {least} rounds at least")
        neighbours = using.watch_neighbours()
        began = using.timer.now()
        warmed = warm_up(candidates, using.timer, options.seconds)
        worth = [*_uncaptured_note(uncaptured_parts), *using.notes]
        run = _Run(options, described, about, here, comparison, using, kept, times, before, neighbours, warmed, worth)
        timed = partial(
            measure,
            timer=using.timer,
            settled=run.settled,
            on_round=_Keeper(run, keep, progress),
            group=lambda key: key if key[0] == WORK else key[1],  # the yardstick does not part what is compared
            meter=using.meter,
        )
        left = options.seconds - (using.timer.now() - began)
        if other is None:
            timings = timed(candidates, seconds=left)
        else:  # what is opened last is some percent faster or slower than what was opened before it: both take turns
            timings = timed(candidates, seconds=left / 2, least=SWAPPED_LOOK)
            if timings.ended != Ended.INTERRUPTED:
                timings = _swapped(timings, opened, candidates, timed, using, options.seconds + began)
        if timings.rounds == 0:
            raise KeyboardInterrupt
        measurement = run.measurement(timings)
        if measurement.partial:
            return BenchResult(described, measurement, runs, notes=notes, interrupted=True)
        operators: dict[Case, Operators] = {}
        interrupted = False
        try:
            operators = _profile(options, described, _to_profile(calls, kept), opener, progress)
        except KeyboardInterrupt:
            interrupted = True
        except (
            MadtpError,
            OSError,
            ValueError,
        ) as error:  # e.g. no room for the profiler's files: the rest is measured
            notes.append(
                f"where the time goes was not found out: {(str(error) or type(error).__name__).splitlines()[0]}"
            )
    method = "" if comparison is None else comparison.method
    return BenchResult(
        described,
        measurement,
        runs,
        run.verdicts(timings),
        method,
        run.earlier(timings),
        operators,
        notes,
        interrupted,
    )


def _swapped(
    timings: Timings[Key],
    opened: "_Opened",
    candidates: dict[Key, Call],
    timed: Callable[..., Timings[Key]],
    using: Instruments,
    end: float,
) -> Timings[Key]:
    """Open what is compared in the other order, and go on until `end`; what was timed stays after Ctrl-C too."""
    try:
        candidates |= opened.swapped()
        warm_up(candidates, using.timer, end - using.timer.now())
    except KeyboardInterrupt:
        timings.ended = Ended.INTERRUPTED
        return timings
    timings.swapped = timings.rounds
    return timed(candidates, seconds=end - using.timer.now(), least=SWAPPED_LOOK, earlier=timings)


class _Opened:
    """The artifacts that are timed, open.

    Args:
        compared: by NEW and OLD, opened in that order.
        calls: of every case.
        opener: makes the runners.
    """

    def __init__(
        self,
        compared: Mapping[str, Artifact],
        calls: Mapping[Case, Sequence[Inputs]],
        opener: Callable[[Artifact], dict[str, Runner]],
    ) -> None:
        self._compared, self._calls, self._opener = compared, calls, opener
        self.runners: dict[str, dict[str, Runner]] = {}
        self._open(list(compared))

    def _open(self, order: Sequence[str]) -> None:
        for name in order:
            self.runners[name] = self._opener(self._compared[name])
            for case, inputs in self._calls.items():  # allocates memory, which later calls use again
                probe(self._compared[name].config, self.runners[name], inputs[:1], case)

    def candidates(self) -> dict[Key, Call]:
        """What is to be timed."""
        return {
            (name, case): _call(self._compared[name].config, runners, inputs, case)
            for name, runners in self.runners.items()
            for case, inputs in self._calls.items()
        }

    def swapped(self) -> dict[Key, Call]:
        """Close all, and open them in the other order."""
        self.runners.clear()
        for artifact in self._compared.values():
            artifact.close()
        self._open(list(self._compared)[::-1])
        return self.candidates()


class _Keeper:
    """Told of every round: shows how many there were; keeps what was measured, at once and then every KEEP_SECONDS."""

    def __init__(self, run: _Run, keep: Callable[[Measurement], None], progress: Progress) -> None:
        self._run, self._keep, self._progress = run, keep, progress
        self._kept = -math.inf

    def __call__(self, timings: Timings[Key]) -> None:
        self._progress.detail(f"{timings.rounds} rounds")
        if self._run.using.timer.now() - self._kept >= KEEP_SECONDS:
            self._keep(self._run.measurement(timings))
            self._kept = self._run.using.timer.now()


def _timed(timings: Timings[Key], key: Key) -> Timed:
    """Rounded as files keep it, so that all that is shown follows from what is kept."""
    waited = timings.waited.get(key)
    return Timed(_rounded(timings.series[key]), None if waited is None else _rounded(waited))


def _rounded(milliseconds: Sequence[float]) -> list[float]:
    return [round(value, DIGITS) for value in milliseconds]


def _uncaptured_note(parts: Sequence[str]) -> list[str]:
    return [f"not replayed as CUDA graphs, because sizes depend on the data: {', '.join(parts)}"] if parts else []


def _call(config: Config, runners: Mapping[str, Runner], calls: Sequence[Inputs], case: Case) -> Call:
    return lambda number: run_request(config, runners, calls[number % len(calls)], case.temperature)


def _work(yardstick: Yardstick, times: int) -> Call:
    return lambda _: yardstick.work(times)


def _repetitions(using: Instruments, yardstick: Yardstick, call: Call) -> int:
    yardstick.work(1)  # the first time allocates memory
    return repetitions(using.timer.time(lambda: call(0)).own, using.timer.time(lambda: yardstick.work(1)).own)


def _to_profile(calls: Mapping[Case, Sequence[Inputs]], kept: Mapping[Case, Kept]) -> dict[Case, list[Inputs]]:
    """Calls that stand for all of a case: evenly spread over the tokens that they keep; few of many requests each."""
    smallest = min(case.batch for case in calls)
    chosen = {}
    for case, inputs in calls.items():
        pruned = max(other for other in kept if other.batch == case.batch)  # the same calls at every temperature
        count = max(PROFILED_CALLS * smallest // case.batch, FEWEST_PROFILED_CALLS)
        chosen[case] = [inputs[number] for number in spread(kept[pruned].total, count)]
    return chosen


def _profile(
    options: BenchOptions,
    described: Artifact,
    chosen: Mapping[Case, Sequence[Inputs]],
    opener: Opener,
    progress: Progress,
) -> dict[Case, Operators]:
    """Where the time goes."""
    if not options.profile:
        return {}
    progress.stage("profiling layers" if described.manifest.is_plan else "profiling operators")
    if described.manifest.is_plan:
        milliseconds: defaultdict[str, float] = defaultdict(float)
        runners = opener(described, RunnerOptions(layer_milliseconds=milliseconds))
        calls = {case: _call(described.config, runners, inputs, case) for case, inputs in chosen.items()}
        for call in calls.values():
            call(0)  # allocates memory, which later runs use again
        found: dict[Case, list[Operators]] = {case: [] for case in chosen}
        for case, number in turns(chosen):
            milliseconds.clear()
            calls[case](number)
            found[case].append(summarize_layers(milliseconds, case.batch))
        return {case: typical(layers) for case, layers in found.items()}
    with scratch_folder() as scratch:
        return profile(described, chosen, scratch, options.threads)
