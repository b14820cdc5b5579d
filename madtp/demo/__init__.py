"""Small models trained on real images, to demonstrate on; here statements about pairs of handwritten digits."""

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINT = "nlvr-digits.pt"


def checkpoint_path() -> Path:
    """The trained model that comes with the package."""
    return FOLDER / CHECKPOINT


def vocab_path() -> Path:
    """Its vocabulary; the same as `madtp.demo.data.vocabulary()`."""
    return FOLDER / "vocab.txt"
