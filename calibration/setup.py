"""What the commands of calibration have in common: their options, and the model and requests that they run."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from torch import Tensor

import madtp
from calibration.fake_quantization import FakeQuantization
from calibration.ranges import check_count, check_ranges, read_ranges
from calibration.requests import LIMIT, DataChoice, Requests, choose_requests
from calibration.sensitivity import Trials
from calibration.smoothing import default_channels, smooth
from calibration.tokens import Source
from madtp.console.command import PATH
from madtp.data.samples import INDEX, Request, collate, find_vocabulary
from madtp.errors import InputError
from madtp.files.inputs import sha256
from madtp.models.config import MAX_TEMPERATURE
from madtp.models.weight_products import weight_products

checkpoint_only_options = (
    click.option("--ckpt", type=PATH, required=True, help="Trained MADTP checkpoint (.pt, .pth)."),
    click.option("--config", type=PATH, help="JSON of model sizes that override inferred ones."),
)
checkpoint_options = (
    *checkpoint_only_options,
    click.option("--temperature", type=float, help="Pruning temperature (default: the checkpoint's)."),
)
_split = click.option("--split", metavar="NAME", help="Split of a data set (default: test if present, else val).")
_limit = click.option(
    "--limit", type=int, metavar="N", default=LIMIT, show_default=True, help="Use at most N, evenly spaced."
)
data_options = (  # of commands that may have --synthetic instead
    click.option(
        "--data", type=PATH, metavar="DIR", help="Folder of samples (samples.json and images), or of a data set."
    ),
    _split,
    _limit,
)
_real = click.option("--data", type=PATH, required=True, metavar="DIR", help="Folder of samples, or of a data set.")
real_data_options = (_real, _split, _limit)
all_data_options = (
    _real,
    _split,
    click.option("--limit", type=int, metavar="N", help="Use at most N, evenly spaced (default: all)."),
)


def with_options(*options: Any) -> Callable[[Any], Any]:
    """Several options at once, in the order in which they are listed in the help."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@dataclass(frozen=True)
class Setup:
    """A model, and what to run it over."""

    model: Any
    requests: Requests
    source: Source

    @cached_property
    def read(self) -> list[Request]:
        """All requests."""
        check_count(len(self.requests.reads), self.source.data)
        return [read() for read in self.requests.reads]

    @property
    def inputs(self) -> list[Mapping[str, Tensor]]:
        """Inputs of `run_request`, one request each."""
        return [collate([request], self.model.config) for request in self.read]

    def low_precision(self, precision: str, table: Path | None, method: str, *, smoothed: bool) -> FakeQuantization:
        """How products are computed in a precision: with activations by a table if there is one.

        Raises:
            MadtpError: no table where one is needed, or one of another checkpoint; too few samples.
        """
        if table is not None:
            content = read_ranges(table)
            check_ranges(content, self.source.checkpoint_sha256, self.source.task, table)
            found = {name: methods[method] for name, methods in content.ranges.items()}
            return FakeQuantization(self.model, "static-int8" if precision == "int8" else precision, found)
        if precision == "fp8":
            raise InputError(
                "fp8 needs ranges of activations",
                "Its scales are fixed before it runs.",
                "Make a table with `python -m calibration ranges`, and give it with --ranges.",
            )
        model = self.model
        if smoothed:
            model = copy.deepcopy(model)
            smooth(model, default_channels(model, self.source.temperature))
        return FakeQuantization(model, precision)

    def trials(
        self,
        low_precision: FakeQuantization,
        probe: int,
        quantize_scores: bool,
        on_step: Callable[[str, int, int], None],
    ) -> Trials:
        """Trials over all requests.

        Raises:
            MadtpError: too few samples, or one that cannot be read.
        """
        products = weight_products(self.model).values()
        never = frozenset(product.name for product in products if product.group == "alignment" and not quantize_scores)
        labels = [request.label for request in self.read]
        return Trials(self.model, self.inputs, self.source.temperature, low_precision, labels, probe, never, on_step)


def inputs_of(checkpoint: Path, config: Path | None, choice: DataChoice) -> list[Path | None]:
    """Files that a run reads, as far as options name them."""
    index = None if choice.data is None else choice.data / INDEX
    return [checkpoint, config, index, find_vocabulary(checkpoint, choice.data)]


def prepare(
    checkpoint: Path,
    config: Path | None,
    temperature: float | None,
    choice: DataChoice,
    otherwise: float | None = None,
) -> Setup:
    """Read the checkpoint, and find the samples.

    Args:
        temperature: None takes the checkpoint's.
        otherwise: instead of a checkpoint's that prunes nothing.

    Raises:
        MadtpError: one of them cannot be used, or the model would not prune.
    """
    model = madtp.load(checkpoint, config)
    tau = model.temperature if temperature is None else temperature
    if otherwise is not None and not 0 < tau <= MAX_TEMPERATURE:
        tau = otherwise
    if not 0 < tau <= MAX_TEMPERATURE:
        raise InputError(
            f"the temperature is {tau:g}",
            "At zero the model is dense: every layer keeps all tokens.",
            f"Give --temperature between 0 and {MAX_TEMPERATURE:g}.",
        )
    requests = choose_requests(choice, checkpoint, model.config)
    return Setup(model, requests, Source(sha256(checkpoint), model.task, tau, requests.origin, requests.index_sha256))
