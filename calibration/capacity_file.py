"""Capacity files: what `calibration capacity` writes and an export reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.capacities import Bucket, Capacities, PartOverflow
from calibration.overflow import Share
from calibration.tokens import Source
from madtp.errors import CapacityError
from madtp.files.outputs import json_kind, write_output
from madtp.files.versioned import read_versioned

SCHEMA_VERSION = 1
CAPACITY = json_kind("a file of capacities", "schema", "checkpoint_sha256", "overflow", "parts", "batches")
LEAST_ROWS = 2  # each half of a request's images has one at least
MAKE = "Make it with `python -m calibration capacity`."


@dataclass(frozen=True)
class CapacityFile:
    """Capacities, and what they were measured on."""

    source: Source
    capacities: Capacities

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        chosen = self.capacities
        return {
            "schema": SCHEMA_VERSION,
            **asdict(self.source),
            "overflow": chosen.overflow,
            "samples": chosen.chosen_with + chosen.held_out,
            "held_out": chosen.held_out,
            "parts": {part: list(encoders) for part, encoders in chosen.parts.items()},
            "dense": chosen.dense,
            "batches": {
                str(batch): {"buckets": [bucket.to_json() for bucket in buckets]}
                for batch, buckets in chosen.buckets.items()
            },
            "doubts": list(chosen.doubts),
        }


def read_capacity(path: Path) -> CapacityFile:
    """Capacities from a file; `check_capacity` says whether they fit a model.

    Raises:
        CapacityError: missing, not JSON, of another schema, or malformed.
    """
    content = read_versioned(path, "the capacities", (SCHEMA_VERSION,), CapacityError, MAKE)
    try:
        held_out = int(content["held_out"])
        capacities = Capacities(
            float(content["overflow"]),
            int(content["samples"]) - held_out,
            held_out,
            {str(part): tuple(map(str, encoders)) for part, encoders in content["parts"].items()},
            {str(encoder): int(rows) for encoder, rows in content["dense"].items()},
            {
                int(batch): tuple(_bucket(bucket) for bucket in entry["buckets"])
                for batch, entry in content["batches"].items()
            },
            tuple(map(str, content["doubts"])),
        )
        found = CapacityFile(Source.from_json(content), capacities)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CapacityError(f"the capacities '{path}' are malformed", repr(error), MAKE) from error
    if not capacities.buckets or not all(capacities.buckets.values()):
        raise CapacityError(f"the capacities '{path}' are malformed", "A batch has no buckets.", MAKE)
    return found


def write_capacity(found: CapacityFile, path: Path) -> None:
    """Write the file in one step.

    Raises:
        OutputError: it cannot be written, or is there already and holds something else.
    """
    write_output(path, json.dumps(found.to_json(), indent=1) + "\n", CAPACITY)


def check_capacity(
    found: CapacityFile,
    wanted: Source,
    dense: Mapping[str, int],
    depths: Mapping[str, int],
    batch: int,
    path: Path,
) -> tuple[Bucket, ...]:
    """The buckets of a batch size, the lossless one last, if they are those of an engine.

    Args:
        wanted: checkpoint, task and temperature of the engine; its data may be others.
        dense: by encoder, rows of one request before any pruning (`calibration.capacities.dense_rows`).
        depths: by encoder, its layers.

    Raises:
        CapacityError: naming what differs, or what no engine could have.
    """
    source, again = found.source, "Make them for this: python -m calibration capacity --ckpt ... --data ..."
    if (source.checkpoint_sha256, source.task) != (wanted.checkpoint_sha256, wanted.task):
        raise CapacityError(
            f"the capacities '{path}' are of another checkpoint",
            f"Theirs has the task {source.task} and sha256 {source.checkpoint_sha256[:16]}..., "
            f"this one {wanted.task} and {wanted.checkpoint_sha256[:16]}...",
            again,
        )
    if source.temperature != wanted.temperature:
        raise CapacityError(
            f"the capacities '{path}' were measured at temperature {source.temperature:g}",
            f"Here it is {wanted.temperature:g}, which keeps another number of tokens.",
            "Give the same --temperature to both.",
        )
    buckets = found.capacities.buckets.get(batch)
    if buckets is None:
        there = ", ".join(map(str, found.capacities.buckets))
        raise CapacityError(
            f"the capacities '{path}' have none for batches of {batch}",
            f"They are for batches of {there}; a sum of requests does not scale with their number.",
            "Make them again with this --batch too, or use one of those.",
        )
    for bucket in buckets:
        _check_bucket(bucket, dense, depths, batch, path)
    for encoder, rows in dense.items():
        if set(buckets[-1].rows[encoder]) != {batch * rows}:
            raise CapacityError(
                f"the capacities '{path}' have no lossless bucket for batches of {batch}",
                f"Its last has {min(buckets[-1].rows[encoder])} rows of {encoder} where all are {batch * rows}.",
                f"{again} with --text of this export's longest text.",
            )
    return buckets


def _check_bucket(bucket: Bucket, dense: Mapping[str, int], depths: Mapping[str, int], batch: int, path: Path) -> None:
    found = {encoder: len(rows) for encoder, rows in bucket.rows.items()}
    if found != dict(depths):
        raise CapacityError(
            f"the capacities '{path}' do not cover the model",
            f"They have layers {found}, the model has {dict(depths)}.",
            MAKE,
        )
    for encoder, rows in bucket.rows.items():
        for layer, capacity in enumerate(rows):
            if not LEAST_ROWS <= capacity <= batch * dense[encoder]:
                raise CapacityError(
                    f"the capacities '{path}' have {capacity} rows for layer {layer} of {encoder}",
                    f"A batch of {batch} has {LEAST_ROWS} to {batch * dense[encoder]} rows there"
                    + (", for the longest text of this export." if encoder != "vision" else "."),
                    f"{MAKE} Its --text is the longest text of the export.",
                )


def _bucket(content: Mapping[str, Any]) -> Bucket:
    rows = {}
    for encoder, layers in content["rows"].items():
        if not all(isinstance(row, int) and not isinstance(row, bool) for row in layers):
            raise TypeError(f"rows of {encoder} are no whole numbers")
        rows[str(encoder)] = tuple(layers)
    overflow = {
        str(part): PartOverflow(Share(**entry["predicted"]), Share(**entry["observed"]))
        for part, entry in content["overflow"].items()
    }
    return Bucket(rows, overflow)
