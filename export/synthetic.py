"""Generated samples, for checking an artifact where no real ones are at hand."""

import torch

from export.options import Range
from madtp.config import NlvrConfig
from madtp.samples import MIN_SAMPLES, Request, SampleSet


def synthetic_samples(config: NlvrConfig, batch: Range, text: Range, seed: int = 0) -> SampleSet:
    """Random images and ids: exercises an artifact, but says nothing about tokens that real images keep.

    There are enough for the smallest batch, and their lengths lie in `text`.
    """
    generator = torch.Generator().manual_seed(seed)
    count = max(MIN_SAMPLES, batch.min)
    requests = []
    for index in range(count):
        length = min(max(4 + index % MIN_SAMPLES, text.min), text.max)
        first = config.vocab_size // 2
        words = torch.randint(first, max(config.vocab_size - 2, first + 1), (length - 2,), generator=generator)
        shape = (2, 3, config.image_size, config.image_size)
        first, second = torch.randn(shape, generator=generator)
        requests.append(Request(first, second, [config.enc_token_id, *words.tolist(), config.sep_token_id], None))
    return SampleSet(requests, f"{count} synthetic samples (random pixels and ids)", None)
