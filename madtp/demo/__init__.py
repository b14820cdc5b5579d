"""A small model trained on real images, to demonstrate on: statements about pairs of handwritten digits."""

from pathlib import Path

FOLDER = Path(__file__).parent


def checkpoint_path() -> Path:
    """The trained model that comes with the package."""
    return FOLDER / "nlvr-digits.pt"


def vocab_path() -> Path:
    """Its vocabulary; the same as `madtp.demo.data.vocabulary()`."""
    return FOLDER / "vocab.txt"
