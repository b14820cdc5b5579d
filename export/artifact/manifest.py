"""The manifest `out.json` that goes with every artifact: what it is, how it was made, what was proved of it.

The fields are described in `manifest.schema.json` (and in `docs/manifest.md`); reading checks a file against it.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata, resources
from itertools import islice
from pathlib import Path
from typing import Any

import jsonschema

from export.artifact.onnx_file import external_locations
from export.artifact.tensors import TensorInfo
from export.errors import ManifestError
from madtp.files.inputs import read_json, sha256
from madtp.files.outputs import json_kind

SCHEMA_VERSION = 4
OWN_HASH = "manifest_sha256"
LONGEST = 2**20  # bytes; real ones have some 10 kB
MOST_ERRORS = 1000  # of the schema, of which the one to be shown is chosen
MOST_BYTES = 2**38  # of a file of an artifact
LONGEST_REASON = 500  # characters of what the schema says of a value, which may be all of the file
PART_NAMES = {  # see madtp/models/parts.py
    "nlvr": ("model",),
    "vqa": ("encoder", "decoder"),
    "caption": ("encoder", "decoder"),
    "retrieval": ("image", "text", "match"),
    "clip": ("image", "text"),
}
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "polygraphy")
KEPT_FAILURES = 20  # of a validation, in a manifest
ARTIFACTS = (".onnx", ".plan")
_TOGETHER = "Keep artifact and manifest together under the names that the export gave them."
_IN_PLACE = "Put what a tool made of a file in that file's place, under its name, and name that one."
MANIFEST = json_kind("the manifest of an artifact", "schema", "artifact", "parts")


def manifest_path(artifact: Path) -> Path:
    """`out.json` beside `out.plan`."""
    return artifact.with_suffix(".json")


def find_manifest(path: Path) -> Path:
    """The manifest that is meant: itself, or the one beside an artifact."""
    return manifest_path(path) if path.suffix in ARTIFACTS else path


def open_manifest(path: Path, *, changed: bool = False) -> tuple[Path, dict[str, Any]]:
    """Where the manifest lies that is meant by a path, and what it holds: what is named is what is opened.

    Args:
        path: the manifest, or the artifact that it describes. A symbolic link is what it leads to, unless the files of
            the artifact lie, or are linked, beside it under their own names.
        changed: see `read_manifest`.

    Raises:
        ManifestError: see `read_manifest`; also where the manifest beside an artifact is of another one.
    """
    if path.is_symlink() and not _is_complete(path):
        path = Path(os.path.realpath(path))
    found = find_manifest(path)
    manifest = read_manifest(found, changed=changed)
    if found != path and path.name != manifest["artifact"]:
        raise ManifestError(
            f"'{found}' is the manifest of '{manifest['artifact']}', not of '{path.name}'",
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
            return (path.parent / manifest["parts"][0]["artifact"]).exists()
        return bool(path.name == manifest["artifact"])
    return False


def tool_versions() -> dict[str, str]:
    """Versions of the packages that shaped the artifact."""
    return {name: metadata.version(name) for name in PACKAGES}


@cache
def _validator() -> jsonschema.Draft202012Validator:
    """Of the schema; that the schema itself is one, a test checks once."""
    text = resources.files("export.artifact").joinpath("manifest.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


def dump_manifest(manifest: Mapping[str, Any]) -> str:
    """The manifest's text, with its own hash, checked against the schema first."""
    sealed = seal(manifest)
    _validator().validate(sealed)
    return json.dumps(sealed, indent=2) + "\n"


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the hash of itself, in place of the one that it may have: what `dump_manifest` writes."""
    return dict(manifest) | {OWN_HASH: manifest_sha256(manifest)}


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Whether it is what the hash in it was made of."""
    return bool(manifest[OWN_HASH] == manifest_sha256(manifest))


def manifest_sha256(manifest: Mapping[str, Any]) -> str:
    """Hex digest of all fields but the hash itself, as compact JSON in UTF-8 with sorted keys."""
    content = {key: value for key, value in manifest.items() if key != OWN_HASH}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(path: Path, *, changed: bool = False) -> dict[str, Any]:
    """A manifest from disk.

    Args:
        path: of the file.
        changed: also one that was changed after it was written, which its own hash tells.

    Raises:
        ManifestError: missing, not JSON, with a name twice, of another schema version, malformed, naming a file that
            does not lie beside it, or changed.
    """
    try:
        manifest = read_json(path, LONGEST, unique=True)
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
    version = manifest.get("schema") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ManifestError(
            f"the manifest '{path}' is of schema {version!r:.80}",
            f"This version reads schema {SCHEMA_VERSION}.",
            "Export again, or use the version that wrote it.",
        )
    errors = islice(_validator().iter_errors(manifest), MOST_ERRORS)
    wrong = jsonschema.exceptions.best_match(errors)
    if wrong is not None:
        raise ManifestError(f"the manifest '{path}' is malformed", f"At {_reason(wrong)}.", "Export again.") from wrong
    for part in manifest["parts"]:
        _check_profile(part, path)
    if not changed and not is_sealed(manifest):
        raise ManifestError(
            f"the manifest '{path}' was changed after it was written",
            "It is not what the hash in it was made of, so that answers may be others than those that were validated.",
            "Use the file that the export wrote, or export again.",
        )
    return dict(manifest)


def _reason(error: jsonschema.ValidationError) -> str:
    """What is wrong with a manifest, in words."""
    if error.validator_value == _validator().schema["$defs"]["name"]["pattern"]:
        return f"{error.json_path}: {error.instance!r:.80} is no bare file name, and files lie beside their manifest"
    return f"{error.json_path}: {error.message[:LONGEST_REASON]}"


def _whole(path: Path) -> str | None:
    """The artifact of `out.json`, if it lists the part that `out.encoder.json`, which does not exist, is asked of."""
    stem = path.stem.rpartition(".")[0]
    with suppress(ManifestError):
        manifest = read_manifest(path.with_name(f"{stem}.json")) if stem else None
        if manifest and any(Path(part["artifact"]).stem == path.stem for part in manifest["parts"]):
            return str(manifest["artifact"])
    return None


def _check_profile(part: Mapping[str, Any], path: Path) -> None:
    """What the schema cannot say: every input but the temperature has shapes of its rank."""
    varying = {
        entry["name"]: len(entry["shape"])
        for entry in part["inputs"]
        if any(isinstance(dim, str) for dim in entry["shape"])
    }
    profile = part["profile"]
    fits = profile.keys() == varying.keys() and bool(varying)
    if not fits or any(len(shape) != varying[name] for name in varying for shape in profile[name]):
        raise ManifestError(
            f"the manifest '{path}' is malformed", f"Part '{part['name']}': profile and inputs differ.", "Export again."
        )


def check_files(manifest: Mapping[str, Any], folder: Path, *, changed: bool = False) -> list[str]:
    """Refuse an artifact of which any file is missing or another than the manifest describes.

    Args:
        manifest: read from `folder`.
        folder: where its files lie.
        changed: take graphs, plans and weights that are another. A plugin library, which is code, is never taken.

    Returns:
        The names of files that are another; without `changed` there are none. Weights beside a graph may be missing.

    Raises:
        ManifestError: naming the file; also for parts that are not those of the task, or of several checkpoints.
    """
    names = [part["name"] for part in manifest["parts"]]
    if sorted(names) != sorted(PART_NAMES[manifest["task"]]):
        raise ManifestError(
            f"the manifest lists the parts {', '.join(names)}",
            f"A {manifest['task']} model has {', '.join(PART_NAMES[manifest['task']])}.",
            "Export again.",
        )
    checkpoint = manifest["checkpoint"]["sha256"]
    foreign = [part["name"] for part in manifest["parts"] if part["checkpoint_sha256"] != checkpoint]
    if foreign:
        raise ManifestError(
            f"the part '{foreign[0]}' was made from another checkpoint than the manifest's",
            "Parts of different models give answers, but wrong ones.",
            "Export again, all parts at once.",
        )
    found = []
    taken = set(_part_files(manifest)) if changed else set()
    for name, digest in dict.fromkeys(_named_files(manifest)):  # a file of two hashes fails one of them
        path = folder / name
        if name not in taken:
            _check_file(path, digest, manifest["artifact"])
            continue
        moved = name.endswith(".data") and not path.exists()  # a tool may have put weights into the graph
        if moved or _sha256_of(path, manifest["artifact"]) != digest:
            found.append(name)
    for part in manifest["parts"]:
        if Path(part["artifact"]).suffix == ".onnx":
            _check_locations(part, folder)
    return found


def _part_files(manifest: Mapping[str, Any]) -> list[str]:
    """Graphs or plans, and weights beside them."""
    files = []
    for part in manifest["parts"]:
        files.append(part["artifact"])
        if part["external_data"] is not None:
            files.append(part["external_data"]["file"])
    return files


def file_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of the files that an artifact consists of beside its manifest, by name."""
    return dict(_named_files(manifest))


def _named_files(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and sha256 of every file that an artifact consists of beside its manifest."""
    for part in manifest["parts"]:
        yield part["artifact"], part["sha256"]
        if part["external_data"] is not None:
            yield part["external_data"]["file"], part["external_data"]["sha256"]
    library = manifest["plugins"]["library"]
    if library is not None and not library["embedded"]:
        yield library["file"], library["sha256"]
    vocabulary = manifest["preprocessing"]["text"]["vocabulary"]
    if vocabulary is not None and vocabulary["file"] is not None:
        yield vocabulary["file"], vocabulary["sha256"]


def _check_locations(part: Mapping[str, Any], folder: Path) -> None:
    """Refuse a graph whose weights lie in another file than the one whose hash was checked."""
    known = set() if part["external_data"] is None else {part["external_data"]["file"]}
    path = folder / part["artifact"]
    foreign = sorted(external_locations(path) - known)
    if foreign:
        raise ManifestError(
            f"'{path}' takes weights from '{foreign[0]:.80}'",
            "Its manifest names no such file, so that nothing vouches for what is in it.",
            "Use the files of one export, or export again.",
        )


def check_artifact(
    manifest: Mapping[str, Any], artifact: Path, checkpoint: Path, *, changed: bool = False
) -> list[str]:
    """Refuse an artifact or checkpoint that the manifest does not describe.

    Args:
        manifest: the one beside `artifact`.
        artifact: what --engine named at the export; with several parts there is no file of that name.
        checkpoint: the .pt or .pth file.
        changed: see `check_files`.

    Returns:
        See `check_files`.

    Raises:
        ManifestError: a file is missing or its hash, or the checkpoint's, is another.
    """
    if artifact.name != manifest["artifact"] or (len(manifest["parts"]) == 1 and not artifact.is_file()):
        raise ManifestError(
            f"there is no artifact '{artifact}' of this manifest",
            "The file is missing or was renamed.",
            _TOGETHER,
        )
    found = check_files(manifest, artifact.parent, changed=changed)
    _check_file(checkpoint, manifest["checkpoint"]["sha256"], str(artifact))
    return found


def _check_file(path: Path, digest: str, artifact: str) -> None:
    if _sha256_of(path, artifact) != digest:
        raise _foreign(path, artifact, "Its sha256 is another.")


def _sha256_of(path: Path, artifact: str) -> str:
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:  # to hash it would take hours
            raise _foreign(path, artifact, f"It has {size:,} bytes.")
        return sha256(path)
    except OSError as error:
        raise _foreign(path, artifact, f"It cannot be read: {error.strerror}.") from error


def _foreign(path: Path, artifact: str, why: str) -> ManifestError:
    judged = path.suffix in (".onnx", ".plan", ".data")
    return ManifestError(
        f"'{path}' is not the file that the manifest of '{artifact}' describes",
        why,
        "Use the files of one export, or export again."
        + (" What a tool made of it is judged by python -m export validate --changed." if judged else ""),
    )


def tensor_infos(entries: list[dict[str, Any]]) -> list[TensorInfo]:
    """The inputs or outputs that a manifest part lists."""
    return [TensorInfo(entry["name"], entry["dtype"], tuple(entry["shape"])) for entry in entries]
