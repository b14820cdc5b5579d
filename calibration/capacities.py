"""Capacities: how many rows every layer needs for a batch, for a probability that a batch needs more."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.counts import RequestCounts
from calibration.overflow import CONFIDENCE, SEED, Draws, Share, batches_to_show
from madtp.errors import CapacityError
from madtp.models.config import BlipConfig, ClipConfig

LEAST_SAMPLES = 8  # to choose with and to check with, together
MULTIPLE = 16  # rows to which capacities are rounded up, as tiles of kernels are
BETWEEN = 0.1  # of the overflow: that of a bucket between the calibrated and the lossless one
PAYS = 0.01  # of the expected rows, that a bucket in between has to save
Layers = dict[str, tuple[int, ...]]  # by encoder, rows after each layer


@dataclass(frozen=True)
class PartOverflow:
    """Share of the batches that a part has to run again on the next bucket.

    Attributes:
        predicted: of batches of the requests that the capacities were chosen with.
        observed: of batches of the held-out requests.
    """

    predicted: Share
    observed: Share

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {"predicted": self.predicted.to_json(), "observed": self.observed.to_json()}


@dataclass(frozen=True)
class Bucket:
    """Capacities of one batch size.

    Attributes:
        rows: by encoder, rows after each layer.
        overflow: by part. Nothing overflows the lossless bucket.
    """

    rows: dict[str, tuple[int, ...]]
    overflow: dict[str, PartOverflow]

    @property
    def size(self) -> int:
        """Rows of all layers: what the work is in proportion to."""
        return sum(map(sum, self.rows.values()))

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "rows": {encoder: list(rows) for encoder, rows in self.rows.items()},
            "overflow": {part: overflow.to_json() for part, overflow in self.overflow.items()},
        }


@dataclass(frozen=True)
class Capacities:
    """What was chosen, and what it rests on.

    Attributes:
        overflow: the probability that was asked for.
        chosen_with, held_out: requests.
        parts: the encoders of every part that prunes.
        dense: by encoder, rows of one request before any pruning.
        buckets: by batch size ascending; each batch's buckets from the calibrated to the lossless one.
        doubts: what the data are too few to show, in sentences.
    """

    overflow: float
    chosen_with: int
    held_out: int
    parts: dict[str, tuple[str, ...]]
    dense: dict[str, int]
    buckets: dict[int, tuple[Bucket, ...]]
    doubts: tuple[str, ...]


def check_held_out(samples: int, share: float, data: str) -> int:
    """How many of the samples are held out.

    Raises:
        CapacityError: too few to say anything.
    """
    held_out = round(samples * share)
    if samples < LEAST_SAMPLES or not 1 <= held_out < samples:
        raise CapacityError(
            f"{samples} sample{'s' * (samples != 1)}, of which {held_out} held out, say nothing about others",
            f"The data are {data}; capacities need {LEAST_SAMPLES} samples at least, and some of them to check with.",
            "Give more samples, better some thousand, or another --held-out.",
        )
    return held_out


def dense_rows(config: BlipConfig | ClipConfig, sequences: Mapping[str, int], text: int) -> dict[str, int]:
    """By encoder, rows of one request before any pruning, `text` being the most ids of a text."""
    ids = config.context_length if isinstance(config, ClipConfig) else text
    return {
        encoder: number * (config.vision_tokens if encoder == "vision" else ids)
        for encoder, number in sequences.items()
    }


def choose_capacities(
    counts: RequestCounts,
    parts: Mapping[str, Sequence[str]],
    dense: Mapping[str, int],
    batches: Sequence[int],
    overflow: float,
    held_out: int,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Capacities:
    """Capacities of every batch size with which no more than `overflow` of the batches overflow in any layer of a part.

    Args:
        counts: of all requests; `held_out` of them, chosen at random with a fixed seed, are kept for checking.
        parts: the encoders of every part that prunes. Parts run, and overflow, one by one.
        dense: by encoder, rows of one request before any pruning (`dense_rows`).
        on_batch: told how many batch sizes are done.
    """
    order = np.random.default_rng(SEED).permutation(counts.samples)
    checked, chosen = order[:held_out], order[held_out:]
    buckets: dict[int, tuple[Bucket, ...]] = {}
    floor: Layers = {}  # a larger batch has no smaller capacities
    for done, batch in enumerate(sorted(set(batches))):
        drawn = [
            _PartDraws(
                part,
                {encoder: len(counts.rows[encoder][0]) for encoder in encoders},
                {encoder: batch * dense[encoder] for encoder in encoders},
                Draws.of(counts.of(encoders)[chosen], batch),
                Draws.of(counts.of(encoders)[checked], batch),
            )
            for part, encoders in parts.items()
        ]
        buckets[batch] = _buckets(drawn, overflow, floor)
        floor = buckets[batch][0].rows
        on_batch(done + 1)
    doubts = _doubts(buckets, overflow, held_out)
    encoders_of = {part: tuple(encoders) for part, encoders in parts.items()}
    return Capacities(overflow, len(chosen), held_out, encoders_of, dict(dense), buckets, doubts)


@dataclass(frozen=True)
class _PartDraws:
    """Batches of one size for one part.

    Attributes:
        depths: layers by encoder.
        largest: by encoder, rows of the batch before any pruning.
        chosen, checked: to choose capacities with, and to check them with.
    """

    part: str
    depths: dict[str, int]
    largest: dict[str, int]
    chosen: Draws
    checked: Draws

    def rows(self, overflow: float, floor: Layers) -> Layers:
        """Capacities, rounded up, at least those of `floor`."""
        quantiles = iter(self.chosen.quantiles(self.chosen.level(overflow)))
        return {
            encoder: tuple(
                min(max(MULTIPLE * math.ceil(next(quantiles) / MULTIPLE), least), self.largest[encoder])
                for least in floor.get(encoder, [0] * depth)
            )
            for encoder, depth in self.depths.items()
        }

    def lossless(self) -> Layers:
        """Room for everything."""
        return {encoder: (self.largest[encoder],) * depth for encoder, depth in self.depths.items()}

    def overflow(self, rows: Layers) -> PartOverflow:
        """How often it is not enough."""
        capacities = [row for encoder in self.depths for row in rows[encoder]]
        return PartOverflow(self.chosen.overflow(capacities), self.checked.overflow(capacities))


def _buckets(drawn: Sequence[_PartDraws], overflow: float, floor: Layers) -> tuple[Bucket, ...]:
    """The calibrated bucket, perhaps one between, and the lossless one; fewer where they are the same."""

    def bucket(rows: Layers) -> Bucket:
        return Bucket(rows, {part.part: part.overflow(rows) for part in drawn})

    def calibrated(share: float, least: Layers) -> Bucket:
        return bucket({encoder: rows for part in drawn for encoder, rows in part.rows(share, least).items()})

    first = calibrated(overflow, floor)
    between = calibrated(overflow * BETWEEN, first.rows)
    last = bucket({encoder: rows for part in drawn for encoder, rows in part.lossless().items()})
    saved = overflow * (1 - BETWEEN) * (last.size - between.size)
    pays = first.size < between.size < last.size and saved > PAYS * (first.size + overflow * last.size)
    chosen = [first, between, last] if pays else [first, last]
    return tuple(one for one in chosen if one is last or one.rows != last.rows)


def _doubts(buckets: Mapping[int, Sequence[Bucket]], overflow: float, held_out: int) -> tuple[str, ...]:
    """What the held-out requests do not show, at 95 % confidence."""
    found = []
    for batch, (first, *_) in buckets.items():
        for part, shares in first.overflow.items():
            observed = shares.observed
            if observed.low > overflow:
                found.append(
                    f"batch {batch}, {part}: the {held_out} held-out requests overflow in {observed.share:.3%} of the "
                    f"batches, more than the {100 * overflow:g}% that were asked for: they differ from the others, or "
                    "those are too few"
                )
            elif observed.high > overflow:
                found.append(
                    f"batch {batch}, {part}: the {held_out} held-out requests show that at most {observed.high:.2%} "
                    f"overflow, with {CONFIDENCE:.0%} confidence; {batches_to_show(overflow):,} independent batches, "
                    f"none of which overflows, would show {100 * overflow:g}%"
                )
    return tuple(found)
