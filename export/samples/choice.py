"""What an artifact is compared on: a folder of samples, a data set, the demo's samples, or generated ones."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from export.engine.range import Range
from export.errors import OptionError
from export.samples.synthetic import synthetic_samples
from madtp.data.datasets import Item, NlvrItem, VqaItem, read_dataset
from madtp.data.images import read_image
from madtp.data.preprocess import image_tensor
from madtp.data.samples import CAPTION_PROMPT, Config, Processor, Request, SampleSet, find_vocabulary, load_samples
from madtp.data.texts import shown
from madtp.data.tokenize import TextProcessor, text_processor
from madtp.errors import InputError

DEFAULT_LIMIT = 32
T = TypeVar("T")


@dataclass(frozen=True)
class DataOptions:
    """Where samples come from; at most one of the first three.

    Attributes:
        samples: a folder with samples.json.
        data: a folder with a data set's annotation file.
        synthetic: random pixels and ids.
        split: of the data set; None is its usual one.
        limit: most samples, evenly spread.
        allow_outside: also take images whose names lead out of the folder.
    """

    samples: Path | None = None
    data: Path | None = None
    synthetic: bool = False
    split: str | None = None
    limit: int = DEFAULT_LIMIT
    allow_outside: bool = False

    def __post_init__(self) -> None:
        given = [
            name for name in ("samples", "data", "synthetic") if getattr(self, name) is not None and getattr(self, name)
        ]
        if len(given) > 1:
            raise OptionError(f"--{given[0]} and --{given[1]} exclude each other", fix="Give one of them.")
        if self.split is not None and self.data is None:
            raise OptionError("--split is given without --data", fix="Name the data set's folder with --data DIR.")
        if self.limit < 1:
            raise OptionError(f"--limit is {self.limit}", "There has to be something to compare.", "Use 1 or more.")


@dataclass(frozen=True)
class ValidationSamples:
    """Prepared samples, and what they are worth.

    Attributes:
        kind: "samples", "data set", "demo" or "synthetic".
        words: "read", "hashed" (stable ids that mean nothing to the model), or "random".
    """

    samples: SampleSet
    kind: str
    words: str

    def to_json(self) -> dict[str, Any]:
        """For the verdict."""
        return {"kind": self.kind, "origin": self.samples.origin, "count": len(self.samples), "words": self.words}


def choose_samples(
    options: DataOptions, checkpoint: Path, vocabulary: Path | None, config: Config, batch: Range, text: Range
) -> ValidationSamples:
    """The samples that the options ask for; the demo's, which are real images, without any.

    Args:
        options: of the command line.
        checkpoint: of the artifact.
        vocabulary: the artifact's, taken before one that lies with the samples or the checkpoint; None: it has none.
        config: of the model.
        batch, text: of the artifact's profile, which generated samples keep to.

    Raises:
        InputError: anything that cannot be used, naming it; a data set without items.
    """
    if options.synthetic:
        return ValidationSamples(synthetic_samples(config, batch, text), "synthetic", "random")
    if options.data is not None:
        found = _data_samples(options, options.data, checkpoint, vocabulary, config)
        return ValidationSamples(found, "data set", "read")
    found = load_samples(options.samples, checkpoint, config, 1, vocabulary, allow_outside=options.allow_outside)
    if len(found) > options.limit:
        chosen = spread(found.requests, options.limit)
        found = replace(found, requests=chosen, origin=f"{len(chosen)} of {found.origin}")
    kind = "demo" if options.samples is None else "samples"
    return ValidationSamples(found, kind, "read" if found.fits else "hashed")


def _data_samples(
    options: DataOptions, folder: Path, checkpoint: Path, vocabulary: Path | None, config: Config
) -> SampleSet:
    dataset = read_dataset(config.task, folder, options.split, allow_outside=options.allow_outside)
    if not dataset.items:
        raise InputError(
            f"the data set '{dataset.annotation}' is empty", "There is nothing to compare on.", "Name another --split."
        )
    vocabulary = vocabulary or find_vocabulary(checkpoint, folder)
    processor = text_processor(config, vocabulary)
    requests = [_request(item, processor, config) for item in spread(dataset.items, options.limit)]
    origin = f"{len(requests)} of {len(dataset)} items of '{dataset.annotation}' ({dataset.split})"
    return SampleSet(requests, origin, True, vocabulary, processor.sha256)


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
    """At most `limit` of the items, evenly spread, the first among them."""
    count = min(limit, len(items))
    return [items[index * len(items) // count] for index in range(count)]
