"""The samples that an artifact is run on: a folder's, a data set's, the demo's, or generated ones."""

from dataclasses import dataclass, replace
from pathlib import Path

from export.engine.range import Range
from export.errors import OptionError
from export.samples.profile import check_samples
from madtp.data.datasets import read_dataset
from madtp.data.items import prepare_item, spread
from madtp.data.samples import Config, SampleSet, find_vocabulary, load_samples
from madtp.data.synthetic import synthetic_samples
from madtp.data.tokenize import text_processor
from madtp.errors import InputError

DEFAULT_LIMIT = 32


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
        found = synthetic_samples(config, batch.min, (text.min, text.max) if text.max > 1 else None)
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
    requests = [prepare_item(item, processor, config) for item in items]
    origin = f"{len(requests)} of {len(dataset)} items of '{dataset.annotation}' ({dataset.split})"
    return SampleSet(requests, origin, True, vocabulary, processor.sha256, "data set", processor=processor)
