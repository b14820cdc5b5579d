"""The artifacts that are timed side by side, open: in one order of opening, and then in the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from export.bench.calls import Case, Inputs, probe, request_call
from export.bench.measure import Call, Ended, Timings, warm_up
from export.bench.timer import Timer
from export.runtime.artifact import Artifact
from madtp.tasks.requests import Runner

Key = tuple[str, Case]


@dataclass
class Opened:
    """The artifacts that are timed, opened in the order of `compared`."""

    compared: dict[str, Artifact]
    calls: Mapping[Case, Sequence[Inputs]]
    opener: Callable[[Artifact], dict[str, Runner]]
    runners: dict[str, dict[str, Runner]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, described in self.compared.items():
            self.runners[name] = self.opener(described)
            for case, inputs in self.calls.items():  # allocates memory, which later calls use again
                probe(described.config, self.runners[name], inputs[:1], case)

    @property
    def orders(self) -> int:
        """In how many orders of opening to time them: what is opened last is some percent faster or slower."""
        return 1 if len(self.compared) == 1 else 2

    def swapped(self) -> "Opened":
        """Close all, and open them in the other order."""
        for artifact in self.compared.values():
            artifact.close()
        self.runners.clear()
        return Opened(dict(reversed(self.compared.items())), self.calls, self.opener)

    def candidates(self) -> dict[Key, Call]:
        """What is timed."""
        return {
            (name, case): request_call(self.compared[name].config, runners, inputs, case)
            for name, runners in self.runners.items()
            for case, inputs in self.calls.items()
        }


class Timed(Protocol):
    """`export.bench.measure.measure` with everything given that is the same in both orders."""

    def __call__(
        self, candidates: Mapping[Key, Call], *, seconds: float, earlier: Timings[Key] | None = None
    ) -> Timings[Key]:
        """Time candidates for so long, going on from earlier timings."""
        ...


def time_opened(opened: Opened, timer: Timer, left: Callable[[], float], timed: Timed) -> Timings[Key]:
    """Time whatever is open and warm; side by side in both orders of opening, for half of the time each.

    Args:
        left: seconds of the time budget that are left.

    Raises:
        KeyboardInterrupt: before the first round was complete.
    """
    timings = timed(opened.candidates(), seconds=left() / opened.orders)
    if opened.orders > 1 and timings.ended != Ended.INTERRUPTED:
        try:
            candidates = opened.swapped().candidates()
            warm_up(candidates, timer, left())
            timings.swapped = len(timings.rounds)
            timings = timed(candidates, seconds=left(), earlier=timings)
        except KeyboardInterrupt:
            timings.ended = Ended.INTERRUPTED
    if not timings.rounds:
        raise KeyboardInterrupt
    return timings
