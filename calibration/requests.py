"""The requests that calibration runs: of a folder of samples, of a data set, or random ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from madtp.data.annotations import is_there
from madtp.data.datasets import read_dataset
from madtp.data.items import prepare_item, spread
from madtp.data.samples import (
    INDEX,
    Config,
    Processor,
    Request,
    collate,
    find_vocabulary,
    prepare_sample,
    read_index,
    read_sample,
    sample_processor,
)
from madtp.data.synthetic import synthetic_samples
from madtp.data.tokenize import text_processor
from madtp.errors import InputError
from madtp.files.inputs import sha256

LIMIT = 512  # samples, if not said otherwise
RANDOM = 32  # random ones: more of them say no more


@dataclass(frozen=True)
class DataChoice:
    """What to run over: a folder, or nothing but random numbers.

    Attributes:
        data: holds samples.json, or a data set's annotation file.
        split: of the data set; None takes test if present, else val.
        limit: maximum number of samples, evenly spaced; None takes all.
    """

    data: Path | None = None
    synthetic: bool = False
    split: str | None = None
    limit: int | None = LIMIT
    allow_outside: bool = False

    def __post_init__(self) -> None:
        if (self.data is None) != self.synthetic:
            raise InputError(
                "both --data and --synthetic are given" if self.synthetic else "there are no data",
                "What is learned from random data says nothing about real ones, so they have to be asked for.",
                "Give --data DIR, or --synthetic.",
            )
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}", "At least one sample is needed.", "Use 1 or more.")


@dataclass(frozen=True)
class Requests:
    """Requests that are read when their turn comes.

    Attributes:
        origin: what they are, for people.
        index_sha256: of the file that lists them, if there is one.
    """

    reads: Sequence[Callable[[], Request]]
    origin: str
    index_sha256: str | None
    synthetic: bool

    def inputs(self, config: Config) -> list[Callable[[], Mapping[str, Tensor]]]:
        """Functions that read inputs of `madtp.tasks.requests.run_request`, one request each."""
        return [partial(_inputs, read, config) for read in self.reads]


def _inputs(read: Callable[[], Request], config: Config) -> Mapping[str, Tensor]:
    return collate([read()], config)


def choose_requests(choice: DataChoice, checkpoint: Path, config: Config) -> Requests:
    """The requests of a choice; images are not decoded yet.

    Raises:
        InputError: the folder holds neither samples nor a data set of the task, or fewer than are needed.
    """
    if choice.data is None:
        found = synthetic_samples(config, min(RANDOM, choice.limit or RANDOM))
        reads = [partial(_given, request) for request in found.requests]
        return Requests(reads, found.origin, None, True)
    if (choice.data / INDEX).exists() or not is_there(choice.data, folder=True):
        return _samples(choice, choice.data, checkpoint, config)
    return _dataset(choice, choice.data, checkpoint, config)


def _given(request: Request) -> Request:
    return request


def _samples(choice: DataChoice, folder: Path, checkpoint: Path, config: Config) -> Requests:
    entries = list(enumerate(read_index(folder, config.task)))
    processor = sample_processor(checkpoint, folder, config)
    read = partial(_read_sample, folder, processor, config, choice.allow_outside)
    chosen = spread(entries, choice.limit or len(entries))
    origin = f"{len(chosen)} samples of '{folder}'"
    return Requests([partial(read, *entry) for entry in chosen], origin, sha256(folder / INDEX), False)


def _read_sample(
    folder: Path, processor: Processor, config: Config, allow_outside: bool, number: int, entry: object
) -> Request:
    sample = read_sample(folder, number, entry, config.task, allow_outside=allow_outside)
    try:
        return prepare_sample(sample, processor, config)
    except InputError as error:
        raise InputError(error.what, f"{error.why} It is entry {number} of '{folder / INDEX}'.", error.fix) from error


def _dataset(choice: DataChoice, folder: Path, checkpoint: Path, config: Config) -> Requests:
    dataset = read_dataset(config.task, folder, choice.split, allow_outside=choice.allow_outside)
    processor = text_processor(config, find_vocabulary(checkpoint, folder))
    items = spread(dataset.items, choice.limit or len(dataset))
    origin = f"{len(items)} of {len(dataset)} items of '{dataset.annotation}' ({dataset.split})"
    reads = [partial(prepare_item, item, processor, config) for item in items]
    return Requests(reads, origin, sha256(dataset.annotation), False)
