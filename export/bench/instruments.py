"""The clock, the GPU meter and the view of other processes with which an artifact is measured."""

from collections.abc import Callable
from dataclasses import dataclass, field

from export.bench.environment import Neighbours
from export.bench.timer import Timer, WallTimer
from export.errors import BackendError
from export.runtime.artifact import Artifact
from export.runtime.gpu import DeviceMeter


@dataclass(frozen=True)
class Instruments:
    """Everything that measures.

    `watch_neighbours` begins to watch, and returns a function for the share of the CPUs that other processes have used
    since. `meter` is None where GPU time is not measured. `notes` are sentences for the reader of the numbers.
    """

    timer: Timer = field(default_factory=WallTimer)
    watch_neighbours: Callable[[], Callable[[], float]] = lambda: Neighbours().share
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
