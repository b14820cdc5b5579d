"""Generated samples, where no real ones are at hand."""

import torch

from madtp.data.samples import MIN_SAMPLES, Config, Request, SampleSet, edge_ids
from madtp.errors import InputError

MOST_BYTES = 2**33  # of all samples


def synthetic_samples(
    config: Config, least: int = MIN_SAMPLES, lengths: tuple[int, int] | None = None, seed: int = 0
) -> SampleSet:
    """Random images and ids: exercises an artifact, but says nothing about tokens that real images keep.

    Args:
        least: samples that are needed; there are MIN_SAMPLES at least.
        lengths: shortest and longest text (captioning: all prompts have one); None takes usual ones.

    Raises:
        InputError: so many do not fit memory.
    """
    generator = torch.Generator().manual_seed(seed)
    first, last, longest = edge_ids(config)
    images = 2 if config.task == "nlvr" else 1
    count = max(MIN_SAMPLES, least)
    size = count * images * 3 * config.image_size**2 * torch.float32.itemsize
    if size > MOST_BYTES:
        raise InputError(
            f"{count} synthetic samples take {size / 1e9:.0f} GB",
            f"No fewer than {least} requests were asked for.",
            "Export with a smaller --batch, or give real samples.",
        )
    requests = []
    for index in range(count):
        length = 4 if last is None else min(4 + index % MIN_SAMPLES, longest)
        if lengths is not None:
            length = min(max(length, lengths[0]), lengths[1])
        lowest = config.vocab_size // 2
        highest = max(config.vocab_size - 2, lowest + 1)
        words = torch.randint(lowest, highest, (length - (1 if last is None else 2),), generator=generator).tolist()
        pixels = torch.randn(images, 3, config.image_size, config.image_size, generator=generator)
        requests.append(Request(tuple(pixels), [first, *words] if last is None else [first, *words, last]))
    return SampleSet(
        requests,
        f"{count} synthetic samples (random pixels and ids)",
        fits=False,
        kind="synthetic",
        texts=[""] * count,
        answers=[()] * count,
    )
