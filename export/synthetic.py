"""Generated samples, for checking an artifact where no real ones are at hand."""

import torch

from export.options import Range
from madtp.samples import MIN_SAMPLES, Config, Request, SampleSet, edge_ids


def synthetic_samples(config: Config, batch: Range, text: Range, seed: int = 0) -> SampleSet:
    """Random images and ids: exercises an artifact, but says nothing about tokens that real images keep.

    There are enough for the smallest batch, and their lengths lie in `text` (captioning: all prompts have one).
    """
    generator = torch.Generator().manual_seed(seed)
    first, last, longest = edge_ids(config)
    images = 2 if config.task == "nlvr" else 1
    count = max(MIN_SAMPLES, batch.min)
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
