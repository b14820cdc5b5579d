"""A bench on a clock that only fake runners move."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.artifact.manifest import BackendEntry
from export.bench.instruments import Instruments
from export.bench.measurement import Measurement
from export.bench.run import BenchOptions, bench
from export.bench.timer import Time
from export.runtime.artifact import Artifact, backend_of
from export.runtime.runner import RunnerOptions
from madtp.tasks.requests import Outputs, Runner

LAYERS = 2


@dataclass
class FakeTimer:
    """A clock that only the calls move.

    Attributes:
        lost: seconds for which calls waited for a CPU; None: it does not tell.
    """

    seconds: float = 0.0
    lost: float | None = None

    def now(self) -> float:
        return self.seconds

    def time(self, call: Callable[[], object]) -> Time:
        begin, lost = self.seconds, self.lost
        call()
        waited = None if lost is None or self.lost is None else 1e3 * (self.lost - lost)
        return Time(1e3 * (self.seconds - begin), waited)

    def takes(self, milliseconds: Callable[[int], float]) -> Callable[[int], None]:
        """A call that takes so long, by round."""

        def call(number: int) -> None:
            self.seconds += milliseconds(number) / 1e3

        return call


class Quiet:
    """Progress that is not shown."""

    def stage(self, description: str) -> None: ...

    def detail(self, text: str) -> None: ...


@dataclass
class FakeRunner:
    """Takes time on the fake clock only: the dense model 20 ms, pruned by its tokens; noise of a few percent.

    With `waits`, neighbours take the CPU for longer than a call takes.
    """

    timer: FakeTimer
    seed: int = 0
    factor: float = 1.0
    broken_at: float = math.nan
    interrupt_at: float = math.inf
    slowness: Callable[[float], float] = lambda seconds: 1.0
    waits: bool = False

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.calls = 0

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        self.calls += 1
        if self.calls >= self.interrupt_at:
            raise KeyboardInterrupt
        batch = len(inputs["input_ids"])
        tokens = 5 if temperature == 0 else 2 + int(inputs["attention_mask"].sum()) % 3
        slowness = self.factor * self.slowness(self.timer.seconds)
        self.timer.seconds += 0.004 * tokens * batch * slowness * self.rng.lognormal(0, 0.05)
        if self.waits:  # neighbours take the CPU, for several times as long as the call
            lost = self.rng.exponential(0.05)
            self.timer.seconds += lost
            if self.timer.lost is not None:
                self.timer.lost += lost
        logits = torch.full((batch, 2), math.nan if temperature == self.broken_at else 0.0)
        counts = torch.full((batch, LAYERS), tokens, dtype=torch.int32)
        return {"logits": logits, "vision_token_counts": counts, "text_token_counts": counts}


def fake_bench(
    options: BenchOptions,
    timer: FakeTimer,
    *runners: FakeRunner,
    neighbours: float = 0.0,
    meter: Any = None,
    keep: Callable[[Measurement], None] = lambda _: None,
) -> Any:
    """Measure with fake runners: of the artifact, then of the one that it is compared with; that one first later on."""
    waiting = iter([*runners, *reversed(runners)])
    instruments = Instruments(timer, lambda: lambda: neighbours, meter)

    def opener(described: Artifact, how: RunnerOptions) -> dict[str, Runner]:
        return {"model": next(waiting)}

    return bench(replace(options, profile=False), Quiet(), keep, opener, lambda _: instruments)


def save(measurement: Measurement, target: Path, **artifact: Any) -> Path:
    changed = replace(measurement, artifact={**measurement.artifact, **artifact})
    target.write_text(json.dumps(changed.to_json()))
    return target


def as_plan(described: Artifact) -> Artifact:
    """The same, as if it were a plan of TensorRT for RTX."""
    backend = BackendEntry("tensorrt-rtx", "1.7.1.116", "there is no GPU")
    manifest = replace(described.manifest, artifact="out.plan", backend=backend)
    return replace(described, manifest=manifest, backend=backend_of(manifest))
