"""`python -m export bench`: measure an artifact, and compare it with a baseline."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from export.bench.artifact import identity
from export.bench.baseline import Baseline, differences, other_execution, saved_baseline, side_by_side
from export.bench.calls import DEMO_SAMPLES, Case, Kept, calls_of, cases_of, probe, samples_sha256
from export.bench.environment import activity, machine, pinned
from export.bench.instruments import Instruments, instruments_for
from export.bench.measure import FIRST_LOOK, Series, Timings, WarmUp, measure, warm_up
from export.bench.measurement import Conditions, Measurement
from export.bench.opened import Key, Opened, time_opened
from export.bench.operators import Opener, Operators, profile
from export.bench.statistics import relative_half_width
from export.bench.verdict import CaseVerdict, Verdict
from export.console import Progress
from export.engine.op_library import Provider
from export.engine.profile import batch_and_text
from export.errors import OptionError
from export.runtime.artifact import Artifact
from export.runtime.buckets import BucketRunner
from export.runtime.checked import CheckedRunner
from export.runtime.execution import Execution
from export.runtime.runner import RunnerOptions
from export.samples.choice import DataOptions, choose_samples
from madtp.data.samples import SampleSet
from madtp.errors import MadtpError
from madtp.tasks.requests import Runner

PRECISION = 0.02  # relative half-width of the median's confidence interval at which measuring ends
STAGES = 4
SWAPPED_LOOK = 40  # rounds at least, side by side, of either order of opening
KEEP_SECONDS = 10.0  # between writings of what was measured so far
NEW, OLD = "new", "old"  # the artifacts that are timed


@dataclass(frozen=True)
class BenchOptions:
    """The options of one run."""

    artifact: Path  # or its manifest
    samples: Path | None = None  # folder; None for the default samples
    synthetic: bool = False  # generated samples instead
    temperatures: Sequence[float] = ()  # besides dense; empty for the manifest's default
    batches: Sequence[int] = ()  # requests per call; empty for the profile's opt
    seconds: float = 30.0  # for warm-up and measuring; the fewest rounds may take longer, and profiling comes on top
    threads: int | None = None  # of ONNX Runtime and torch, and CPUs of this process; None leaves that to them
    against: Path | None = None  # saved measurement to compare with
    against_engine: Path | None = None  # artifact to compare with, side by side
    allowed: float = 0.05  # slow-down that passes, 0.05 for 5 %
    profile: bool = True
    cuda_graphs: bool = False  # replay plans as CUDA graphs, where TensorRT can
    allow_outside: bool = False  # images of samples may lie outside their folder
    library: str | Path | None = None  # op library, or "none"; see `Artifact.execution`
    provider: Provider = "cpu"  # of ONNX Runtime
    against_library: str | Path | None = None  # compare with the artifact itself, with this one, side by side

    def __post_init__(self) -> None:
        if self.samples is not None and self.synthetic:
            raise OptionError("--samples and --synthetic exclude each other", fix="Give one of them.")
        baselines = {
            "--against": self.against,
            "--against-engine": self.against_engine,
            "--against-library": self.against_library,
        }
        given = [option for option, value in baselines.items() if value is not None]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} exclude each other", fix="Give one of them.")
        if not 0 < self.seconds < float("inf"):
            raise OptionError(f"--seconds is {self.seconds}", "It has to be more than zero.", "E.g. 30.")


@dataclass(frozen=True)
class BenchResult:
    """Everything that a run found."""

    described: Artifact
    measurement: Measurement  # what --save writes
    runs: dict[Case, dict[str, float]]  # of each part in a call
    verdicts: list[CaseVerdict] = field(default_factory=list)  # of every case; empty if nothing was compared
    method: str = ""  # how it was compared, in words
    earlier: dict[Case, Series] = field(default_factory=dict)  # latencies of the baseline
    operators: dict[Case, Operators] = field(default_factory=dict)  # empty if nothing was profiled
    notes: list[str] = field(default_factory=list)  # on the comparison, a sentence each; see also measurement.caveats
    interrupted: bool = False  # by Ctrl-C or SIGTERM; a measurement that had ended by then is complete


def bench(
    options: BenchOptions,
    progress: Progress,
    keep: Callable[[Measurement], None] = lambda _: None,
    opener: Opener = Artifact.open_runners,
    instruments: Callable[[Artifact], Instruments] = instruments_for,
) -> BenchResult:
    """Measure, compare and profile.

    Args:
        progress: shows STAGES stages.
        keep: given what was measured so far, marked partial, after the first round and every KEEP_SECONDS: a run that
            is killed leaves that.

    Returns:
        Also after Ctrl-C or SIGTERM once there is a whole round: `measurement.partial`.

    Raises:
        MadtpError: an artifact, samples, baseline or machine that cannot be used.
        KeyboardInterrupt: before there was anything to return.
    """
    progress.stage("reading")
    described = Artifact.open(options.artifact)
    cases, samples = cases_and_samples(options, described)
    with pinned(options.threads):
        execution = described.execution(options.library, options.provider)
        conditions = conditions_of(options, described, execution, samples)
        how, baseline = (options.library, options.provider), None
        if options.against_engine is not None:
            baseline = side_by_side(options.against_engine, described, cases, *how)
        elif options.against_library is not None:
            baseline = other_execution(described, options.against_library, options.provider)
        elif options.against is not None:
            baseline = saved_baseline(options.against, conditions, cases, *how)
        progress.stage("opening the artifact, and one call of each kind")
        tools = instruments(described)
        compared = {NEW: described}
        if baseline is not None and baseline.described is not None:
            compared[OLD] = baseline.described
        calls = {case: calls_of(samples, described.config, case.batch) for case in cases}
        runner_options = RunnerOptions(options.threads, options.cuda_graphs, tools.meter, execution=execution)

        def opened_as(which: Artifact) -> dict[str, Runner]:
            if baseline is None or which is not baseline.described:
                return opener(which, runner_options)
            return opener(which, replace(runner_options, execution=baseline.execution))

        opened = Opened(compared, calls, opened_as)
        probed = {case: probe(described.config, opened.runners[NEW], calls[case], case) for case in cases}
        kept = {case: tokens for case, (tokens, _) in probed.items()}
        runs = {case: counts for case, (_, counts) in probed.items()}
        notes = [] if baseline is None else differences(baseline, described, conditions)
        caveats = list(tools.notes)
        kinds = (CheckedRunner, BucketRunner)
        checked = [(part, each) for part, each in opened.runners[NEW].items() if isinstance(each, kinds)]
        uncaptured = [part for part, runner in checked if not runner.capturable]
        if options.cuda_graphs and uncaptured:
            caveats.append(f"not replayed as CUDA graphs, because sizes depend on the data: {', '.join(uncaptured)}")
        run = _Run(options, conditions, baseline, tools, kept, caveats, keep, progress)
        timings = run.measure(opened)
        if described.overflows.overflows:
            caveats.append(str(described.overflows))
        measurement = run.measurement(timings)
        if measurement.partial:
            return BenchResult(described, measurement, runs, notes=notes, interrupted=True)
        operators: dict[Case, Operators] = {}
        interrupted = False
        try:
            if options.profile:
                progress.stage("profiling layers" if described.manifest.is_plan else "profiling operators")
                operators = profile(described, calls, kept, opener, RunnerOptions(options.threads, execution=execution))
        except KeyboardInterrupt:
            interrupted = True
        except (MadtpError, OSError, ValueError) as error:  # e.g. a full disk: latencies were measured nevertheless
            reason = (str(error) or type(error).__name__).splitlines()[0]
            notes.append(f"operators were not profiled: {reason}")
    method = "" if baseline is None else baseline.method
    verdicts, earlier = run.verdicts(timings), run.earlier(timings)
    return BenchResult(described, measurement, runs, verdicts, method, earlier, operators, notes, interrupted)


def cases_and_samples(options: BenchOptions, described: Artifact) -> tuple[list[Case], SampleSet]:
    """What to measure of an artifact, and on what.

    Raises:
        MadtpError: options that do not fit the artifact, or samples that cannot be used.
    """
    if options.cuda_graphs and not described.manifest.is_plan:
        raise OptionError("--cuda-graphs applies to plans", f"'{described.path}' runs on the CPU.", "Leave it out.")
    cases = cases_of(described.manifest, options.temperatures, options.batches)
    data = DataOptions(options.samples, synthetic=options.synthetic, limit=None, allow_outside=options.allow_outside)
    ranges = batch_and_text(described.manifest)
    return cases, choose_samples(data, None, described.vocabulary, described.config, *ranges, demos=DEMO_SAMPLES)


def conditions_of(
    options: BenchOptions, described: Artifact, execution: Execution | None, samples: SampleSet
) -> Conditions:
    """The conditions of a run on this machine."""
    sampled = {"origin": samples.origin, "requests": len(samples), "sha256": samples_sha256(samples)}
    ran = None if execution is None else execution.to_json()
    return Conditions(identity(described), sampled, machine(options.threads), options.cuda_graphs, execution=ran)


@dataclass
class _Run:
    """A run from when everything is open: it watches the machine from then on."""

    options: BenchOptions
    conditions: Conditions
    baseline: Baseline | None
    tools: Instruments
    kept: dict[Case, Kept]
    notes: list[str]
    keep: Callable[[Measurement], None]
    progress: Progress

    def __post_init__(self) -> None:
        self.before, self.neighbours, self.began = activity(), self.tools.watch_neighbours(), self.tools.timer.now()
        self.warmed, self.kept_at = WarmUp(0, False), -math.inf

    def measure(self, opened: Opened) -> Timings[Key]:
        """Warm up and time whatever is open; side by side in both orders of opening, for half of the time each.

        Raises:
            KeyboardInterrupt: before the first round was complete.
        """
        timer, seconds = self.tools.timer, self.options.seconds
        orders = opened.orders
        least = FIRST_LOOK if orders == 1 else SWAPPED_LOOK
        text = f"measuring {len(self.kept)} cases for up to {seconds:g} s, {orders * least} rounds at least"
        self.progress.stage(text)
        timed = partial(
            measure,
            timer=timer,
            settled=self._settled,
            on_round=self._on_round,
            group=lambda key: key[1],
            meter=self.tools.meter,
            least=least,
        )
        self.warmed = warm_up(opened.candidates(), timer, seconds)
        return time_opened(opened, timer, self._left, timed)

    def measurement(self, timings: Timings[Key]) -> Measurement:
        """What was measured so far; partial while it goes on."""
        return Measurement(
            **vars(self.conditions),
            before=self.before,
            after=activity(),
            warm_up=self.warmed,
            ended=timings.ended,
            neighbours=self.neighbours(),
            cases=self._current(timings),
            kept=self.kept,
            notes=self.notes,
        )

    def verdicts(self, timings: Timings[Key]) -> list[CaseVerdict]:
        """The verdict on every case; none without a baseline."""
        if self.baseline is None:
            return []
        series = self._current(timings), self.earlier(timings)
        return self.baseline.verdicts(*series, self.options.allowed, self.neighbours(), timings.swapped)

    def earlier(self, timings: Timings[Key]) -> dict[Case, Series]:
        """Latencies of the baseline; empty without one."""
        if self.baseline is None:
            return {}
        recorded = self.baseline.recorded
        return {case: timings.series((OLD, case)) if recorded is None else recorded.cases[case] for case in self.kept}

    def _current(self, timings: Timings[Key]) -> dict[Case, Series]:
        return {case: timings.series((NEW, case)) for case in self.kept}

    def _settled(self, timings: Timings[Key]) -> bool:
        """Every verdict is in, or without a baseline every median is known to PRECISION."""
        if self.baseline is not None:
            return all(verdict.outcome != Verdict.UNDECIDED for verdict in self.verdicts(timings))
        return all(relative_half_width(series.milliseconds) <= PRECISION for series in self._current(timings).values())

    def _on_round(self, timings: Timings[Key]) -> None:
        """Show the number of rounds; keep what was measured, at once and then every KEEP_SECONDS."""
        self.progress.detail(f"{len(timings.rounds)} rounds")
        now = self.tools.timer.now()
        if now - self.kept_at >= KEEP_SECONDS:
            self.keep(self.measurement(timings))
            self.kept_at = now

    def _left(self) -> float:
        return self.options.seconds - (self.tools.timer.now() - self.began)
