"""Edits the manifest of an artifact as its writer would, updating its own hash."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from export.artifact.manifest import seal


def write_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest, right or wrong; content that is not JSON keeps its hash."""
    with suppress(ValueError):
        manifest = seal(manifest)
    path.write_text(json.dumps(manifest))


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and its hash with it."""
    manifest = json.loads(path.read_text())
    change(manifest)
    write_manifest(path, manifest)
