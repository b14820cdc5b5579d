"""Edits the manifest of an artifact as its writer would, updating its own hash."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from export.artifact.manifest import Manifest
from export.artifact.reader import read_manifest
from export.artifact.seal import seal
from tests.helpers.paths import ROOT

SCHEMA_3 = ROOT / "tests" / "data" / "manifest" / "schema-3.json"  # of a tiny nlvr model, as commit f5a2c90 wrote it


def recorded_manifest() -> Manifest:
    """A manifest of files that are not there."""
    return read_manifest(SCHEMA_3)


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


def manifest_json(path: Path) -> dict[str, Any]:
    """What a manifest that is read strictly says."""
    return read_manifest(path).to_json()
