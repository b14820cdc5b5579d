"""Timing calls in rounds: every candidate once a round, in random order, on the same input, until that is enough.

The calls of a round are adjacent in time, so noise hits all candidates alike. Every call returns with its results on
the host; on a GPU too, because Polygraphy's `infer` copies the outputs and synchronises its stream.
"""

import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from export.bench.timer import Time, Timer
from export.runtime.gpu import DeviceMeter

Call = Callable[[int], object]  # of one candidate, given the number of the round
Key = TypeVar("Key", bound=Hashable)

FIRST_LOOK = 60  # rounds before the numbers are looked at
NEXT_LOOK = 1.5  # each look comes after so many times the rounds of the one before: few looks, few chances to err
MAX_ROUNDS = 5000
WINDOW = 5  # rounds of a warm-up whose medians are compared
WINDOWS = 3
STABLE = 0.05  # relative difference of those medians
WARM_UP_SHARE = 0.25  # of the time budget, at most
DIGITS = 4  # of milliseconds, as files keep them: all that is shown follows from what is kept


class Ended(StrEnum):
    """Why measuring ended."""

    SETTLED = "settled"
    BUDGET = "time budget"
    ROUNDS = "rounds"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class WarmUp:
    """Rounds until latencies were stable, or until they took too long to become so."""

    rounds: int
    stable: bool


@dataclass(frozen=True)
class Series:
    """Latencies of one candidate in milliseconds, one a round."""

    milliseconds: list[float]  # wall-clock time
    waited: list[float] | None = None  # time waited for a CPU that others had; None if unknown
    device: list[float] | None = None  # GPU time; None if it was not measured

    @property
    def own(self) -> list[float]:
        """Latencies less what was waited for a CPU: what verdicts rest on."""
        if self.waited is None:
            return self.milliseconds
        return [wall - waited for wall, waited in zip(self.milliseconds, self.waited, strict=True)]

    @property
    def p50(self) -> float:
        """The median of the wall-clock times."""
        return statistics.median(self.milliseconds)


@dataclass
class Timings(Generic[Key]):
    """Whole rounds of timed calls."""

    rounds: list[dict[Key, Time]] = field(default_factory=list)
    ended: Ended = Ended.INTERRUPTED  # while measuring, too
    swapped: int | None = None  # the first round after the artifacts were reopened in the other order, if they were

    def series(self, key: Key) -> Series:
        """All calls of a candidate."""
        times = [timed[key] for timed in self.rounds]
        return Series(
            [round(time.wall, DIGITS) for time in times],
            _all_known([time.waited for time in times]),
            _all_known([time.device for time in times]),
        )


def _all_known(milliseconds: list[float | None]) -> list[float] | None:
    known = [round(value, DIGITS) for value in milliseconds if value is not None]
    return known if len(known) == len(milliseconds) else None


def warm_up(candidates: Mapping[Key, Call], timer: Timer, seconds: float) -> WarmUp:
    """Call all candidates on the first input until they are stable, or for WARM_UP_SHARE of `seconds`."""
    series: dict[Key, list[float]] = {key: [] for key in candidates}
    begin = timer.now()
    rounds = 0
    while True:
        for key, call in candidates.items():
            series[key].append(timer.time(partial(call, 0)).own)
        rounds += 1
        if all(is_stable(values) for values in series.values()):
            return WarmUp(rounds, True)
        if timer.now() - begin >= seconds * WARM_UP_SHARE:
            return WarmUp(rounds, False)


def is_stable(milliseconds: Sequence[float]) -> bool:
    """Whether the medians of the last WINDOWS windows agree within STABLE."""
    if len(milliseconds) < WINDOW * WINDOWS:
        return False
    last = milliseconds[-WINDOW * WINDOWS :]
    medians = [statistics.median(last[start : start + WINDOW]) for start in range(0, len(last), WINDOW)]
    return max(medians) - min(medians) <= STABLE * min(medians)


def measure(
    candidates: Mapping[Key, Call],
    timer: Timer,
    seconds: float,
    settled: Callable[[Timings[Key]], bool],
    on_round: Callable[[Timings[Key]], None],
    group: Callable[[Key], Hashable] = lambda key: key,
    meter: DeviceMeter | None = None,
    least: int = FIRST_LOOK,
    earlier: Timings[Key] | None = None,
) -> Timings[Key]:
    """Time all candidates in rounds; after Ctrl-C or SIGTERM, return the whole rounds with `ended` INTERRUPTED.

    Args:
        seconds: time budget; `least` rounds are made in any case, and MAX_ROUNDS at most.
        settled: whether the timings are enough; asked after `least` rounds and then ever more rarely.
        on_round: called after every round, outside of what is timed.
        group: candidates of one group follow each other directly, because they are compared.
        earlier: timings of the same candidates that are continued.
    """
    order = list(candidates)
    shuffled = random.Random(0)
    timings: Timings[Key] = earlier or Timings()
    timings.ended = Ended.INTERRUPTED
    if meter is not None:
        meter.take()  # what ran before does not count
    begin = timer.now()
    first = len(timings.rounds)
    look = least = first + least
    try:
        while True:
            shuffled.shuffle(order)
            groups = list(dict.fromkeys(map(group, order)))
            order.sort(key=lambda key: groups.index(group(key)))
            timed = {}
            for key in order:
                found = timer.time(partial(candidates[key], len(timings.rounds)))
                timed[key] = found if meter is None else replace(found, device=meter.take())
            timings.rounds.append(timed)
            number = len(timings.rounds)
            on_round(timings)
            spent = timer.now() - begin >= seconds
            end = number >= first + MAX_ROUNDS or (spent and number >= least)
            if number >= look or end:
                look = int(number * NEXT_LOOK) + 1
                if settled(timings):
                    timings.ended = Ended.SETTLED
                    return timings
            if end:
                timings.ended = Ended.BUDGET if spent else Ended.ROUNDS
                return timings
    except KeyboardInterrupt:
        return timings
