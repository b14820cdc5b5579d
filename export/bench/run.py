"""`python -m export bench`: measure an artifact, and compare it with a baseline."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from export.bench.artifact import Described, Opener, describe, identity, open_described, runs_on_gpu, uncaptured
from export.bench.baseline import Baseline, differences, saved_baseline, side_by_side
from export.bench.calls import DEMO_SAMPLES, Case, Inputs, Kept, calls_of, cases_of, probe, request_call, samples_sha256
from export.bench.environment import activity, machine, pinned
from export.bench.instruments import Instruments, instruments_for
from export.bench.measure import FIRST_LOOK, Call, Ended, Series, Timings, WarmUp, measure, warm_up
from export.bench.measurement import Conditions, Measurement
from export.bench.operators import Operators, profile
from export.bench.statistics import relative_half_width
from export.bench.verdict import CaseVerdict, Verdict
from export.console import Progress
from export.errors import OptionError
from export.runtime.artifact import close_runners
from export.runtime.runner import RunnerOptions
from export.samples.artifact import artifact_samples
from madtp.errors import MadtpError
from madtp.tasks.requests import Runner

PRECISION = 0.02  # relative half-width of the median's confidence interval at which measuring ends
STAGES = 4
SWAPPED_LOOK = 40  # rounds at least, side by side, of either order of opening
KEEP_SECONDS = 10.0  # between writings of what was measured so far
NEW, OLD = "new", "old"  # the artifacts that are timed

Key = tuple[str, Case]


@dataclass(frozen=True)
class BenchOptions:
    """The options of one run.

    Attributes:
        artifact: the manifest or the artifact.
        samples: folder of samples; None for the default samples.
        synthetic: generated samples instead.
        temperatures: besides dense; empty for the manifest's default.
        batches: requests of a call; empty for the profile's opt.
        seconds: time for warm-up and measuring, more where the fewest rounds take longer; profiling comes on top.
        threads: of ONNX Runtime and torch, and CPUs that the process stays on; None leaves that to them.
        against: saved measurement to compare with.
        against_engine: artifact to compare with, side by side.
        allowed: slow-down that passes, 0.05 for 5 %.
        profile: whether to profile operators or layers.
        cuda_graphs: replay plans as CUDA graphs, where TensorRT can.
        allow_outside: whether images of samples may lie outside their folder.
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
    """Everything that a run found.

    Attributes:
        measurement: what `--save` writes.
        runs: of each part in a call, by case.
        verdicts: of every case; empty if nothing was compared.
        method: how it was compared, in words.
        earlier: latencies of the baseline, by case.
        operators: by case; empty if nothing was profiled.
        notes: what a reader has to know of the comparison, a sentence each; `measurement.caveats` has the rest.
        interrupted: by Ctrl-C or SIGTERM; a measurement that had ended by then is complete.
    """

    described: Described
    measurement: Measurement
    runs: dict[Case, dict[str, float]]
    verdicts: list[CaseVerdict] = field(default_factory=list)
    method: str = ""
    earlier: dict[Case, Series] = field(default_factory=dict)
    operators: dict[Case, Operators] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    interrupted: bool = False


def bench(
    options: BenchOptions,
    progress: Progress,
    keep: Callable[[Measurement], None] = lambda _: None,
    opener: Opener = open_described,
    instruments: Callable[[Described], Instruments] = instruments_for,
) -> BenchResult:
    """Measure, compare and profile.

    Args:
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
    described = describe(options.artifact)
    if options.cuda_graphs and not runs_on_gpu(described):
        raise OptionError("--cuda-graphs applies to plans", f"'{described.path}' runs on the CPU.", "Leave it out.")
    cases = cases_of(described.manifest, options.temperatures, options.batches)
    samples = artifact_samples(
        *(described.manifest, described.folder, described.config, options.samples, options.synthetic),
        demos=DEMO_SAMPLES,
        allow_outside=options.allow_outside,
    ).prepared
    sampled = {"origin": samples.origin, "requests": len(samples), "sha256": samples_sha256(samples)}
    with pinned(options.threads):
        conditions = Conditions(identity(described), sampled, machine(options.threads), options.cuda_graphs)
        baseline = None
        if options.against_engine is not None:
            baseline = side_by_side(options.against_engine, described, cases)
        elif options.against is not None:
            baseline = saved_baseline(options.against, described, conditions, cases)
        progress.stage("opening the artifact, and one call of each kind")
        tools = instruments(described)
        compared = {NEW: described}
        if baseline is not None and baseline.described is not None:
            compared[OLD] = baseline.described
        calls = {case: calls_of(samples, described.config, case.batch) for case in cases}
        runner_options = RunnerOptions(options.threads, options.cuda_graphs, tools.meter)
        opened = _Opened(compared, calls, lambda which: opener(which, runner_options))
        probed = {case: probe(described.config, opened.runners[NEW], calls[case], case) for case in cases}
        kept = {case: tokens for case, (tokens, _) in probed.items()}
        runs = {case: counts for case, (_, counts) in probed.items()}
        notes = [] if baseline is None else differences(baseline, described, conditions.machine)
        run = _Run(options, described, conditions, baseline, tools, kept, keep, progress)
        if options.cuda_graphs and (parts := uncaptured(opened.runners[NEW])):
            run.notes.append(f"not replayed as CUDA graphs, because sizes depend on the data: {', '.join(parts)}")
        timings = run.measure(opened)
        measurement = run.measurement(timings)
        if measurement.partial:
            return BenchResult(described, measurement, runs, notes=notes, interrupted=True)
        operators: dict[Case, Operators] = {}
        interrupted = False
        try:
            if options.profile:
                progress.stage("profiling layers" if runs_on_gpu(described) else "profiling operators")
                operators = profile(described, calls, kept, opener, options.threads)
        except KeyboardInterrupt:
            interrupted = True
        except (MadtpError, OSError, ValueError) as error:  # e.g. a full disk: latencies were measured nevertheless
            reason = (str(error) or type(error).__name__).splitlines()[0]
            notes.append(f"operators were not profiled: {reason}")
    method = "" if baseline is None else baseline.method
    verdicts, earlier = run.verdicts(timings), run.earlier(timings)
    return BenchResult(described, measurement, runs, verdicts, method, earlier, operators, notes, interrupted)


class _Opened:
    """The artifacts that are timed, open.

    Args:
        compared: by NEW and OLD, opened in that order.
        calls: of every case.
        opener: makes the runners.
    """

    def __init__(
        self,
        compared: Mapping[str, Described],
        calls: Mapping[Case, Sequence[Inputs]],
        opener: Callable[[Described], dict[str, Runner]],
    ) -> None:
        self._order, self._compared, self._calls, self._opener = list(compared), compared, calls, opener
        self.runners: dict[str, dict[str, Runner]] = {}
        self._open()

    def _open(self) -> None:
        for name in self._order:
            self.runners[name] = self._opener(self._compared[name])
            for case, inputs in self._calls.items():  # allocates memory, which later calls use again
                probe(self._compared[name].config, self.runners[name], inputs[:1], case)

    def swap(self) -> None:
        """Close all, and open them in the other order."""
        for runners in self.runners.values():
            close_runners(runners)
        self.runners.clear()
        self._order.reverse()
        self._open()

    def candidates(self) -> dict[Key, Call]:
        """What is timed."""
        return {
            (name, case): request_call(self._compared[name].config, runners, inputs, case)
            for name, runners in self.runners.items()
            for case, inputs in self._calls.items()
        }


class _Run:
    """A run from when everything is open: it watches the machine from now on."""

    def __init__(
        self,
        options: BenchOptions,
        described: Described,
        conditions: Conditions,
        baseline: Baseline | None,
        tools: Instruments,
        kept: dict[Case, Kept],
        keep: Callable[[Measurement], None],
        progress: Progress,
    ) -> None:
        self._options, self._described, self._conditions, self._baseline = options, described, conditions, baseline
        self._tools, self._tokens, self._keep, self._progress = tools, kept, keep, progress
        self.notes = list(tools.notes)
        self._before, self._neighbours, self._began = activity(), tools.watch_neighbours(), tools.timer.now()
        self._warmed = WarmUp(0, False)
        self._kept_at = -math.inf

    def measure(self, opened: _Opened) -> Timings[Key]:
        """Warm up and time whatever is open; side by side in both orders of opening, for half of the time each.

        Raises:
            KeyboardInterrupt: before the first round was complete.
        """
        seconds, timer = self._options.seconds, self._tools.timer
        swaps = len(opened.runners) > 1  # what is opened last is some percent faster or slower than the others
        least = 2 * SWAPPED_LOOK if swaps else FIRST_LOOK
        rounds = f"{least} rounds at least"
        self._progress.stage(f"measuring {len(self._tokens)} cases for up to {seconds:g} s, {rounds}")
        self._warmed = warm_up(opened.candidates(), timer, seconds)
        timed = partial(
            measure,
            timer=timer,
            settled=self._settled,
            on_round=self._on_round,
            group=lambda key: key[1],
            meter=self._tools.meter,
            least=SWAPPED_LOOK if swaps else FIRST_LOOK,
        )
        left = self._left()
        timings: Timings[Key] = timed(opened.candidates(), seconds=left / 2 if swaps else left)
        if swaps and timings.ended != Ended.INTERRUPTED:
            try:
                opened.swap()
                warm_up(opened.candidates(), timer, self._left())
                timings.swapped = len(timings.rounds)
                timings = timed(opened.candidates(), seconds=self._left(), earlier=timings)
            except KeyboardInterrupt:
                timings.ended = Ended.INTERRUPTED
        if not timings.rounds:
            raise KeyboardInterrupt
        return timings

    def measurement(self, timings: Timings[Key]) -> Measurement:
        """What was measured so far; partial while it goes on."""
        return Measurement(
            artifact=self._conditions.artifact,
            samples=self._conditions.samples,
            machine=self._conditions.machine,
            cuda_graphs=self._conditions.cuda_graphs,
            before=self._before,
            after=activity(),
            warm_up=self._warmed,
            ended=timings.ended,
            neighbours=self._neighbours(),
            cases={case: timings.series((NEW, case)) for case in self._tokens},
            kept=self._tokens,
            notes=self.notes,
        )

    def verdicts(self, timings: Timings[Key]) -> list[CaseVerdict]:
        """Of every case; none if nothing is compared."""
        if self._baseline is None:
            return []
        now = {case: timings.series((NEW, case)) for case in self._tokens}
        old, allowed = self.earlier(timings), self._options.allowed
        return self._baseline.verdicts(now, old, allowed, self._neighbours(), timings.swapped)

    def earlier(self, timings: Timings[Key]) -> dict[Case, Series]:
        """Latencies of the baseline; empty if nothing is compared."""
        if self._baseline is None:
            return {}
        recorded = self._baseline.recorded
        return {
            case: timings.series((OLD, case)) if recorded is None else recorded.cases[case] for case in self._tokens
        }

    def _settled(self, timings: Timings[Key]) -> bool:
        """Every verdict is in, or without a baseline every median is known to PRECISION."""
        if self._baseline is not None:
            return all(verdict.outcome != Verdict.UNDECIDED for verdict in self.verdicts(timings))
        series = (timings.series((NEW, case)) for case in self._tokens)
        return all(relative_half_width(each.milliseconds) <= PRECISION for each in series)

    def _on_round(self, timings: Timings[Key]) -> None:
        """Show the number of rounds; keep what was measured, at once and then every KEEP_SECONDS."""
        self._progress.detail(f"{len(timings.rounds)} rounds")
        now = self._tools.timer.now()
        if now - self._kept_at >= KEEP_SECONDS:
            self._keep(self.measurement(timings))
            self._kept_at = now

    def _left(self) -> float:
        return self._options.seconds - (self._tools.timer.now() - self._began)
