"""Reading the files that users name: regular ones, of a size that is checked first, UTF-8 with or without a mark."""

import errno
import hashlib
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

MOST_BYTES = 2**28  # of a JSON or text file; data sets, which may be larger, say so
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def open_regular(path: Path) -> BufferedReader:
    """A regular file for reading: a pipe could be waited for, and a device read, for ever.

    Raises:
        OSError: missing, a folder, without permission, or no regular file; `strerror` says which.
    """
    # O_NONBLOCK: what turns into a pipe between the question what it is and its opening is not waited for either.
    _check_regular(path, path.stat().st_mode)
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115 - the caller's
    try:
        _check_regular(path, os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def _check_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise OSError(errno.EINVAL, f"It is {kind}; only regular files are read", str(path))


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a regular file holds.

    Args:
        most: bytes; a larger file is refused before any of it is read.

    Raises:
        OSError: see `open_regular`.
        ValueError: it is larger than `most`, or is being written.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"It holds {size / 1e6:.1f} MB; at most {most / 1e6:.1f} MB are read.")
        content = file.read(size + 1)  # reserves as much memory
        if len(content) > size:
            raise ValueError("It grew while it was read.")
        return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a UTF-8 file; a byte-order mark, which some editors put before it, is none of it.

    Raises:
        OSError, ValueError: see `read_bytes`; UnicodeDecodeError, which is a ValueError, where it is not UTF-8.
    """
    return decode_text(read_bytes(path, most))


def read_json(path: Path, most: int = MOST_BYTES, *, unique: bool = False) -> Any:
    """What a JSON file holds.

    Raises:
        OSError, ValueError, RecursionError: see `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, most), unique=unique)


def decode_text(content: bytes) -> str:
    """UTF-8 as text, without the byte-order mark."""
    return content.decode("utf-8-sig")


def parse_json(text: str, *, unique: bool = False) -> Any:
    """JSON as RFC 8259 knows it: what Python would read besides could not be printed or written again.

    Args:
        unique: refuse an object that has a name twice, of which readers take the one or the other.

    Raises:
        ValueError: no JSON, or it holds NaN, an infinity or half a surrogate pair, or a name twice.
        RecursionError: brackets nested a thousand deep.
    """
    content = json.loads(text, object_pairs_hook=_unique if unique else None)
    json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in content if names.count(name) > 1)
        raise ValueError(f"The name '{twice:.80}' stands twice in one object.")
    return content


def sha256(path: Path) -> str:
    """Hex digest of a regular file.

    Raises:
        OSError: see `open_regular`.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
