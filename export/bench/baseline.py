"""What a run is compared with: another artifact that runs side by side, or latencies that an earlier run saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from export.bench.artifact import identity
from export.bench.calls import Case, cases_of
from export.bench.environment import Machine
from export.bench.measure import Series
from export.bench.measurement import Conditions, Measurement, available_artifact, check_comparable, read_measurement
from export.bench.statistics import noise_floor, paired_ratio, recorded_ratio
from export.bench.verdict import CaseVerdict, judge
from export.errors import OptionError
from export.runtime.artifact import Artifact

UNTRUSTED = (
    "recorded latencies cannot tell a slower machine from a slower artifact: trust them only on a machine that nobody "
    "shares, and compare side by side (--against-engine) elsewhere"
)


@dataclass(frozen=True)
class Baseline:
    """Either a saved measurement or an artifact that runs side by side; `method` describes the comparison."""

    method: str
    recorded: Measurement | None = None
    described: Artifact | None = None

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


def side_by_side(engine: Path, described: Artifact, cases: Sequence[Case]) -> Baseline:
    """Open another artifact to run side by side.

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
    return Baseline(f"side by side with '{other.path}'", described=other)


def saved_baseline(path: Path, described: Artifact, now: Conditions, cases: Sequence[Case]) -> Baseline:
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
    return Baseline(f"side by side with the baseline's artifact '{other}'", described=Artifact.open(other))


def differences(baseline: Baseline, described: Artifact, machine: Machine) -> list[str]:
    """Differences between the baseline and this run that do not prevent a comparison, a sentence each."""
    if baseline.described is not None:
        old, new = baseline.described.manifest, described.manifest
        keys = ("precision", "layout", "batching", "temperature")
        values = [(key, getattr(old, key), getattr(new, key)) for key in keys]
        return [f"{key} is {now}, in the baseline {before}" for key, before, now in values if before != now]
    then = baseline.recorded
    assert then is not None
    backend = then.artifact["backend"]
    pairs = [
        (backend["name"], backend["version"], identity(described)["backend"]["version"]),
        ("the driver", then.machine.driver, machine.driver),
        ("the system", then.machine.system, machine.system),
    ]
    found = [f"{name} is {now}, in the baseline {before}" for name, before, now in pairs if before != now]
    return [UNTRUSTED, *found, *(f"of the baseline: {caveat}" for caveat in then.caveats)]
