"""Generated samples, for checking an artifact where no real ones are at hand."""

import torch

from export.engine.range import Range
from madtp.data.samples import MIN_SAMPLES, Config, Request, SampleSet, edge_ids
from madtp.errors import InputError

MOST_BYTES = 2**33  # of all samples


def synthetic_samples(config: Config, batch: Range, text: Range, seed: int = 0) -> SampleSet:
    """Random images and ids: exercises an artifact, but says nothing about tokens that real images keep.

    There are enough for the smallest batch, and their lengths lie in `text` (captioning: all prompts have one).

    Raises:
        InputError: the smallest batch does not fit memory.
    """
    generator = torch.Generator().manual_seed(seed)
    first, last, longest = edge_ids(config)
    images = 2 if config.task == "nlvr" else 1
    count = max(MIN_SAMPLES, batch.min)
    size = count * images * 3 * config.image_size**2 * torch.float32.itemsize
    if size > MOST_BYTES:
        raise InputError(
            f"{count} synthetic samples take {size / 1e9:.0f} GB",
            f"The artifact takes no fewer than {batch.min} requests at once.",
            "Export with a smaller --batch, or validate with --samples.",
        )
    requests = []
    for index in range(count):
        length = 4 if last is None else min(4 + index % MIN_SAMPLES, longest)
        if text.max > 1:
            length = min(max(length, text.min), text.max)
        least = config.vocab_size // 2
        highest = max(config.vocab_size - 2, least + 1)
        words = torch.randint(least, highest, (length - (1 if last is None else 2),), generator=generator).tolist()
        pixels = torch.randn(images, 3, config.image_size, config.image_size, generator=generator)
        requests.append(Request(tuple(pixels), [first, *words] if last is None else [first, *words, last]))
    return SampleSet(requests, f"{count} synthetic samples (random pixels and ids)", fits=False)
