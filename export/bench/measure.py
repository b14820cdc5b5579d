"""Timing calls in rounds: every candidate once a round, in random order, on the same input, until that is enough.

A round's calls are adjacent in time, so noise hits all candidates alike. The clock is a `Timer`; the one that there is
takes wall-clock time around a call that returns with its results on the host. Runners of a GPU do that too:
Polygraphy's `infer` copies the outputs and synchronises its stream, and a user waits for both. For what part of that
the GPU was at work tells a `DeviceMeter`, from CUDA events; for what part others had the CPU, the timer.
"""

import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

from export.bench.timer import Timer
from export.runtime.gpu import DeviceMeter

Call = Callable[[int], object]  # of one candidate, in the round of that number
Key = TypeVar("Key", bound=Hashable)

FIRST_LOOK = 60  # rounds before the numbers are looked at
NEXT_LOOK = 1.5  # each look comes after so many times the rounds of the one before: few looks, few chances to err
MAX_ROUNDS = 5000
WINDOW = 5  # rounds of a warm-up whose medians are compared
WINDOWS = 3
STABLE = 0.05  # relative difference of those medians
WARM_UP_SHARE = 0.25  # of the time budget, at most


class Ended(StrEnum):
    """Why measuring stopped."""

    SETTLED = "settled"
    BUDGET = "time budget"
    ROUNDS = "rounds"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class WarmUp:
    """Rounds until latencies were stable, or until they took too long to become so."""

    rounds: int
    stable: bool


@dataclass
class Timings(Generic[Key]):
    """Milliseconds of every candidate, one a round, whole rounds only.

    Attributes:
        series: wall-clock time.
        device: GPU time of the same calls; empty where it is not measured.
        waited: for a CPU that others had, of the same calls; empty where the system does not tell.
        ended: why it did; INTERRUPTED while measuring.
        swapped: the first round before which what is compared was opened anew, in the other order; None: it was not.
    """

    series: dict[Key, list[float]]
    device: dict[Key, list[float]]
    waited: dict[Key, list[float]]
    ended: Ended = Ended.INTERRUPTED
    swapped: int | None = None

    @property
    def rounds(self) -> int:
        """Rounds that were completed."""
        return min(len(values) for values in self.series.values())

    def own(self, key: Key) -> list[float]:
        """Wall-clock time less what was waited for a CPU."""
        return own(self.series[key], self.waited.get(key))


def own(milliseconds: Sequence[float], waited: Sequence[float] | None) -> list[float]:
    """Wall-clock times less what was waited for a CPU; where that is not known, as they are."""
    if waited is None:
        return list(milliseconds)
    return [wall - lost for wall, lost in zip(milliseconds, waited, strict=True)]


def warm_up(candidates: Mapping[Key, Call], timer: Timer, seconds: float) -> WarmUp:
    """Call all candidates on the first input until the medians of the last windows agree, or the time is up.

    Args:
        candidates: by key.
        timer: also the clock.
        seconds: the whole budget, of which this may take WARM_UP_SHARE.
    """
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
    seed: int = 0,
    least: int = FIRST_LOOK,
    earlier: Timings[Key] | None = None,
) -> Timings[Key]:
    """Time all candidates in rounds.

    Args:
        candidates: by key.
        timer: also the clock.
        seconds: the budget; `least` rounds are made in any case, MAX_ROUNDS at most.
        settled: whether the timings so far are enough; asked after `least` rounds and then ever more rarely.
        on_round: shown the timings after every round, outside of what is timed.
        group: candidates of one group follow each other directly, because they are to be compared.
        meter: of the GPU time of the calls; None does not measure it.
        seed: of the order within the rounds.
        least: rounds.
        earlier: timings of the same keys, which grow by these.

    Returns:
        Also after Ctrl-C or SIGTERM: the rounds completed by then, `ended` INTERRUPTED.
    """
    order = list(candidates)
    shuffled = random.Random(seed)
    timings: Timings[Key] = earlier or Timings(
        {key: [] for key in order}, {} if meter is None else {key: [] for key in order}, {}
    )
    timings.ended = Ended.INTERRUPTED
    if meter is not None:
        meter.take()  # what ran before does not count
    begin = timer.now()
    number = timings.rounds
    least, most = number + least, number + MAX_ROUNDS
    look = least
    try:
        while True:
            shuffled.shuffle(order)
            groups = list(dict.fromkeys(map(group, order)))
            order.sort(key=lambda key: groups.index(group(key)))
            taken, busy, waited = {}, {}, {}
            for key in order:
                found = timer.time(partial(candidates[key], number))
                taken[key] = found.wall
                if found.waited is not None:
                    waited[key] = found.waited
                if meter is not None:
                    busy[key] = meter.take()
            for series, values in ((timings.series, taken), (timings.device, busy), (timings.waited, waited)):
                for key, milliseconds in values.items():
                    series.setdefault(key, []).append(milliseconds)
            number += 1
            on_round(timings)
            spent = timer.now() - begin >= seconds
            if number >= look or (spent and number >= least):
                look = int(number * NEXT_LOOK) + 1
                if settled(timings):
                    timings.ended = Ended.SETTLED
                    return timings
            if number >= most or (spent and number >= least):
                timings.ended = Ended.BUDGET if spent else Ended.ROUNDS
                return timings
    except KeyboardInterrupt:
        every = (timings.series, timings.device, timings.waited)
        whole = min(len(values) for series in every for values in series.values())
        for series in every:
            series.update({key: values[:whole] for key, values in series.items()})
        return timings
