"""What an artifact is measured with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from export.bench.artifact import Described, runs_on_gpu
from export.bench.environment import Neighbours
from export.bench.measure import Timer, WallTimer
from export.bench.yardstick import Yardstick
from export.gpu import DeviceMeter


def _watch_neighbours() -> Callable[[], float]:
    return Neighbours().share


@dataclass(frozen=True)
class Instruments:
    """What measures.

    Attributes:
        timer: takes the time of calls.
        watch_neighbours: starts to watch; what it returns tells the share of the CPUs that others took since.
        meter: of GPU time; None does not measure it.
        yardstick: stands beside every call; None does without.
    """

    timer: Timer = field(default_factory=WallTimer)
    watch_neighbours: Callable[[], Callable[[], float]] = _watch_neighbours
    meter: DeviceMeter | None = None
    yardstick: Yardstick | None = None


def instruments_for(described: Described) -> Instruments:
    """On a GPU its events, on a CPU the yardstick."""
    return Instruments(meter=DeviceMeter()) if runs_on_gpu(described) else Instruments(yardstick=Yardstick())
