"""What an artifact is compared with: latencies of another session, or another artifact that runs side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.bench.artifact import identity
from export.bench.calls import Case, cases_of
from export.bench.environment import BUSY, Machine
from export.bench.measurement import Measured, Measurement, Timed, artifact_at_hand, check_comparable, read_measurement
from export.bench.statistics import level_change, median, noise_floor, of_one_input, paired_ratio, recorded_ratio
from export.bench.verdict import Verdict, judge
from export.errors import OptionError
from export.runtime.artifact import Artifact

RECORDED = "with the latencies"  # how methods of that kind begin


@dataclass(frozen=True)
class Comparison:
    """Exactly one of both.

    Attributes:
        recorded: a saved measurement.
        described: the artifact that runs side by side.
        method: which of them, in words.
    """

    method: str
    recorded: Measurement | None = None
    described: Artifact | None = None

    def verdicts(
        self,
        cases: Mapping[Case, Measured],
        old: Mapping[Case, Timed],
        allowed: float,
        busy: float,
        yardstick: str | None,
        swapped: int | None = None,
    ) -> list[Verdict]:
        """Is it slower?

        Args:
            cases: what was measured so far.
            old: what it is compared with; side by side that is of the same rounds.
            allowed: slow-down that passes.
            busy: share of the CPUs that others took meanwhile.
            yardstick: what stood beside the calls; latencies count in units of it where it was the same then.
            swapped: the first round before which both artifacts were opened anew in the other order.
        """
        p50 = {case: (median(old[case].milliseconds), median(new.milliseconds)) for case, new in cases.items()}
        if self.recorded is None:
            return [
                judge(case, paired_ratio(new.own, old[case].own, swapped), allowed, p50=p50[case])
                for case, new in cases.items()
            ]
        found = []
        for case, measured in cases.items():
            recorded = self.recorded.cases[case]
            same = yardstick is not None and yardstick == self.recorded.yardstick
            now, then, change = _of_two_sessions(measured, recorded, same)
            now, then = of_one_input(now, then, calls=len(measured.kept.total))
            found.append(
                judge(
                    case,
                    recorded_ratio(now, then),
                    allowed,
                    max(noise_floor(now), noise_floor(then), change),
                    p50=p50[case],
                    disturbed_now=busy > BUSY,
                    disturbed_then=self.recorded.neighbours > BUSY,
                )
            )
        return found


def _of_two_sessions(now: Measured, then: Measured, same_yardstick: bool) -> tuple[list[float], list[float], float]:
    """The series of both that compare, and by how much the machine itself differs between them, where that is known."""
    if (now.waited is None) != (then.waited is None):  # another kernel: only the clock compares
        return now.milliseconds, then.milliseconds, 0.0
    if not same_yardstick or now.yardstick is None or then.yardstick is None:
        return now.own, then.own, 0.0
    return now.steady, then.steady, level_change(now.yardstick, then.yardstick)


def side_by_side(engine: Path, described: Artifact, cases: Sequence[Case]) -> Comparison:
    """With another artifact.

    Args:
        engine: it or its manifest.
        described: the artifact to be measured.
        cases: of the run.

    Raises:
        ManifestError: its files are not of each other.
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
    return Comparison(f"side by side with '{other.path}'", described=other)


def with_baseline(
    path: Path,
    described: Artifact,
    here: Machine,
    samples: Mapping[str, Any],
    cases: Sequence[Case],
    cuda_graphs: bool,
) -> Comparison:
    """With a saved measurement; with its artifact side by side, where that is another and still lies where it was.

    Args:
        path: what `--save` wrote.
        described: the artifact to be measured.
        here: this machine.
        samples: of this run: origin, number of requests, sha256.
        cases: of this run.
        cuda_graphs: whether this run asks for them.

    Raises:
        BaselineError: it cannot be read, or is of something else.
    """
    baseline = read_measurement(path)
    check_comparable(baseline, path, identity(described), here, samples, cases, cuda_graphs)
    same = baseline.artifact["files"] == identity(described)["files"]  # beside itself nothing is ever slower
    at_hand = None if same else artifact_at_hand(baseline)
    if at_hand is None:
        return Comparison(f"{RECORDED} in '{path}'", recorded=baseline)
    return Comparison(f"side by side with the baseline's artifact '{at_hand}'", described=Artifact.open(at_hand))


def differences(other: Artifact, described: Artifact) -> list[str]:
    """What a reader has to know about two artifacts that run side by side, a sentence each."""
    return [
        f"{key} is {getattr(described.manifest, key)}, of the earlier artifact {getattr(other.manifest, key)}"
        for key in ("precision", "layout", "batching", "temperature")
        if getattr(other.manifest, key) != getattr(described.manifest, key)
    ]


def changes(then: Measurement, described: Artifact, here: Machine) -> list[str]:
    """What a reader has to know of a baseline and of what changed since but for the artifact, a sentence each."""
    backend = then.artifact["backend"]
    pairs = [
        (backend["name"], backend["version"], identity(described)["backend"]["version"]),
        ("the driver", then.machine.driver, here.driver),
        ("the system", then.machine.system, here.system),
    ]
    found = [f"{name} is {now}, in the baseline {before}" for name, before, now in pairs if before != now]
    found += [f"of the baseline: {caveat}" for caveat in then.caveats]
    if then.neighbours > BUSY:
        found.append("nothing can pass: other processes may be why the baseline was slow; record it again")
    return found
