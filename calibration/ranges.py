"""Ranges of activations: between what values the input of every weight product lies, over real samples.

The pruned model runs, so they are ranges of the tokens that survive.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calibration.histograms import PERCENTILE, Histograms, Range
from calibration.methods import METHODS
from calibration.products import Product, ProductMode
from calibration.tokens import Source, partial_path
from madtp.errors import OutputError, RangesError
from madtp.files.outputs import check_outputs, json_kind, write_output
from madtp.files.versioned import read_versioned
from madtp.models.parts import parts_of
from madtp.tasks.requests import run_request, torch_runners

SCHEMA_VERSION = 1
LEAST_SAMPLES = 8  # fewer say nothing about others
RANGES = json_kind("a file of ranges", "schema", "checkpoint_sha256", "samples", "ranges")
PARTIAL = json_kind("a partial file of ranges", "schema", "checkpoint_sha256", "samples", "histograms")
SAVE_EVERY = 100  # samples, where collecting can be resumed
MAKE = "Make it with `python -m calibration ranges`."


@dataclass(frozen=True)
class RangeTable:
    """Ranges of the activations that go into weight products.

    Attributes:
        synthetic: whether random data gave them, which are no ranges of real data.
        ranges: by the product's name (`madtp.models.weight_products`) and method, least and largest value. Products
            that the samples never came to are not in it.
    """

    source: Source
    samples: int
    synthetic: bool
    ranges: dict[str, dict[str, Range]]

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "schema": SCHEMA_VERSION,
            **asdict(self.source),
            "samples": self.samples,
            "synthetic": self.synthetic,
            "percentile": PERCENTILE,
            "ranges": {
                name: {method: list(found) for method, found in methods.items()}
                for name, methods in self.ranges.items()
            },
        }


def read_ranges(path: Path) -> RangeTable:
    """A range table from a file.

    Raises:
        RangesError: missing, not JSON, of another schema, malformed, or with a range that is none.
    """
    content = read_versioned(path, "the range table", (SCHEMA_VERSION,), RangesError, MAKE)
    try:
        ranges = {
            str(name): {method: (float(entry[method][0]), float(entry[method][1])) for method in METHODS}
            for name, entry in content["ranges"].items()
        }
        table = RangeTable(Source.from_json(content), int(content["samples"]), bool(content["synthetic"]), ranges)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise RangesError(f"the range table '{path}' is malformed", repr(error), MAKE) from error
    for name, methods in ranges.items():
        for method, (low, high) in methods.items():
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise RangesError(
                    f"the range table '{path}' is malformed", f"{method} of '{name}' is {low:g} to {high:g}.", MAKE
                )
    return table


def write_ranges(table: RangeTable, path: Path) -> None:
    """Write the file in one step.

    Raises:
        OutputError: it cannot be written, or is there already and holds something else.
    """
    write_output(path, json.dumps(table.to_json(), indent=1) + "\n", RANGES)


def check_ranges(table: RangeTable, checkpoint_sha256: str, task: str, path: Path) -> None:
    """Refuse a table of another checkpoint or task.

    Raises:
        RangesError: naming what differs.
    """
    if (table.source.checkpoint_sha256, table.source.task) != (checkpoint_sha256, task):
        raise RangesError(
            f"the range table '{path}' is of another checkpoint",
            f"Its checkpoint has the task {table.source.task} and sha256 {table.source.checkpoint_sha256[:16]}..., "
            f"this one {task} and {checkpoint_sha256[:16]}...",
            "Make one for this checkpoint: python -m calibration ranges --ckpt ... --data ... -o ranges.json",
        )


@dataclass
class RangeCollector:
    """Adds up what the requests of one source show."""

    source: Source
    synthetic: bool = False
    samples: int = 0
    histograms: Histograms = field(default_factory=Histograms)

    def add(self, model: Any, inputs: Mapping[str, Tensor]) -> None:
        """Run one request (inputs of `run_request`) on a model at the source's temperature.

        Raises:
            RangesError: activations are NaN or infinite.
        """
        with torch.no_grad(), ProductMode(model, self._see):
            run_request(model.config, torch_runners(parts_of(model)), inputs, self.source.temperature)
        self.samples += 1

    def table(self) -> RangeTable:
        """What was seen.

        Raises:
            RangesError: too few samples.
        """
        check_count(self.samples, self.source.data)
        return RangeTable(self.source, self.samples, self.synthetic, self.histograms.ranges())

    def _see(self, product: Product) -> None:
        if not product.activations.isfinite().all():
            raise RangesError(
                f"the input of '{product.name}' is NaN or infinite on sample {self.samples}",
                f"It has no range. The data are {self.source.data}.",
                "Leave the sample out, or look for the fault in the checkpoint: fp32 gives NaN there, too.",
            )
        self.histograms.add(product.name, product.activations.numpy())

    def to_json(self) -> dict[str, Any]:
        """Content of a partial file."""
        return {
            "schema": SCHEMA_VERSION,
            **asdict(self.source),
            "synthetic": self.synthetic,
            "samples": self.samples,
            "histograms": self.histograms.to_json(),
        }


def check_count(samples: int, data: str) -> None:
    """Refuse too few samples.

    Raises:
        RangesError: naming the data.
    """
    if samples < LEAST_SAMPLES:
        raise RangesError(
            f"{samples} sample{'s' * (samples != 1)} cannot be calibrated with",
            f"The data are {data}; fewer than {LEAST_SAMPLES} samples say nothing about others.",
            f"Give {LEAST_SAMPLES} or more, better some hundred.",
        )


def collect_ranges(
    model: Any,
    requests: Iterable[Mapping[str, Tensor]],
    source: Source,
    *,
    synthetic: bool = False,
    on_sample: Callable[[int], None] = lambda _: None,
) -> RangeTable:
    """Ranges over `requests` (inputs of `run_request`, batch 1 each) at the source's temperature.

    Args:
        model: a `madtp.checkpoint.loading.Model` in float32 on the CPU.
        synthetic: whether the requests are random.
        on_sample: told how many are done.

    Raises:
        RangesError: too few samples, or activations that are NaN or infinite.
    """
    collector = RangeCollector(source, synthetic)
    for inputs in requests:
        collector.add(model, inputs)
        on_sample(collector.samples)
    return collector.table()


def collect_ranges_resumable(
    model: Any,
    requests: Sequence[Callable[[], Mapping[str, Tensor]]],
    source: Source,
    path: Path,
    *,
    synthetic: bool = False,
    on_sample: Callable[[int], None] = lambda _: None,
    show: Callable[[RangeTable], None] = lambda _: None,
) -> RangeTable:
    """Like `collect_ranges`, writing `path` at the end; what was cut short leaves a partial file to go on from.

    Args:
        requests: functions that read one request each, so that images are decoded when their turn comes.
        path: the file to write; `<path>.part` beside it holds what was seen so far.
        show: given the table before the file is written, which may fail.

    Raises:
        RangesError: as `collect_ranges`, or the partial file is of something else.
        OutputError: a file cannot be written.
    """
    partial = partial_path(path)
    check_outputs([(path, RANGES)], ())
    check_count(len(requests), source.data)
    collector = _resume(partial, source, synthetic, len(requests))
    on_sample(collector.samples)
    try:
        while collector.samples < len(requests):
            collector.add(model, requests[collector.samples]())
            on_sample(collector.samples)
            if collector.samples % SAVE_EVERY == 0:
                with suppress(OutputError):  # raised at the end, if there is no room then either
                    _write_partial(collector, partial)
    except RangesError:
        raise  # more of the same would not help
    except BaseException:
        if collector.samples:
            _write_partial(collector, partial)
        raise
    table = collector.table()
    try:
        show(table)
    finally:  # a closed pipe is no reason not to write
        write_ranges(table, path)
    partial.unlink(missing_ok=True)
    return table


def _write_partial(collector: RangeCollector, partial: Path) -> None:
    write_output(partial, json.dumps(collector.to_json()) + "\n", PARTIAL)


def _resume(partial: Path, source: Source, synthetic: bool, available: int) -> RangeCollector:
    if not partial.exists():
        return RangeCollector(source, synthetic)
    anew = "Delete the file to begin anew, or name another output."
    content = read_versioned(partial, "the partial range table", (SCHEMA_VERSION,), RangesError, anew)
    try:
        histograms = Histograms.from_json(content["histograms"])
        found = RangeCollector(
            Source.from_json(content), bool(content["synthetic"]), int(content["samples"]), histograms
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RangesError(f"the partial range table '{partial}' is malformed", repr(error), anew) from error
    if (found.source, found.synthetic) != (source, synthetic) or found.samples > available:
        raise RangesError(
            f"the partial range table '{partial}' is of something else",
            f"It is of checkpoint {found.source.checkpoint_sha256[:16]}... at temperature "
            f"{found.source.temperature:g} and of {found.source.data}.",
            anew,
        )
    return found
