"""The samples that an artifact is run on: a folder's, a data set's, the demo's, or generated ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from export.engine.range import Range
from export.errors import OptionError
from export.samples.profile import check_samples
from export.samples.synthetic import synthetic_samples
from madtp.data.datasets import Item, NlvrItem, VqaItem, read_dataset
from madtp.data.images import read_image
from madtp.data.preprocess import image_tensor
from madtp.data.samples import (
    CAPTION_PROMPT,
    Config,
    Processor,
    Request,
    SampleSet,
    find_vocabulary,
    load_samples,
)
from madtp.data.texts import shown
from madtp.data.tokenize import TextProcessor, text_processor
from madtp.errors import InputError

DEFAULT_LIMIT = 32
T = TypeVar("T")


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from: at most one of the first three.

    Attributes:
        samples: a folder with samples.json.
        data: a folder with the annotation file of a data set.
        split: split of the data set; None takes test if present, else val.
        limit: maximum number of samples, evenly spaced; None takes all.
    """

    samples: Path | None = None
    data: Path | None = None
    synthetic: bool = False
    split: str | None = None
    limit: int | None = DEFAULT_LIMIT
    allow_outside: bool = False

    def __post_init__(self) -> None:
        given = [
            name for name in ("samples", "data", "synthetic") if getattr(self, name) is not None and getattr(self, name)
        ]
        if len(given) > 1:
            raise OptionError(f"--{given[0]} and --{given[1]} exclude each other", fix="Give only one of them.")
        if self.split is not None and self.data is None:
            raise OptionError("--split is given without --data", fix="Name the data set's folder with --data DIR.")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"--limit is {self.limit}", "At least one sample is needed.", "Use 1 or more.")


def choose_samples(
    options: DataOptions,
    checkpoint: Path | None,
    vocabulary: Path | None,
    config: Config,
    batch: Range,
    text: Range,
    demos: int | None = None,
) -> SampleSet:
    """The samples that the options ask for; without any the demo's, which are real images.

    Args:
        checkpoint: the artifact's checkpoint, if it is at hand: a vocabulary may lie beside it.
        vocabulary: the artifact's vocabulary, preferred to others; None if it has none.
        batch, text: ranges of the artifact's profile; generated samples keep to them.
        demos: how many of the demo's samples; None takes the usual number.

    Raises:
        InputError: a file that cannot be used, naming it; a data set without items.
        OptionError: samples that the profile does not allow.
    """
    if options.synthetic:
        found = synthetic_samples(config, batch, text)
    elif options.data is not None:
        found = _data_samples(options, options.data, checkpoint, vocabulary, config)
    else:
        found = load_samples(
            *(options.samples, checkpoint, config, 1, vocabulary), allow_outside=options.allow_outside, demos=demos
        )
        if options.limit is not None and len(found) > options.limit:
            found = _limited(found, options.limit)
    check_samples(found, config, batch, text)
    return found


def _limited(samples: SampleSet, limit: int) -> SampleSet:
    places = spread(range(len(samples)), limit)
    return replace(
        samples,
        requests=[samples.requests[place] for place in places],
        texts=[samples.texts[place] for place in places],
        answers=[samples.answers[place] for place in places],
        origin=f"{len(places)} of {samples.origin}",
    )


def _data_samples(
    options: DataOptions, folder: Path, checkpoint: Path | None, vocabulary: Path | None, config: Config
) -> SampleSet:
    dataset = read_dataset(config.task, folder, options.split, allow_outside=options.allow_outside)
    if not dataset.items:
        raise InputError(
            f"the data set '{dataset.annotation}' is empty", "There is nothing to compare on.", "Name another --split."
        )
    vocabulary = vocabulary or find_vocabulary(checkpoint, folder)
    processor = text_processor(config, vocabulary)
    items = spread(dataset.items, len(dataset) if options.limit is None else options.limit)
    requests = [_request(item, processor, config) for item in items]
    origin = f"{len(requests)} of {len(dataset)} items of '{dataset.annotation}' ({dataset.split})"
    return SampleSet(requests, origin, True, vocabulary, processor.sha256, "data set", processor=processor)


def _request(item: Item, processor: Processor, config: Config) -> Request:
    """An item as the model takes it; texts are cut where the published evaluation cuts them."""
    paths = item.images if isinstance(item, NlvrItem) else (item.image,)
    label = item.label if isinstance(item, NlvrItem) else None
    if config.task == "caption" and isinstance(processor, TextProcessor):
        ids = processor.prompt_ids(CAPTION_PROMPT)
    else:
        try:
            ids = processor.ids(_text(item), cut=True)
        except InputError as error:
            raise InputError(f"the item {shown(item.key)}: {error.what}", error.why, error.fix) from error
    images = tuple(image_tensor(read_image(path), config.image_size) for path in paths)
    return Request(images, ids, None if label is None else int(label))


def _text(item: Item) -> str:
    if isinstance(item, NlvrItem):
        return item.sentence
    return item.question if isinstance(item, VqaItem) else next(iter(item.captions), "")


def spread(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` of the items, evenly spaced, beginning with the first."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]
