"""From images to model inputs, as the official evaluation does it (docs/semantics.md, section 8)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, used by every BLIP checkpoint
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sample:
    """What a request is made of: images (two for NLVR), a text where the task has one, and what is known to be right:
    whether the text is true of the images (NLVR), or answers (VQA) or captions in words."""

    images: tuple[Image.Image, ...]
    text: str | None
    label: bool | None = None
    answers: tuple[str, ...] = ()


def image_tensor(
    image: Image.Image, size: int, mean: Sequence[float] = IMAGE_MEAN, std: Sequence[float] = IMAGE_STD
) -> Tensor:
    """[3, size, size] float32: RGB, bicubic resize to a square (aspect ratio not kept), mean and deviation (CLIP's)."""
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / 255
    normalized = (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)
    return torch.from_numpy(normalized.transpose(2, 0, 1).copy())
