"""Outputs of earlier exports to protect, and a disk that fills up."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outputs:
    """A folder with outputs of earlier exports."""

    folder: Path
    earlier: dict[str, bytes]

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def untouched(self) -> None:
        """Assert that every file is as it was, and that there is nothing new, hidden or not."""
        assert {path.name: path.read_bytes() for path in self.folder.iterdir()} == self.earlier


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to a file fails, in this process and its children, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
