"""What an artifact is measured with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from export.bench.environment import Neighbours
from export.bench.timer import Timer, WallTimer
from export.bench.yardstick import Yardstick
from export.errors import BackendError
from export.runtime.artifact import Artifact
from export.runtime.gpu import DeviceMeter


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
        notes: what a reader has to know of them, a sentence each.
    """

    timer: Timer = field(default_factory=WallTimer)
    watch_neighbours: Callable[[], Callable[[], float]] = _watch_neighbours
    meter: DeviceMeter | None = None
    yardstick: Yardstick | None = None
    notes: tuple[str, ...] = ()


def instruments_for(described: Artifact) -> Instruments:
    """On a GPU its events, on a CPU the yardstick."""
    if not described.manifest.is_plan:
        return Instruments(yardstick=Yardstick())
    meter = DeviceMeter()
    try:
        meter.check()
    except BackendError as error:  # e.g. a driver that TensorRT can do with, and these bindings cannot
        return Instruments(notes=(f"GPU time was not measured: {error.why}",))
    return Instruments(meter=meter)
