"""Small models trained on real images, to demonstrate on; here statements about pairs of handwritten digits."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from madtp.errors import InputError

FOLDER = Path(__file__).parent
CHECKPOINT = "nlvr-digits.pt"


def checkpoint_path() -> Path:
    """The trained model that comes with the package."""
    return FOLDER / CHECKPOINT


def vocab_path() -> Path:
    """Its vocabulary; the same as `madtp.demo.data.vocabulary()`."""
    return FOLDER / "vocab.txt"


@contextmanager
def demo_extra() -> Iterator[None]:
    """Turn a failed import inside the block into an InputError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            "the demo needs packages that are not installed", str(error), "Run: pip install 'madtp-deploy[demo]'"
        ) from error
