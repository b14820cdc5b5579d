"""Artifacts: a manifest, well-formed or not, and the files beside it. Only this module reads manifests here."""

from collections.abc import Mapping
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from export.artifact.fields import VOCABULARY, entries, find, named_files, objects, read_fields
from export.artifact.files import MOST_BYTES
from export.artifact.manifest import PART_NAMES, SCHEMA_VERSION, LibraryEntry
from export.artifact.reader import UNSEALED_VERSION, manifest_path, read_manifest
from export.artifact.schema import decode, encode
from export.artifact.seal import is_sealed
from export.engine.built_library import PRODUCT
from export.engine.plugin_library import check_embedded, read_library
from export.errors import ManifestError, PluginError
from export.inspect.compatibility import Compatibility, onnx_compatibility, plan_compatibility
from export.inspect.inspection import Inspection, first_line
from export.inspect.onnx_file import OnnxFile, read_onnx
from madtp.files.inputs import sha256

VERIFIED = "verified"
CHANGED = "CHANGED after it was written: its own sha256 does not match"
UNSEALED = "has no hash of its own, so that changes cannot be detected"
MOST_PARTS = 8  # that are read; a model has at most three
MOST_BUCKETS = 64  # of a part
NO_ARTIFACT = "neither an artifact nor a file of one"
_PAIR = ("pair", "temperature", "status", "requests", "explained")
_LIBRARY = ("file", "embedded", "version", "sha256", "source_sha256", "sm")


def whole_artifact(path: Path) -> Path | None:
    """The manifest of an artifact of several parts, which is named as no file is: `out.json` of `out.onnx`."""
    try:
        content = read_fields(manifest_path(path))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest_path(path) if find(content, "artifact") == path.name else None


def manifest_beside(path: Path, found: Inspection) -> tuple[Path, dict[str, Any]] | None:
    """The manifest beside `path` that names it: `out.json` of `out.plan`, `out.encoder.plan` or `out.onnx.data`."""
    stem = path.name
    while "." in stem.lstrip("."):
        stem = stem.rpartition(".")[0]
        beside = path.with_name(f"{stem}.json")
        if not beside.is_file():
            continue
        try:
            content = read_fields(beside)
        except (OSError, ValueError, RecursionError) as error:
            found.damage.append(f"the manifest beside it, '{beside.name}', cannot be read: {first_line(error)}")
            continue
        if path.name in named_files(content):
            return beside, content
        if _looks_like_manifest(content):
            artifact = find(content, "artifact")
            found.notes.append(f"'{beside.name}' beside it is the manifest of '{artifact}' and does not name this file")
    return None


def _looks_like_manifest(content: Any) -> bool:
    return isinstance(content, dict) and "schema" in content and ("parts" in content or "artifact" in content)


def inspect_json(found: Inspection, path: Path) -> None:
    try:
        content = read_fields(path)
    except (ValueError, RecursionError) as error:
        found.kind, found.sha256 = "manifest", sha256(path)
        found.damage.append(f"it is not complete JSON: {first_line(error)}")
        return
    if _looks_like_manifest(content):
        inspect_artifact(found, path, content)
    else:
        found.sha256 = sha256(path)
        found.notes.append(f"{NO_ARTIFACT}: JSON, but not a manifest")


def inspect_artifact(found: Inspection, path: Path, content: dict[str, Any]) -> None:
    found.kind = "artifact"
    schema = content.get("schema")
    state: str | None = VERIFIED
    try:
        sealed = is_sealed(read_manifest(path, changed=True))
        if schema == UNSEALED_VERSION:
            state = UNSEALED
        elif not sealed:
            state = CHANGED
            found.damage.append(f"'{path.name}': {CHANGED}")
    except ManifestError as error:
        state = None
        other_version = type(schema) is int and schema != SCHEMA_VERSION
        (found.notes if other_version else found.damage).append(f"{error.what}: {first_line(error.why)}")
    artifact = _Artifact(content, path, found)
    found.manifest = {
        "file": str(path),
        "schema": schema,
        "valid": state is not None,
        "state": state,
        **artifact.summary(),
    }
    found.verdict = artifact.verdict()


class _Artifact:
    """A manifest, well-formed or not, and the files beside it."""

    def __init__(self, content: dict[str, Any], path: Path, found: Inspection) -> None:
        self._content, self._folder, self._found = content, path.parent, found
        self._onnx: list[OnnxFile] = []
        self.library: Any = None

    def summary(self) -> dict[str, Any]:
        """Everything that is shown; what the manifest lacks is None. Files have a `state`."""
        content = self._content
        parts = [self._part(part) for part in islice(objects(content.get("parts")), MOST_PARTS)]
        self._check_parts([part["name"] for part in parts])
        library = find(content, "plugins", "library")
        if isinstance(library, dict):
            library = self._embedded(library) if library.get("embedded") is True else self._library(library)
        self.library = library
        vocabulary = find(content, *VOCABULARY)
        if isinstance(vocabulary, dict):
            carried = vocabulary.get("file") is None
            state = "in the tokenizer's package" if carried else self._state(vocabulary)
            vocabulary = {"file": vocabulary.get("file"), "sha256": vocabulary.get("sha256"), "state": state}
        keys = (
            *("created", "task", "artifact", "checkpoint", "temperature", "keep_margin"),
            *("layout", "batching", "precision", "backend"),
        )
        return {
            **{key: content.get(key) for key in keys},
            "plugins": find(content, "plugins", "mode"),
            "library": library,
            "vocabulary": vocabulary,
            "parts": parts,
            "quantization": self._quantization(),
            "capacities": content.get("capacities"),
            "validation": self._validation(),
        }

    def _quantization(self) -> dict[str, Any] | None:
        found = self._content.get("quantization")
        if not isinstance(found, dict):
            return None
        keys = ("mode", "why", "weights", "activations", "smoothed_at", "kept_by", "calibration")
        return {key: found.get(key) for key in keys} | {"kept": entries(found.get("kept"))}

    def _library(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What the library beside the manifest records; what it does not record is None."""
        shown: dict[str, Any] = dict.fromkeys(_LIBRARY) | {"file": entry.get("file"), "embedded": False}
        shown["state"] = self._state(entry)
        path = _inside(self._folder, entry.get("file"))
        if path is None or not path.is_file():
            return shown
        try:
            shown |= encode(read_library(path).entry(path.name))
        except PluginError as error:
            self._found.damage.append(f"'{path.name}' is not a plugin library of this project: {first_line(error.why)}")
            return shown
        other = [key for key in ("version", "source_sha256", "sm") if shown[key] != entry.get(key)]
        if other:
            self._found.damage.append(f"'{path.name}': the manifest records a different {' and '.join(other)}")
        return shown

    def _embedded(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest records of an embedded library, and whether the plan embeds it."""
        shown = {key: entry.get(key) for key in _LIBRARY} | {
            "file": None,
            "state": "embedded in the plan, according to the manifest",
        }
        for part in islice(objects(self._content.get("parts")), MOST_PARTS):
            path = _inside(self._folder, part.get("artifact"))
            if part.get("plugin_layers") and path is not None and path.is_file():
                try:
                    check_embedded(path, decode(LibraryEntry, entry))
                    shown["state"] = "embedded in the plan"
                except (PluginError, KeyError, TypeError) as error:
                    self._found.damage.append(first_line(error))
        return shown

    def _part(self, part: dict[str, Any]) -> dict[str, Any]:
        digest, checkpoint = part.get("checkpoint_sha256"), find(self._content, "checkpoint", "sha256")
        if digest != checkpoint and digest is not None:
            self._found.damage.append(f"the part '{part.get('name')}' was made from another checkpoint")
        named = {"file": part.get("artifact"), "sha256": part.get("sha256"), "bytes": part.get("bytes")}
        state = self._state(named)
        external = part.get("external_data")
        if isinstance(external, dict):
            external = {**external, "state": self._state(external)}
        path = _inside(self._folder, part.get("artifact"))
        file = None
        if path is not None and path.suffix == ".onnx" and path.is_file():
            try:
                file = read_onnx(path)
                self._onnx.append(file)
                foreign = file.external.keys() - {external.get("file") if isinstance(external, dict) else None}
                self._found.damage.extend(f"'{path.name}' takes weights from '{name}'" for name in sorted(foreign))
            except (ManifestError, OSError) as error:
                self._found.damage.append(first_line(error))
        keys = ("name", "artifact", "sha256", "bytes", "inputs", "outputs", "profile", "custom_nodes")
        more = ("layers", "plugin_layers", "tokens", "float32_nodes")
        return {
            **{key: part.get(key) for key in (*keys, *more)},
            "bytes": path.stat().st_size if path is not None and path.is_file() else None,
            "state": state,
            "external_data": external,
            "opsets": None if file is None else file.opsets,
            "ir_version": None if file is None else file.ir_version,
            "functions": None if file is None else file.functions,
            "buckets": [self._bucket(bucket) for bucket in islice(objects(part.get("buckets")), MOST_BUCKETS)],
        }

    def _bucket(self, bucket: dict[str, Any]) -> dict[str, Any]:
        """An engine with less room; its graph is checked like its part's."""
        external = bucket.get("external_data")
        if isinstance(external, dict):
            external = {**external, "state": self._state(external)}
        path = _inside(self._folder, bucket.get("artifact"))
        if path is not None and path.suffix == ".onnx" and path.is_file():
            try:
                known = {external.get("file") if isinstance(external, dict) else None}
                foreign = read_onnx(path).external.keys() - known
                self._found.damage.extend(f"'{path.name}' takes weights from '{name}'" for name in sorted(foreign))
            except (ManifestError, OSError) as error:
                self._found.damage.append(first_line(error))
        named = {"file": bucket.get("artifact"), "sha256": bucket.get("sha256"), "bytes": bucket.get("bytes")}
        keys = ("batch", "rows", "predicted", "predicted_most", "artifact", "sha256")
        return {
            **{key: bucket.get(key) for key in keys},
            "bytes": path.stat().st_size if path is not None and path.is_file() else None,
            "state": self._state(named),
        }

    def _check_parts(self, names: list[Any]) -> None:
        task = self._content.get("task")
        wanted = PART_NAMES.get(task) if isinstance(task, str) else None
        if wanted is not None and sorted(map(str, names)) != sorted(wanted):
            listed = ", ".join(map(str, names)) or "none"
            self._found.damage.append(f"its parts are {listed}; a {task} model has {', '.join(wanted)}")

    def _state(self, entry: Mapping[str, Any]) -> str:
        """Whether the file of an entry {"file", "sha256", perhaps "bytes"} is there and the same; damage is noted."""
        path = _inside(self._folder, entry.get("file"))
        if path is None:
            state = "not a name of a file beside the manifest"
        else:
            try:
                size, expected = path.stat().st_size, entry.get("bytes")
                same = size <= MOST_BYTES and sha256(path) == entry.get("sha256")
                state = VERIFIED if same else "DIFFERENT: its sha256 does not match"
                if state != VERIFIED and expected is not None and size != expected:
                    state += f", and it has {size:,} bytes"
            except FileNotFoundError:
                state = "MISSING"
            except OSError as error:
                state = f"cannot be read: {error.strerror}"
        if state != VERIFIED:
            self._found.damage.append(f"'{entry.get('file')}': {state}")
        return state

    def _validation(self) -> dict[str, Any] | None:
        validation = self._content.get("validation")
        if not isinstance(validation, dict):
            return None
        keys = ("temperature", "requests", "worst", "worst_output", "tolerance", "decisions_equal", "explained")
        parity = [{key: entry.get(key) for key in keys} for entry in objects(validation.get("parity"))]
        later = validation.get("verdict")
        verdict = None
        if isinstance(later, dict):
            verdict = {key: later.get(key) for key in ("created", "status", "bisected")} | {
                "samples": find(later, "samples", "origin"),
                "pairs": [{key: pair.get(key) for key in _PAIR} for pair in objects(later.get("pairs"))],
                "failures": [why for why in entries(later.get("failures")) if isinstance(why, str)],
            }
        kept = {key: validation.get(key) for key in ("artifact", "validated", "samples", "gflops")}
        return kept | {"parity": parity, "verdict": verdict}

    def verdict(self) -> Compatibility:
        """Whether the artifact runs here. Call `summary` first."""
        name, version = find(self._content, "backend", "name"), find(self._content, "backend", "version")
        damage = ["files or manifest are damaged"] if self._found.damage else []
        machine = self._found.machine
        if name == "onnxruntime" and isinstance(version, str):
            oldest = find(self._content, "backend", "oldest")
            return onnx_compatibility(self._onnx, version, damage, machine, oldest if isinstance(oldest, str) else None)
        if name not in ("tensorrt", "tensorrt-rtx") or not isinstance(version, str):
            return Compatibility(None, ("the manifest names no backend that this version knows",))
        library = self.library
        sm = None
        if isinstance(library, dict):
            listed, made = library.get("sm"), library.get("version")
            if made != metadata.version(PRODUCT):
                damage.append(f"its plugin library has version {made}, and this package {metadata.version(PRODUCT)}")
            sm = [number for number in listed if isinstance(number, int)] if isinstance(listed, list) else []
        precision = str(self._content.get("precision"))
        return plan_compatibility(name, version, sm, damage, machine, precision=precision)


def _inside(folder: Path, name: Any) -> Path | None:
    """The file of that name in `folder`; None for what is not a plain file name, which a manifest never has."""
    plain = isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
    return folder / name if plain else None
