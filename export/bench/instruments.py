"""What an artifact is measured with."""

from collections.abc import Callable
from dataclasses import dataclass, field

from export.bench.environment import Neighbours
from export.bench.timer import Timer, WallTimer
from export.errors import BackendError
from export.runtime.artifact import Artifact
from export.runtime.gpu import DeviceMeter


def _watch_neighbours() -> Callable[[], float]:
    return Neighbours().share


@dataclass(frozen=True)
class Instruments:
    """Everything that measures.

    Attributes:
        watch_neighbours: begins to watch; what it returns gives the share of the CPUs that others used since.
        meter: of GPU time, if that is measured.
        notes: what a reader has to know of them, a sentence each.
    """

    timer: Timer = field(default_factory=WallTimer)
    watch_neighbours: Callable[[], Callable[[], float]] = _watch_neighbours
    meter: DeviceMeter | None = None
    notes: tuple[str, ...] = ()


def instruments_for(described: Artifact) -> Instruments:
    """A clock, and on a GPU CUDA events."""
    if not described.manifest.is_plan:
        return Instruments()
    meter = DeviceMeter()
    try:
        meter.check()
    except BackendError as error:  # e.g. a driver that is enough for TensorRT, and not for these bindings
        return Instruments(notes=(f"GPU time was not measured: {error.why}",))
    return Instruments(meter=meter)
