"""What a run is compared with: another artifact that runs side by side, or latencies that an earlier run saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.bench.artifact import identity
from export.bench.calls import Case, cases_of
from export.bench.measure import Series
from export.bench.measurement import Conditions, Measurement, available_artifact, check_comparable, read_measurement
from export.bench.statistics import noise_floor, paired_ratio, recorded_ratio
from export.bench.verdict import CaseVerdict, judge
from export.engine.op_library import Provider
from export.errors import OptionError
from export.runtime.artifact import Artifact
from export.runtime.execution import Execution, execution_words

UNTRUSTED = (
    "recorded latencies cannot tell a slower machine from a slower artifact: trust them only on a machine that nobody "
    "shares, and compare side by side (--against-engine) elsewhere"
)


@dataclass(frozen=True)
class Baseline:
    """Either a saved measurement or an artifact that runs side by side; `method` describes the comparison.

    Attributes:
        execution: of the artifact; None for a plan.
    """

    method: str
    recorded: Measurement | None = None
    described: Artifact | None = None
    execution: Execution | None = None

    def verdicts(
        self,
        now: Mapping[Case, Series],
        old: Mapping[Case, Series],
        allowed: float,
        neighbours: float,
        swapped: int | None = None,
    ) -> list[CaseVerdict]:
        """Compare every case of `now` with the same case of `old`; side by side these are calls of the same rounds.

        `allowed` is the slow-down that passes, `neighbours` the share of the CPUs that other processes used, and
        `swapped` the first round after the artifacts were reopened in the other order.
        """
        found = []
        for case, series in now.items():
            new, before, floor = series.own, old[case].own, 0.0
            if self.recorded is None:
                ratio = paired_ratio(new, before, swapped)
            else:
                if (series.waited is None) != (old[case].waited is None):  # another kernel: only the clock compares
                    new, before = series.milliseconds, old[case].milliseconds
                ratio = recorded_ratio(new, before)
                floor = max(noise_floor(new), noise_floor(before), neighbours, self.recorded.neighbours)
            found.append(judge(case, ratio, allowed, floor, p50=(old[case].p50, series.p50)))
        return found


def other_execution(artifact: Artifact, library: str | Path | None, provider: Provider) -> Baseline:
    """The artifact itself with another op library, or with function bodies, to run side by side.

    Raises:
        OptionError: it is a plan.
        PluginError: the library may not be loaded.
    """
    execution = artifact.execution(library, provider)
    if execution is None:
        raise OptionError(f"--against-library does not apply to '{artifact.engine}'", "It is a plan.", "Leave it out.")
    return Baseline(f"side by side with {execution}", described=Artifact.open(artifact.path), execution=execution)


def side_by_side(
    engine: Path,
    described: Artifact,
    cases: Sequence[Case],
    library: str | Path | None = None,
    provider: Provider = "cpu",
) -> Baseline:
    """Open another artifact to run side by side; for `library` and `provider` see `Artifact.execution`.

    Raises:
        ManifestError: its files are not those of its manifest.
        OptionError: it cannot answer the same calls.
    """
    other = Artifact.open(engine)
    for key in ("task", "image_size", "vocab_size"):
        theirs, ours = getattr(other.config, key), getattr(described.config, key)
        if theirs != ours:
            raise OptionError(
                f"'{other.path}' takes other inputs than the artifact",
                f"Its {key} is {theirs}, the artifact's {ours}.",
                "Name an artifact of the same kind.",
            )
    cases_of(other.manifest, [case.temperature for case in cases], [case.batch for case in cases])
    execution = other.execution(library, provider)
    return Baseline(f"side by side with '{other.path}'", described=other, execution=execution)


def saved_baseline(
    path: Path,
    now: Conditions,
    cases: Sequence[Case],
    library: str | Path | None = None,
    provider: Provider = "cpu",
) -> Baseline:
    """A saved measurement; if its artifact is another one and still exists, that artifact side by side.

    Raises:
        BaselineError: it cannot be read, or does not compare with this run.
    """
    measurement = read_measurement(path)
    check_comparable(measurement, path, now, cases)
    same = measurement.artifact["files"] == now.artifact["files"]  # beside itself nothing is ever slower
    other = None if same else available_artifact(measurement)
    if other is None:
        return Baseline(f"with the latencies in '{path}'", recorded=measurement)
    artifact = Artifact.open(other)
    method = f"side by side with the baseline's artifact '{other}'"
    return Baseline(method, described=artifact, execution=artifact.execution(library, provider))


def differences(baseline: Baseline, described: Artifact, now: Conditions) -> list[str]:
    """Differences between the baseline and this run that do not prevent a comparison, a sentence each."""
    machine = now.machine
    if baseline.described is not None:
        old, new = baseline.described.manifest, described.manifest
        keys = ("precision", "layout", "batching", "temperature")
        values = [(key, getattr(old, key), getattr(new, key)) for key in keys]
        ran = None if baseline.execution is None else baseline.execution.to_json()
        if ran is not None and now.execution is not None:
            values.append(("the execution", execution_words(ran), execution_words(now.execution)))
        return [f"{key} is {after}, in the baseline {before}" for key, before, after in values if before != after]
    then = baseline.recorded
    assert then is not None
    backend = then.artifact["backend"]
    pairs = [
        (backend["name"], backend["version"], identity(described)["backend"]["version"]),
        ("the driver", then.machine.driver, machine.driver),
        ("the system", then.machine.system, machine.system),
        ("the op library", _library(then), _library(now)),
    ]
    found = [f"{name} is {after}, in the baseline {before}" for name, before, after in pairs if before != after]
    return [UNTRUSTED, *found, *(f"of the baseline: {caveat}" for caveat in then.caveats)]


def _library(conditions: Conditions) -> str:
    kernels = None if conditions.execution is None else conditions.execution["kernels"]
    return "none" if kernels is None else f"{kernels['version']} (sha256 {kernels['sha256']:.12})"
