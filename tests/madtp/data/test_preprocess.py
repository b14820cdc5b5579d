"""Images become the official model inputs."""

import numpy as np
import pytest
import torch
from PIL import Image

from madtp.data.preprocess import IMAGE_MEAN, IMAGE_STD, image_tensor


def test_image_is_scaled_and_normalised() -> None:
    pixels = torch.arange(8 * 8 * 3, dtype=torch.uint8).reshape(8, 8, 3).numpy()
    tensor = image_tensor(Image.fromarray(pixels), 8)
    expected = (pixels / 255 - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD)
    np.testing.assert_allclose(tensor.numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    assert tensor.dtype == torch.float32


def test_image_of_another_size_is_resized_bicubically_to_a_square() -> None:
    image = Image.effect_noise((50, 31), 80).convert("RGB")
    expected = image.resize((24, 24), Image.Resampling.BICUBIC)
    assert torch.equal(image_tensor(image, 24), image_tensor(expected, 24))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_other_image_modes_become_rgb(mode: str) -> None:
    image = Image.new("RGB", (16, 16), (200, 200, 200)).convert("L").convert(mode if mode != "I;16" else "L")
    image = image.convert("I").convert("I;16") if mode == "I;16" else image
    assert image_tensor(image, 16).shape == (3, 16, 16)
