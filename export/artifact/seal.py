"""A manifest's hash of itself, and the text that is written."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import jsonschema

from export.artifact.manifest import Manifest, manifest_schema
from madtp.files.outputs import json_kind

OWN_HASH = "manifest_sha256"
MANIFEST = json_kind("the manifest of an artifact", "schema", "artifact", "parts")


@cache
def manifest_validator() -> jsonschema.Draft202012Validator:
    """Checks JSON against the schema of manifests."""
    return jsonschema.Draft202012Validator(manifest_schema())


def dump_manifest(manifest: Manifest) -> str:
    """The manifest's text, with its own hash, checked against the schema first."""
    content = seal(manifest.to_json())
    manifest_validator().validate(content)
    return json.dumps(content, indent=2) + "\n"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a manifest with the hash of itself, in place of the one that it may have."""
    return dict(content) | {OWN_HASH: manifest_sha256(content)}


def sealed(manifest: Manifest) -> Manifest:
    """The manifest with the hash of itself."""
    return replace(manifest, manifest_sha256=manifest_sha256(manifest.to_json()))


def is_sealed(manifest: Manifest) -> bool:
    """Whether it is what the hash in it was made of."""
    return manifest.manifest_sha256 == manifest_sha256(manifest.to_json())


def manifest_sha256(content: Mapping[str, Any]) -> str:
    """Hex digest of all fields but the hash itself, as compact JSON in UTF-8 with sorted keys."""
    fields = {key: value for key, value in content.items() if key != OWN_HASH}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
