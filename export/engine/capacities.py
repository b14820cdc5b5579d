"""Rooms that an engine of the packed layout gets for batches: from a file, or measured on samples."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from calibration.capacities import LEAST_SAMPLES, Bucket, check_held_out, choose_capacities, dense_rows
from calibration.capacity_file import check_capacity, read_capacity
from calibration.counts import RequestCounts
from calibration.overflow import Share
from calibration.tokens import Source
from export.artifact.manifest import CapacityEntry
from export.engine.range import Range
from export.engine.token_sizes import TokenSource
from madtp.data.samples import Config, SampleSet
from madtp.models.parts import Part
from madtp.tasks.requests import Outputs

DEFAULT_OVERFLOW = 1e-3  # of batches, where no file says otherwise
HELD_OUT = 0.25  # of the samples


@dataclass(frozen=True)
class EngineBucket:
    """One engine of a part: rows after each layer of its encoders, for batches of at least and at most so many.

    Attributes:
        label: what its file is called by: "b8", and "b8-2" if it is the second for this batch.
        whole: by encoder, rows of such a batch if nothing is pruned.
        predicted: share of the largest batches that do not fit.
    """

    label: str
    least: int
    batch: int
    rows: dict[str, tuple[int, ...]]
    whole: dict[str, int]
    predicted: Share


@dataclass(frozen=True)
class CapacityPlan:
    """Buckets of every batch size, and where they come from.

    Attributes:
        buckets: by batch size, without those that have room for everything.
        dense: by encoder, rows of one request before any pruning.
        least: requests of the smallest batch of the engine.
        entry: for the manifest; None without any buckets.
    """

    buckets: Mapping[int, tuple[Bucket, ...]]
    dense: Mapping[str, int]
    least: int
    entry: CapacityEntry | None

    def of(self, part: Part) -> list[EngineBucket]:
        """The buckets of a part, in the order in which they are tried; none where they would have room for all."""
        found: list[EngineBucket] = []
        least = self.least
        for batch in sorted(self.buckets):
            own: list[EngineBucket] = []
            for bucket in self.buckets[batch]:
                rows = {encoder: bucket.rows[encoder] for encoder in part.encoders}
                whole = {encoder: batch * self.dense[encoder] for encoder in rows}
                lossless = all(set(of) == {whole[encoder]} for encoder, of in rows.items())
                if not rows or lossless or any(rows == other.rows for other in own):
                    continue
                label = f"b{batch}" if not own else f"b{batch}-{len(own) + 1}"
                predicted = bucket.overflow[part.name].predicted
                own.append(EngineBucket(label, least, batch, rows, whole, predicted))
            found += own
            least = batch + 1
        return found


def sequences_of(task: str, encoders: Iterable[str]) -> dict[str, int]:
    """By encoder, sequences of a request: NLVR's has two images."""
    return {encoder: 2 if (task, encoder) == ("nlvr", "vision") else 1 for encoder in encoders}


def buckets_of_file(
    path: Path, wanted: Source, config: Config, depths: Mapping[str, int], batch: Range, text: Range
) -> CapacityPlan:
    """The buckets of a file for the batch sizes of an engine; its largest has to be among them.

    Raises:
        CapacityError: the file cannot be read, or is not of this checkpoint, temperature, text or batch.
    """
    found = read_capacity(path)
    dense = dense_rows(config, sequences_of(config.task, depths), text.max)
    there = [size for size in found.capacities.buckets if batch.min <= size < batch.max]
    buckets = {size: check_capacity(found, wanted, dense, depths, size, path) for size in (*there, batch.max)}
    measured = found.capacities
    samples = measured.chosen_with + measured.held_out
    entry = CapacityEntry("file", found.source.data, samples, measured.overflow)
    return CapacityPlan(buckets, dense, batch.min, entry)


def measured_buckets(
    parts: Mapping[str, Part],
    config: Config,
    samples: SampleSet,
    count: Callable[[], Iterable[Outputs]],
    source: Source,
    batch: Range,
    text: Range,
) -> CapacityPlan:
    """Buckets for the smallest, the usual and the largest batch, from what samples keep; none where nothing is pruned,
    or the samples are too few to say anything.

    Args:
        count: gives the token counts of every sample alone, by encoder; not called where they are not needed.
        source: checkpoint, task and temperature of the engine.
    """
    encoders = {name: list(part.encoders) for name, part in parts.items() if part.encoders}
    depths = [encoder for names in encoders.values() for encoder in names]
    dense = dense_rows(config, sequences_of(config.task, depths), text.max)
    if source.temperature <= 0 or len(samples) < LEAST_SAMPLES:
        return CapacityPlan({}, dense, batch.min, None)
    counts = RequestCounts(source)
    for outputs in count():
        counts.add(outputs, 0)
    held_out = check_held_out(counts.samples, HELD_OUT, source.data)
    sizes = sorted({batch.min, batch.opt, batch.max})
    found = choose_capacities(counts, encoders, dense, sizes, DEFAULT_OVERFLOW, held_out)
    basis: TokenSource = "measured" if samples.fits else "guessed"
    entry = CapacityEntry(basis, samples.origin, counts.samples, DEFAULT_OVERFLOW)
    return CapacityPlan(found.buckets, dense, batch.min, entry)
