"""Requests that keep different numbers of tokens: crops of two photographs, at scales from a part to the whole, and
sentences of different lengths."""

from importlib.resources import files

import numpy as np
from PIL import Image
from torch import Tensor

from madtp.data.preprocess import image_tensor
from madtp.data.samples import Request
from madtp.models.config import NlvrConfig

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
LENGTHS = (6, 30)  # of a sentence in ids, special ones included
WORDS = (1000, 30000)  # ids of whole words in BERT's vocabulary
SPECIAL = 10  # ids at either end of a small vocabulary that are not words


def varied_requests(config: NlvrConfig, count: int, longest: int = LENGTHS[1]) -> list[Request]:
    """The first `count` of a fixed sequence of requests; sentences have at most `longest` ids."""
    random = np.random.default_rng(0)
    folder = files("madtp.data") / "defaults"
    photographs = [Image.open(str(folder / name)).convert("RGB") for name in PHOTOGRAPHS]
    words = WORDS if config.vocab_size > WORDS[1] else (SPECIAL, config.vocab_size - SPECIAL)

    def crop() -> Tensor:
        photograph = photographs[random.integers(len(photographs))]
        side = int(min(photograph.size) * random.uniform(0.1, 1))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in photograph.size)
        return image_tensor(photograph.crop((left, top, left + side, top + side)), config.image_size)

    def sentence() -> list[int]:
        chosen = random.integers(*words, random.integers(LENGTHS[0] - 2, longest - 1)).tolist()
        return [config.enc_token_id, *chosen, config.sep_token_id]

    return [Request((crop(), crop()), sentence()) for _ in range(count)]
