"""The time of one call: by the clock, and what of it the call waited for a CPU that others had."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Nanoseconds on a CPU, nanoseconds runnable and waiting for one, number of time slices.
# https://docs.kernel.org/scheduler/sched-stats.html
SCHEDULED = Path("/proc/thread-self/schedstat")


@dataclass(frozen=True)
class Time:
    """One call in milliseconds."""

    wall: float  # wall-clock time until its results are on the host
    waited: float | None = None  # of that, the calling thread was runnable while others had the CPUs; None if unknown
    device: float | None = None  # GPU time; None if it was not measured

    @property
    def own(self) -> float:
        """Wall-clock time less waiting for a CPU, as far as that is known."""
        return self.wall - (self.waited or 0.0)


class Timer(Protocol):
    """A clock that times calls."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def time(self, call: Callable[[], object]) -> Time:
        """Make a call and time it."""
        ...


class WallTimer:
    """Wall-clock time, and what Linux says of the calling thread."""

    def now(self) -> float:
        return time.perf_counter()

    def time(self, call: Callable[[], object]) -> Time:
        before = _waited()
        worked = time.thread_time_ns()
        begin = time.perf_counter_ns()
        call()
        wall = time.perf_counter_ns() - begin
        worked = time.thread_time_ns() - worked
        after = _waited()
        if before is None or after is None:
            return Time(wall / 1e6)
        # The thread may have waited just before or after the call too; while it worked it did not.
        return Time(wall / 1e6, max(0, min(after - before, wall - worked)) / 1e6)


def _waited() -> int | None:
    """Nanoseconds that this thread has waited for a CPU since it began; None where the system does not tell."""
    try:
        _, waited, slices = SCHEDULED.read_text().split()
    except (OSError, ValueError):
        return None
    return int(waited) if int(slices) else None  # a kernel that does not count says zero
