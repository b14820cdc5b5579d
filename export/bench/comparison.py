"""Several artifacts of one checkpoint side by side, e.g. its precisions: latency, size, agreement, tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from export.bench.agreement import Agreement, AnsweringRunners, Answers, agreement
from export.bench.calls import Case, calls_of, cases_of
from export.bench.environment import activity, pinned
from export.bench.instruments import Instruments
from export.bench.measure import Series, Timings, measure, warm_up
from export.bench.measurement import Measurement
from export.bench.opened import Key, Opened, time_opened
from export.bench.operators import Opener
from export.bench.run import BenchOptions, cases_and_samples, conditions_of
from export.bench.statistics import BLOCKS, Ratio, paired_ratio
from export.console import Progress
from export.errors import OptionError
from export.runtime.artifact import Artifact
from export.runtime.execution import Execution
from export.runtime.runner import RunnerOptions

STAGES = 4
LEAST_FASTER = 0.02  # by which an artifact has to be faster: the order of opening may make as much of a difference


class Speed(StrEnum):
    """What a comparison of latencies came to."""

    FASTER = "faster"
    NOT_FASTER = "not faster here"
    UNDECIDED = "undecided"


def speed_of(speed_up: Ratio) -> Speed:
    """Whether an artifact is faster, as far as the interval tells."""
    least = 1 + LEAST_FASTER
    if speed_up.low > least:
        return Speed.FASTER
    return Speed.NOT_FASTER if speed_up.high < least else Speed.UNDECIDED


@dataclass(frozen=True)
class ComparedCase:
    """One case of one artifact.

    Attributes:
        series: of its calls.
        speed_up: how many times longer a call of the first artifact takes; exactly 1 for the first.
        first_p50: of the first artifact, wall-clock milliseconds.
        agreement: with the first.
    """

    series: Series
    speed_up: Ratio
    first_p50: float
    agreement: Agreement

    @property
    def speed(self) -> Speed:
        """Whether it is faster than the first artifact; undecided where the p50s deny it."""
        found = speed_of(self.speed_up)
        denied = found == Speed.FASTER and self.series.p50 >= self.first_p50
        return Speed.UNDECIDED if denied else found


@dataclass(frozen=True)
class Compared:
    """One artifact of a comparison.

    Attributes:
        name: tells it from the others.
        size: of all its files, in bytes.
        execution: in ONNX Runtime; None for a plan.
    """

    name: str
    artifact: Artifact
    size: int
    cases: Mapping[Case, ComparedCase]
    execution: Execution | None = None

    @property
    def precision(self) -> str:
        return self.artifact.manifest.precision


@dataclass(frozen=True)
class Comparison:
    """Artifacts of one checkpoint, each compared with the first.

    Attributes:
        measurement: of the first, with all that they have in common: samples, machine, rounds, caveats.
    """

    compared: Sequence[Compared]
    measurement: Measurement

    @property
    def first(self) -> Compared:
        return self.compared[0]

    @property
    def cases(self) -> list[Case]:
        """In the order in which they were measured."""
        return list(self.measurement.cases)


def compare(
    options: BenchOptions,
    others: Sequence[Path],
    progress: Progress,
    opener: Opener = Artifact.open_runners,
    answering: Callable[[Artifact, RunnerOptions], AnsweringRunners] = AnsweringRunners.of_artifact,
    instruments: Instruments | None = None,
) -> Comparison:
    """Let artifacts of one checkpoint answer the same calls, and time them in the same rounds.

    Args:
        options: of the run; those of baseline and profile do not apply.
        others: are compared with `options.artifact`.
        progress: shows STAGES stages.

    Returns:
        Also after Ctrl-C or SIGTERM once there is a whole round: `measurement.partial`.

    Raises:
        MadtpError: artifacts, samples or a machine that cannot be used.
        KeyboardInterrupt: before the first round was complete.
    """
    progress.stage("reading")
    artifacts = open_alike([options.artifact, *others])
    first, tools = next(iter(artifacts.values())), instruments or Instruments()
    cases, samples = cases_and_samples(options, first)
    for artifact in artifacts.values():
        cases_of(artifact.manifest, [case.temperature for case in cases], [case.batch for case in cases])
    calls = {case: calls_of(samples, first.config, case.batch) for case in cases}
    with pinned(options.threads):
        running = {
            artifact: RunnerOptions(
                options.threads, options.cuda_graphs, execution=artifact.execution(options.library, options.provider)
            )
            for artifact in artifacts.values()
        }
        conditions = conditions_of(options, first, running[first].execution, samples)
        progress.stage("answering")
        answers: dict[str, dict[Case, Answers]] = {}
        for name, artifact in artifacts.items():
            progress.detail(name)
            with artifact:
                runners = answering(artifact, running[artifact])
                answers[name] = {case: runners.answers(calls[case], case) for case in cases}
                del runners  # before the next one takes memory
        progress.stage("opening the artifacts")
        before, neighbours, began = activity(), tools.watch_neighbours(), tools.timer.now()

        def left() -> float:
            return options.seconds - (tools.timer.now() - began)

        opened = Opened(artifacts, calls, lambda artifact: opener(artifact, running[artifact]))
        progress.stage(f"measuring {len(cases)} cases of {len(artifacts)} artifacts for up to {options.seconds:g} s")
        warmed = warm_up(opened.candidates(), tools.timer, options.seconds)
        timed = partial(
            measure,
            timer=tools.timer,
            settled=lambda timings: _settled(timings, list(artifacts), cases),
            on_round=lambda timings: progress.detail(f"{len(timings.rounds)} rounds"),
            group=lambda key: key[1],
            least=BLOCKS,
        )
        timings: Timings[Key] = time_opened(opened, tools.timer, left, timed)
        name, *_ = artifacts
        measurement = Measurement(
            **vars(conditions),
            before=before,
            after=activity(),
            warm_up=warmed,
            ended=timings.ended,
            neighbours=neighbours(),
            cases={case: timings.series((name, case)) for case in cases},
            kept={case: answers[name][case].kept for case in cases},
        )
    speed_ups = _speed_ups(timings, list(artifacts), cases)
    compared = []
    for other, artifact in artifacts.items():
        found = {
            case: ComparedCase(
                timings.series((other, case)),
                speed_ups[other, case],
                measurement.cases[case].p50,
                agreement(answers[name][case], answers[other][case]),
            )
            for case in cases
        }
        compared.append(Compared(other, artifact, _size(artifact), found, running[artifact].execution))
    return Comparison(compared, measurement)


def open_alike(paths: Sequence[Path]) -> dict[str, Artifact]:
    """Open artifacts of one checkpoint, by a name for each.

    Raises:
        ManifestError: the files of one are not those of its manifest.
        OptionError: one is named twice, or not of the same checkpoint, task and layout as the first.
    """
    artifacts = [Artifact.open(path) for path in paths]
    first = artifacts[0]
    for number, artifact in enumerate(artifacts):
        if artifact.path.resolve() in [earlier.path.resolve() for earlier in artifacts[:number]]:
            raise OptionError(f"'{artifact.path}' is named twice", fix="Name every artifact once.")
        for what, theirs, ours in (
            ("task", artifact.manifest.task, first.manifest.task),
            ("checkpoint", artifact.manifest.checkpoint.sha256, first.manifest.checkpoint.sha256),
            ("layout", artifact.manifest.layout, first.manifest.layout),
        ):
            if theirs != ours:
                raise OptionError(
                    f"'{artifact.path}' does not compare with '{first.path}'",
                    f"Its {what} is {theirs:.12}, the first one's {ours:.12}.",
                    "Name artifacts of one checkpoint; --against-engine compares the latency of others.",
                )
    short = [artifact.path.name for artifact in artifacts]
    names = short if len(set(short)) == len(short) else [str(artifact.path) for artifact in artifacts]
    return dict(zip(names, artifacts, strict=True))


def _size(artifact: Artifact) -> int:
    """Bytes of all files of an artifact, its manifest included."""
    names = {artifact.path.name, *dict(artifact.manifest.named_files())}
    return sum((artifact.folder / name).stat().st_size for name in names)


def _speed_ups(timings: Timings[Key], names: Sequence[str], cases: Sequence[Case]) -> dict[Key, Ratio]:
    """By artifact and case: how many times longer the first artifact takes."""
    first, *others = names
    found = {(first, case): Ratio(1.0, 1.0, 1.0) for case in cases}
    for case in cases:
        slow = timings.series((first, case)).own
        for name in others:
            found[name, case] = paired_ratio(slow, timings.series((name, case)).own, timings.swapped)
    return found


def _settled(timings: Timings[Key], names: Sequence[str], cases: Sequence[Case]) -> bool:
    """Whether it is known of every artifact if it is faster than the first."""
    return all(speed_of(speed_up) != Speed.UNDECIDED for speed_up in _speed_ups(timings, names, cases).values())
