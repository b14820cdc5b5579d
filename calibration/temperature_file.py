"""Temperature files: what `calibration temperature` writes, and a report shows."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.budget import Budget
from calibration.latency import Latency
from calibration.tokens import Source
from madtp.errors import TemperatureError
from madtp.files.outputs import json_kind, write_output
from madtp.files.versioned import read_versioned

SCHEMA_VERSION = 1
TEMPERATURE = json_kind("a file of measured temperatures", "schema", "checkpoint_sha256", "budget", "points")
MAKE = "Make it with `python -m calibration temperature`."


@dataclass(frozen=True)
class Interval:
    """A mean, and between what it lies with 95 % confidence."""

    mean: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of it."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class OperatingPoint:
    """What the model costs and is worth at a temperature; 0 is the dense model.

    Attributes:
        gflops: mean of a request.
        reduction: share of the dense model's GFLOPs that is saved.
        latency: of a request of the torch model, on the machine of the measurement.
        agreement: share of decisions equal to the dense model's.
        accuracy: where it is known what is right.
    """

    temperature: float
    gflops: Interval
    reduction: float
    latency: Latency
    agreement: float
    accuracy: float | None


@dataclass(frozen=True)
class TemperatureFile:
    """A temperature that meets a budget, and all that was measured.

    Attributes:
        source: of the requests; its temperature is the one that was found.
        tolerance: share of the budget by which the cost may miss it.
        threads: of torch, when latencies were measured on its CPU.
        points: ascending by temperature, the dense model first.
        doubts: what the data do not show, in sentences.
    """

    source: Source
    budget: Budget
    tolerance: float
    samples: int
    threads: int
    points: tuple[OperatingPoint, ...]
    doubts: tuple[str, ...]

    @property
    def found(self) -> OperatingPoint:
        """The point at the temperature that was found."""
        return next(point for point in self.points if point.temperature == self.source.temperature)

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "schema": SCHEMA_VERSION,
            **asdict(self.source),
            "budget": asdict(self.budget),
            "tolerance": self.tolerance,
            "samples": self.samples,
            "latency_of": {"runtime": "torch", "device": "cpu", "threads": self.threads, "unit": "ms"},
            "points": [asdict(point) for point in self.points],
            "doubts": list(self.doubts),
        }


def read_temperature(path: Path) -> TemperatureFile:
    """A temperature file.

    Raises:
        TemperatureError: missing, not JSON, of another schema, or malformed.
    """
    content = read_versioned(path, "the measured temperatures", (SCHEMA_VERSION,), TemperatureError, MAKE)
    try:
        found = TemperatureFile(
            Source.from_json(content),
            Budget(**content["budget"]),
            float(content["tolerance"]),
            int(content["samples"]),
            int(content["latency_of"]["threads"]),
            tuple(map(_point, content["points"])),
            tuple(map(str, content["doubts"])),
        )
        there = any(point.temperature == found.source.temperature for point in found.points)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TemperatureError(f"the measured temperatures '{path}' are malformed", repr(error), MAKE) from error
    if not there:
        raise TemperatureError(
            f"the measured temperatures '{path}' are malformed",
            f"{found.source.temperature:g} is none of those that were measured.",
            MAKE,
        )
    return found


def write_temperature(found: TemperatureFile, path: Path) -> None:
    """Write the file in one step.

    Raises:
        OutputError: it cannot be written, or is there already and holds something else.
    """
    write_output(path, json.dumps(found.to_json(), indent=1) + "\n", TEMPERATURE)


def check_temperature(found: TemperatureFile, checkpoint_sha256: str, path: Path) -> None:
    """Refuse what was measured on another checkpoint.

    Raises:
        TemperatureError: naming both.
    """
    if found.source.checkpoint_sha256 != checkpoint_sha256:
        raise TemperatureError(
            f"the measured temperatures '{path}' are of another checkpoint",
            f"Theirs has sha256 {found.source.checkpoint_sha256[:16]}..., this one {checkpoint_sha256[:16]}...",
            "Measure this one: python -m calibration temperature --ckpt ... --data ...",
        )


def _point(content: Mapping[str, Any]) -> OperatingPoint:
    accuracy = content["accuracy"]
    return OperatingPoint(
        float(content["temperature"]),
        Interval(**content["gflops"]),
        float(content["reduction"]),
        Latency(**content["latency"]),
        float(content["agreement"]),
        None if accuracy is None else float(accuracy),
    )
