"""JSON files that say the version of their schema."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from madtp.errors import MadtpError
from madtp.files.inputs import read_json


def read_versioned(
    path: Path, name: str, versions: Collection[int], error: type[MadtpError], fix: str
) -> dict[str, Any]:
    """The object that a JSON file holds, of a schema that this version reads.

    Raises:
        error: the file is missing, not JSON, not an object, or of another schema.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"cannot read {name} '{path}'", str(cause), fix) from cause
    return check_version(content, f"{name} '{path}'", versions, error, fix)


def check_version(
    content: Any, name: str, versions: Collection[int], error: type[MadtpError], fix: str
) -> dict[str, Any]:
    """`content`, if it is an object of a schema that this version reads; see `read_versioned`."""
    version = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(content, dict) or isinstance(version, bool) or version not in versions:
        accepted = " and ".join(map(str, sorted(versions)))
        raise error(f"{name} is of schema {version!r:.80}", f"This version reads schema {accepted}.", fix)
    return content
