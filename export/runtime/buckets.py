"""Engines of a part with rooms of several sizes behind one runner: the smallest that may do runs first."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from export.artifact.manifest import OVERFLOW, BucketEntry, Part
from export.errors import BackendError
from export.runtime.checked import CheckedRunner
from madtp.tasks.requests import Outputs, Runner


@dataclass(frozen=True)
class Bucket:
    """A runner that has room for most batches of at least and at most so many requests (images, texts, pairs)."""

    least: int
    batch: int
    runner: CheckedRunner


@dataclass(frozen=True)
class OverflowCount:
    """How many calls did not fit at first, of how many.

    Attributes:
        calls: that were tried in a bucket with less room than for everything.
        overflows: buckets that did not have enough, and whose results were thrown away.
    """

    calls: int = 0
    overflows: int = 0

    def __add__(self, other: "OverflowCount") -> "OverflowCount":
        return OverflowCount(self.calls + other.calls, self.overflows + other.overflows)

    def __sub__(self, other: "OverflowCount") -> "OverflowCount":
        return OverflowCount(self.calls - other.calls, self.overflows - other.overflows)

    def __str__(self) -> str:
        return f"{self.overflows} of {self.calls} calls did not fit a bucket, and ran again with more room"


class BucketRunner:
    """Runs a batch in the first bucket that may hold it, and again in the next where a layer had not enough room.

    Args:
        buckets: in the order in which they are tried.
        whole: has room for everything.
    """

    def __init__(self, buckets: Sequence[Bucket], whole: CheckedRunner) -> None:
        self._buckets, self._whole = buckets, whole
        self._lock, self._count = threading.Lock(), OverflowCount()

    @property
    def capturable(self) -> bool:
        """Whether no engine prevents CUDA graphs."""
        return all(runner.capturable for runner in (self._whole, *(bucket.runner for bucket in self._buckets)))

    @property
    def count(self) -> OverflowCount:
        """Of all calls so far."""
        return self._count

    def run(self, inputs: Mapping[str, Tensor], temperature: float) -> Outputs:
        """Outputs of the part without OVERFLOW."""
        requests = len(next(iter(inputs.values())))
        fitting = [bucket.runner for bucket in self._buckets if bucket.least <= requests <= bucket.batch]
        tried = fitting if temperature > 0 else []  # the dense model prunes nothing, so nothing else has room
        overflows = 0
        try:
            for runner in tried:
                outputs = runner.run(inputs, temperature)
                if not outputs.pop(OVERFLOW).any():
                    return outputs
                overflows += 1
        finally:
            with self._lock:
                self._count += OverflowCount(int(bool(tried)), overflows)
        outputs = self._whole.run(inputs, temperature)
        if outputs.pop(OVERFLOW).any():
            raise BackendError(
                "an engine with room for everything says that there was not enough",
                "It is not what its manifest says.",
                "Export again.",
            )
        return outputs

    def close(self) -> None:
        """As of a `CheckedRunner`, for all engines."""
        for runner in (self._whole, *(bucket.runner for bucket in self._buckets)):
            runner.close()


def open_part(part: Part, open_engine: Callable[[Part | BucketEntry], Runner]) -> CheckedRunner | BucketRunner:
    """A runner of a part with all its engines, of which each refuses inputs outside its profile."""

    def opened(engine: Part | BucketEntry) -> CheckedRunner:
        return CheckedRunner(open_engine(engine), part.inputs, part.outputs, engine.profile)

    whole = opened(part)
    if not part.is_sized:
        return whole
    return BucketRunner([Bucket(entry.least, entry.batch, opened(entry)) for entry in part.buckets or ()], whole)
