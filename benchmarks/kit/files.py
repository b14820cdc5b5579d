"""Result files are complete or absent: written beside their place and renamed. Uses the standard library only."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Put `text` into the file at `path`, or leave what was there.

    Raises:
        OSError: e.g. the disk is full.
    """
    fresh = _written(path, text)
    try:
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def claim(path: Path, content: Any) -> None:
    """Write JSON into a file that must not be there yet.

    Raises:
        FileExistsError: it is there.
        OSError: e.g. the disk is full.
    """
    fresh = _written(path, _json(content))
    try:
        os.link(fresh, path)
    finally:
        fresh.unlink()


def _written(path: Path, text: str) -> Path:
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    return fresh


def write_json(path: Path, content: Any) -> None:
    """`write_text` of JSON; numbers that are not finite, which JSON does not have, become null. Raises OSError too."""
    write_text(path, _json(content))


def _json(content: Any) -> str:
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; None if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
