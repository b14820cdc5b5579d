"""A small retrieval model trained on photographs that packages ship: which caption fits which picture?"""

from pathlib import Path

FOLDER = Path(__file__).parent
CHECKPOINT = "retrieval-photos.pt"
EVALUATED = 6  # held-out crops of each photograph


def checkpoint_path() -> Path:
    """The trained model that comes with the package."""
    return FOLDER / CHECKPOINT


def vocab_path() -> Path:
    """Its vocabulary; the same as `madtp.demo.retrieval.data.vocabulary()`."""
    return FOLDER / "vocab.txt"
