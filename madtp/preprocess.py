"""From images to model inputs, as the official evaluation does it (docs/semantics.md, section 8)."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, used by every BLIP checkpoint
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class NlvrSample:
    """One request: two images and a sentence; `label` says whether it is true of them, where that is known."""

    image0: Image.Image
    image1: Image.Image
    sentence: str
    label: bool | None = None


def image_tensor(image: Image.Image, size: int) -> Tensor:
    """[3, size, size] float32: RGB, bicubic resize to a square (aspect ratio not kept), CLIP's mean and deviation."""
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / 255
    normalized = (pixels - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)
    return torch.from_numpy(normalized.transpose(2, 0, 1).copy())
