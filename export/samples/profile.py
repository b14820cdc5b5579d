"""Samples that an optimisation profile takes."""

from export.engine.range import Range
from export.errors import OptionError
from madtp.data.samples import Config, SampleSet
from madtp.errors import InputError


def check_samples(samples: SampleSet, config: Config, batch: Range, text: Range) -> None:
    """Samples that the profile would refuse are an error now, not after the build."""
    lengths = [len(request.ids) for request in samples.requests]
    longest, shortest = max(lengths), min(lengths)
    positions = getattr(config, "max_position", longest)
    if longest > positions:
        raise InputError(
            f"sample {lengths.index(longest)} has {longest} tokens",
            f"The model has {positions} positions. It is one of {samples.origin}.",
            "Shorten the sentence; it is not cut silently because that would ask another question.",
        )
    if text.max > 1 and (longest > text.max or shortest < text.min):
        raise OptionError(
            f"sentences of {shortest} to {longest} tokens do not fit the text length {text}",
            f"They are in {samples.origin}; {lengths.index(shortest)} is shortest, {lengths.index(longest)} longest.",
            f"Use --text {min(shortest, text.min)}:{text.opt}:{max(longest, text.max)}, or other samples.",
        )
    if batch.min > len(samples):
        raise OptionError(
            f"--batch {batch} needs {batch.min} samples at once",
            f"There are {len(samples)}: {samples.origin}.",
            "Give more samples, or a smaller MIN.",
        )
