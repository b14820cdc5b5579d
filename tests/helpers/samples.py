"""Samples that fit the tiny models, and their vocabulary."""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.checkpoints import TINY

WORDS = ("the", "left", "right", "image", "shows", "a", "digit", "same", "both", "images", "show", "one")
MODES = ("RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "RGB")  # of the sample images, all to be converted
IMAGES = [
    Image.fromarray(image) for image in np.random.default_rng(3).integers(0, 256, (10, 20, 24, 3), dtype=np.uint8)
]
TEXTS = ["the left image", "a digit", "both images show the same digit", "one"]


def write_samples(folder: Path, modes: tuple[str, ...] = MODES) -> Path:
    """A folder of samples for the tiny model: pictures of all `modes`, samples.json and vocab.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, words = np.random.default_rng(0), random.Random(0)
    entries = []
    for index, mode in enumerate(modes):
        names = [f"{index}-{side}.{'jpg' if mode == 'CMYK' else 'png'}" for side in ("left", "right")]
        for name in names:
            pixels = rng.integers(0, 256, (20 + index, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name)
        sentence = " ".join(words.choices(WORDS, k=3 + index))
        entries.append({"sentence": sentence, "images": names, "label": "True" if index % 2 else "False"})
    (folder / "samples.json").write_text(json.dumps(entries))
    write_vocabulary(folder / "vocab.txt")
    return folder


def write_vocabulary(path: Path) -> Path:
    """The vocabulary of the tiny models: special tokens, WORDS, and entries that no text has."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    pieces += [f"[unused{index}]" for index in range(TINY["vocab_size"] - 2 - len(pieces))]
    path.write_text("\n".join(pieces) + "\n")
    return path
