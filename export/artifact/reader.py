"""Reading manifests, strictly: for everybody who relies on one. `fields` reads them as they are."""

import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path

import jsonschema

from export.artifact.manifest import NAME_PATTERN, SCHEMA_VERSION, Manifest, Part, Profile
from export.artifact.seal import is_sealed, manifest_validator, seal
from export.errors import ManifestError
from madtp.files.inputs import read_json
from madtp.files.versioned import check_version

UNSEALED_VERSION = 3  # schema 4 but for the manifest's hash of itself
LONGEST = 2**20  # bytes; real ones have some 10 kB
MOST_ERRORS = 1000  # of the schema, of which the one to be shown is chosen
LONGEST_REASON = 500  # characters of what the schema says of a value, which may be all of the file
ARTIFACTS = (".onnx", ".plan")
_TOGETHER = "Keep artifact and manifest together under the names that the export gave them."
_IN_PLACE = "Put what a tool made of a file in that file's place, under its name, and name that one."


def manifest_path(artifact: Path) -> Path:
    """`out.json` beside `out.plan`."""
    return artifact.with_suffix(".json")


def find_manifest(path: Path) -> Path:
    """The manifest that is meant: itself, or the one beside an artifact."""
    return manifest_path(path) if path.suffix in ARTIFACTS else path


def open_manifest(path: Path, *, changed: bool = False) -> tuple[Path, Manifest]:
    """Where the manifest lies that is meant by a path, and what it holds: what is named is what is opened.

    Args:
        path: the manifest, or the artifact that it describes. A symbolic link is what it leads to, unless the files of
            the artifact lie, or are linked, beside it under their own names.

    Raises:
        ManifestError: see `read_manifest`; also where the manifest beside an artifact is of another one.
    """
    if path.is_symlink() and not _is_complete(path):
        path = Path(os.path.realpath(path))
    found = find_manifest(path)
    manifest = read_manifest(found, changed=changed)
    if found != path and path.name != manifest.artifact:
        raise ManifestError(
            f"'{found}' is the manifest of '{manifest.artifact}', not of '{path.name}'",
            "The artifact was renamed, or is another.",
            _IN_PLACE if changed else _TOGETHER,
        )
    return found, manifest


def _is_complete(path: Path) -> bool:
    """Whether a manifest and its artifact lie where `path` names one of them."""
    found = find_manifest(path)
    with suppress(ManifestError):
        manifest = read_manifest(found)
        if found == path:
            return (path.parent / manifest.parts[0].artifact).exists()
        return path.name == manifest.artifact
    return False


def read_manifest(path: Path, *, changed: bool = False) -> Manifest:
    """A manifest from disk; one of schema 3 as schema 4 has it.

    Args:
        changed: also one that was changed after it was written, which its own hash tells.

    Raises:
        ManifestError: missing, not JSON, with a name twice, of another schema version, malformed, naming a file that
            does not lie beside it, or changed.
    """
    try:
        content = read_json(path, LONGEST, unique=True)
    except (OSError, ValueError, RecursionError) as error:
        whole = _whole(path) if isinstance(error, FileNotFoundError) else None
        if whole is not None:
            raise ManifestError(
                f"'{path.stem}' is one part of '{whole}'",
                "An artifact is used whole.",
                f"Name '{path.with_name(whole)}'.",
            ) from error
        raise ManifestError(
            f"cannot read the manifest '{path}'", str(error), _IN_PLACE if changed else _TOGETHER
        ) from error
    versions = (UNSEALED_VERSION, SCHEMA_VERSION)
    fix = "Export again, or use the version that wrote it."
    content = check_version(content, f"the manifest '{path}'", versions, ManifestError, fix)
    if content["schema"] == UNSEALED_VERSION:
        content = seal(content | {"schema": SCHEMA_VERSION})
    errors = islice(manifest_validator().iter_errors(content), MOST_ERRORS)
    wrong = jsonschema.exceptions.best_match(errors)
    if wrong is not None:
        raise ManifestError(f"the manifest '{path}' is malformed", f"At {_reason(wrong)}.", "Export again.") from wrong
    manifest = Manifest.from_json(content)
    for part in manifest.parts:
        for engine in part.engines:
            _check_profile(part, engine.profile, path)
    if not changed and not is_sealed(manifest):
        raise ManifestError(
            f"the manifest '{path}' was changed after it was written",
            "It is not what the hash in it was made of, so that answers may be others than those that were validated.",
            "Use the file that the export wrote, or export again.",
        )
    return manifest


def _reason(error: jsonschema.ValidationError) -> str:
    """What is wrong with a manifest, in words."""
    if error.validator_value == NAME_PATTERN:
        return f"{error.json_path}: {error.instance!r:.80} is not a bare file name, and files lie beside their manifest"
    return f"{error.json_path}: {error.message[:LONGEST_REASON]}"


def _whole(path: Path) -> str | None:
    """The artifact of `out.json`, if it lists the part that `out.encoder.json`, which does not exist, is asked of."""
    stem = path.stem.rpartition(".")[0]
    with suppress(ManifestError):
        manifest = read_manifest(path.with_name(f"{stem}.json")) if stem else None
        if manifest and any(Path(part.artifact).stem == path.stem for part in manifest.parts):
            return manifest.artifact
    return None


def _check_profile(part: Part, profile: Mapping[str, Profile], path: Path) -> None:
    """What the schema cannot say: every input but the temperature has shapes of its rank."""
    ranks = {
        info.name: len(info.shape)
        for info in part.inputs
        if any(isinstance(dimension, str) for dimension in info.shape)
    }
    fits = profile.keys() == ranks.keys() and bool(ranks)
    if not fits or any(len(shape) != ranks[name] for name in ranks for shape in profile[name]):
        raise ManifestError(
            f"the manifest '{path}' is malformed", f"Part '{part.name}': profile and inputs differ.", "Export again."
        )
