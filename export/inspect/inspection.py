"""What a file is, told without running anything of it: artifacts, manifests, ONNX files, plans, libraries, checkpoints.

Files may be foreign, cut short or wrong: whatever can be read of them is kept, and what is wrong is said beside it.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from export.artifact.fields import VOCABULARY, entries, find, named_files, objects
from export.artifact.files import MOST_BYTES
from export.artifact.manifest import PART_NAMES, SCHEMA_VERSION
from export.artifact.reader import LONGEST, manifest_path, read_manifest
from export.artifact.seal import is_sealed
from export.engine.plugin_library import PRODUCT, check_embedded, library_entry, read_library
from export.errors import ManifestError, PluginError
from export.inspect.compatibility import Machine, Verdict, has_code, onnx_verdict, plan_verdict
from export.inspect.onnx_file import OnnxFile, read_onnx
from madtp.checkpoint.format import LEGACY, check_file
from madtp.errors import CheckpointError, InputError, listing
from madtp.files.inputs import open_regular, read_text, sha256

VERIFIED = "verified"
CHANGED = "CHANGED after it was written: its own sha256 is another"
PLAN_SUFFIXES = {".plan", ".engine", ".trt"}
CHECKPOINT_SUFFIXES = {".pt", ".pth"}
MOST_PARTS = 8  # that are looked at; a model has three at most
NO_ARTIFACT = "not an artifact, nor a file of one"

# Not documented: what plans of TensorRT for RTX 1.7 begin with. Magic, layout, total bytes, version.
_PLAN_HEADER = struct.Struct("<8sQQ4B")
_PLAN_MAGIC, _PLAN_LAYOUT = b"vtrt\0\0\0\0", 2
_TENSORRT_MAGIC = b"ftrt\0\0\0\0"  # the version stands at the same place, where trtexec --getPlanVersionOnly reads it


@dataclass
class Inspection:
    """What was found out.

    Attributes:
        file: as given.
        kind: "artifact" (of a manifest), "manifest" (one that cannot be read), "onnx", "plan", "plugin library",
            "checkpoint" or "other".
        bytes: size of the file.
        machine: that it was inspected on.
        sha256: of the file; None for artifacts, whose files are listed with theirs.
        damage: what is wrong with it or with the files that belong to it; empty where nothing is.
        notes: what else is to be known.
        details: what plans, libraries and checkpoints say, name -> value.
        manifest: see `_Artifact.summary`.
        onnx: of a foreign ONNX file.
        verdict: whether it runs here; None for what is not run.
    """

    file: str
    kind: str
    bytes: int
    machine: Machine
    sha256: str | None = None
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, str] = field(default_factory=dict)
    manifest: dict[str, Any] | None = None
    onnx: OnnxFile | None = None
    verdict: Verdict | None = None


def inspect_file(path: Path, machine: Machine) -> Inspection:
    """Find out what `path` is, and whether `machine` runs it.

    Raises:
        InputError: the file cannot be read at all.
    """
    try:
        if not path.exists() and path.suffix in (".onnx", ".plan") and (whole := _whole_artifact(path)) is not None:
            path = whole
        if not path.is_file():
            why = (
                "It is a folder." if path.is_dir() else "It is no regular file." if path.exists() else "There is none."
            )
            raise InputError(f"cannot read '{path}'", why, "Name an artifact, its manifest, or another file.")
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"'{path}' is too large", f"It has {path.stat().st_size:,} bytes.", "Name an artifact.")
        with open_regular(path) as file:
            start = file.read(64)
        found = Inspection(str(path), "other", path.stat().st_size, machine)
        _fill(found, path, start)
    except OSError as error:
        raise InputError(
            f"cannot read '{path}'", f"{error.strerror or error}.", "Check the path and its permissions."
        ) from error
    return found


def _whole_artifact(path: Path) -> Path | None:
    """The manifest of an artifact of several parts, which is named as no file is: `out.json` of `out.onnx`."""
    try:
        content = _read_json(manifest_path(path))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest_path(path) if find(content, "artifact") == path.name else None


def _fill(found: Inspection, path: Path, start: bytes) -> None:
    if path.suffix == ".json":
        _inspect_json(found, path)
        return
    is_library = path.suffix == ".so" or start.startswith(b"\x7fELF")
    beside = None if is_library or path.suffix in CHECKPOINT_SUFFIXES else _manifest_of(path, found)
    if beside is not None:
        _inspect_artifact(found, *beside)
        return
    found.sha256 = sha256(path)
    if not found.bytes:
        found.damage.append("the file is empty")
        if path.suffix == ".onnx" or path.suffix in PLAN_SUFFIXES:
            found.verdict = Verdict(False, ("it is damaged",))
    elif is_library:
        _inspect_library(found, path)
    elif path.suffix == ".onnx":
        _inspect_onnx(found, path)
    elif path.suffix in PLAN_SUFFIXES or start.startswith((_PLAN_MAGIC, _TENSORRT_MAGIC)):
        _inspect_plan(found, start)
    elif path.suffix in CHECKPOINT_SUFFIXES:
        _inspect_checkpoint(found, path, start)
    else:
        found.notes.append(NO_ARTIFACT)


def _read_json(path: Path) -> Any:
    """Raises ValueError or RecursionError; numbers that JSON lacks become text, halves of surrogate pairs "?"."""

    def finite(text: str) -> float | str:
        return float(text) if math.isfinite(float(text)) else text

    content = json.loads(read_text(path, LONGEST), parse_float=finite, parse_constant=str)
    return json.loads(json.dumps(content, ensure_ascii=False).encode(errors="replace"))


def _manifest_of(path: Path, found: Inspection) -> tuple[Path, dict[str, Any]] | None:
    """The manifest beside `path` that names it: `out.json` of `out.plan`, `out.encoder.plan` or `out.onnx.data`."""
    stem = path.name
    while "." in stem.lstrip("."):
        stem = stem.rpartition(".")[0]
        beside = path.with_name(f"{stem}.json")
        if not beside.is_file():
            continue
        try:
            content = _read_json(beside)
        except (OSError, ValueError, RecursionError) as error:
            found.damage.append(f"the manifest beside it, '{beside.name}', cannot be read: {_first_line(error)}")
            continue
        if path.name in named_files(content):
            return beside, content
        if _looks_like_manifest(content):
            of = find(content, "artifact")
            found.notes.append(f"'{beside.name}' beside it is the manifest of '{of}' and does not name this file")
    return None


_PAIR = ("pair", "temperature", "status", "requests", "explained")
_LIBRARY = ("file", "embedded", "version", "sha256", "source_sha256", "sm")


def _looks_like_manifest(content: Any) -> bool:
    return isinstance(content, dict) and "schema" in content and ("parts" in content or "artifact" in content)


def _inspect_json(found: Inspection, path: Path) -> None:
    try:
        content = _read_json(path)
    except (ValueError, RecursionError) as error:
        found.kind, found.sha256 = "manifest", sha256(path)
        found.damage.append(f"it is no complete JSON: {_first_line(error)}")
        return
    if _looks_like_manifest(content):
        _inspect_artifact(found, path, content)
    else:
        found.sha256 = sha256(path)
        found.notes.append(f"{NO_ARTIFACT}: JSON, and no manifest")


def _inspect_artifact(found: Inspection, path: Path, content: dict[str, Any]) -> None:
    found.kind = "artifact"
    schema = content.get("schema")
    valid = True
    state: str | None = VERIFIED
    try:
        if not is_sealed(read_manifest(path, changed=True)):
            state = CHANGED
            found.damage.append(f"'{path.name}': {CHANGED}")
    except ManifestError as error:
        state = None
        valid = False
        said = f"{error.what}: {_first_line(error.why)}"
        other_version = type(schema) is int and schema != SCHEMA_VERSION
        (found.notes if other_version else found.damage).append(said)
    artifact = _Artifact(content, path, found)
    found.manifest = {"file": str(path), "schema": schema, "valid": valid, "state": state, **artifact.summary()}
    found.verdict = artifact.verdict()


class _Artifact:
    """A manifest, well-formed or not, and the files beside it."""

    def __init__(self, content: dict[str, Any], path: Path, found: Inspection) -> None:
        self._content, self._folder, self._found = content, path.parent, found
        self._onnx: list[OnnxFile] = []
        self.library: Any = None

    def summary(self) -> dict[str, Any]:
        """Everything worth showing; what the manifest lacks is None. Files come with their `state`."""
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
            "created",
            "task",
            "artifact",
            "checkpoint",
            "temperature",
            "layout",
            "batching",
            "precision",
            "backend",
        )
        return {
            **{key: content.get(key) for key in keys},
            "plugins": find(content, "plugins", "mode"),
            "library": library,
            "vocabulary": vocabulary,
            "parts": parts,
            "validation": self._validation(),
        }

    def _library(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What the library beside the manifest says of itself; what it does not say is None."""
        shown: dict[str, Any] = dict.fromkeys(_LIBRARY) | {"file": entry.get("file"), "embedded": False}
        shown["state"] = self._state(entry)
        path = _inside(self._folder, entry.get("file"))
        if path is None or not path.is_file():
            return shown
        try:
            shown |= library_entry(read_library(path), path.name)
        except PluginError as error:
            self._found.damage.append(f"'{path.name}' is no plugin library of this project: {_first_line(error.why)}")
            return shown
        other = [key for key in ("version", "source_sha256", "sm") if shown[key] != entry.get(key)]
        if other:
            self._found.damage.append(f"'{path.name}': the manifest gives it another {' and '.join(other)}")
        return shown

    def _embedded(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What the manifest says of a library that its plan carries; whether that has such a one."""
        shown = {key: entry.get(key) for key in _LIBRARY} | {"file": None, "state": "in the plan, by the manifest"}
        for part in islice(objects(self._content.get("parts")), MOST_PARTS):
            path = _inside(self._folder, part.get("artifact"))
            if part.get("plugin_layers") and path is not None and path.is_file():
                try:
                    check_embedded(path, entry)
                    shown["state"] = "in the plan"
                except (PluginError, KeyError, TypeError) as error:
                    self._found.damage.append(_first_line(error))
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
                self._found.damage.append(_first_line(error))
        keys = ("name", "artifact", "sha256", "bytes", "inputs", "outputs", "profile", "custom_nodes")
        more = ("layers", "plugin_layers", "tokens")
        return {
            **{key: part.get(key) for key in (*keys, *more)},
            "bytes": path.stat().st_size if path is not None and path.is_file() else None,
            "state": state,
            "external_data": external,
            "opsets": None if file is None else file.opsets,
            "ir_version": None if file is None else file.ir_version,
            "functions": None if file is None else file.functions,
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
                state = VERIFIED if same else "DIFFERENT: its sha256 is another"
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

    def verdict(self) -> Verdict:
        """Whether it runs here; after `summary`."""
        name, version = find(self._content, "backend", "name"), find(self._content, "backend", "version")
        damage = ["files or manifest are damaged"] if self._found.damage else []
        machine = self._found.machine
        if name == "onnxruntime" and isinstance(version, str):
            oldest = find(self._content, "backend", "oldest")
            return onnx_verdict(self._onnx, version, damage, machine, oldest if isinstance(oldest, str) else None)
        if name not in ("tensorrt", "tensorrt-rtx") or not isinstance(version, str):
            return Verdict(None, ("the manifest names no backend that this version knows",))
        library = self.library
        sm = None
        if isinstance(library, dict):
            listed, made = library.get("sm"), library.get("version")
            if made != metadata.version(PRODUCT):
                damage.append(f"its plugin library is of version {made} and this is {metadata.version(PRODUCT)}")
            sm = [number for number in listed if isinstance(number, int)] if isinstance(listed, list) else []
        return plan_verdict(name, version, sm, damage, machine)


def _inspect_library(found: Inspection, path: Path) -> None:
    try:
        library = read_library(path)
    except PluginError as error:
        found.notes.append(f"a shared library, not of this project: {error.why}")
        return
    found.kind = "plugin library"
    found.details = {
        "version": library.version,
        "source sha256": library.source_sha256,
        "compute capability": capabilities(library.sm),
    }
    gpus = found.machine.gpus
    if gpus and not any(has_code(library.sm, gpu.capability) for gpu in gpus):
        found.notes.append("it has no code for the GPUs of this machine")


def capabilities(sm: Any) -> str:
    """[75, 90] as "7.5, 9.0"."""
    numbers = [number for number in sm if isinstance(number, int)] if isinstance(sm, list | tuple) else []
    return ", ".join(f"{number // 10}.{number % 10}" for number in numbers)


def _inspect_onnx(found: Inspection, path: Path) -> None:
    found.kind = "onnx"
    _note_lone(found, f"no manifest beside it ('{manifest_path(path).name}')")
    try:
        found.onnx = read_onnx(path)
    except ManifestError as error:
        found.damage.append(_first_line(error) + f" ({error.why})")
        found.verdict = Verdict(False, ("it is damaged",))
        return
    damage = [f"'{name}', which holds weights: {state}" for name, state in found.onnx.external.items()]
    wrong = [text for text in damage if not text.endswith(": found")]
    found.damage.extend(wrong)
    found.verdict = onnx_verdict([found.onnx], None, ["weights are missing"] if wrong else [], found.machine)


def _inspect_plan(found: Inspection, start: bytes) -> None:
    found.kind = "plan"
    _note_lone(found, "no manifest beside it: what it takes, gives and needs is not known")
    unknown = ["no manifest beside it"]
    against = [] if found.machine.gpus else ["there is no GPU"]
    header = start[: _PLAN_HEADER.size].ljust(_PLAN_HEADER.size, b"\0")
    magic, layout, size, *numbers = _PLAN_HEADER.unpack(header)
    version = ".".join(map(str, numbers))
    if magic == _PLAN_MAGIC and layout == _PLAN_LAYOUT:
        found.details["header"] = f"as of TensorRT for RTX, version {version} (seen in its plans, not documented)"
        if size != found.bytes:
            found.damage.append(f"its header gives {size} bytes and the file has {found.bytes}")
        damage = ["it is damaged"] if size != found.bytes else []
        against = list(plan_verdict("tensorrt-rtx", version, None, damage, found.machine).because)
    elif magic == _TENSORRT_MAGIC and any(numbers):
        found.details["header"] = f"of TensorRT, version {version}"
        here = found.machine.packages["tensorrt"]
        if here is None:
            against.append("tensorrt is not installed")
        else:
            unknown.append(f"tensorrt {here} is installed, and a plan needs its own version unless built compatible")
    else:
        found.details["header"] = f"not known; it begins with {start[:8].hex(' ')}"
    # That nothing speaks against it is not enough: it may need plugins, and a GPU like the one it was built on.
    found.verdict = Verdict(False, tuple(against)) if against else Verdict(None, tuple(unknown))


def _note_lone(found: Inspection, note: str) -> None:
    """Say that no manifest names the file, unless one could not be read, which is damage and said as such."""
    if not found.damage:
        found.notes.append(note)


def _inspect_checkpoint(found: Inspection, path: Path, start: bytes) -> None:
    found.kind = "checkpoint"
    try:
        others = check_file(path)
    except CheckpointError as error:
        found.damage.append(f"{error.why[:1].lower()}{_first_line(error.why)[1:]}")
        return
    found.details["format"] = "of torch.save before 1.6" if start.startswith(LEGACY) else "of torch.save"
    if others:
        found.notes.append(f"it holds more than tensors, and is not loaded as it is: {listing(others)}")
    else:
        hint = f"python -m export --ckpt {path} --engine out.plan"
        found.notes.append(f"a checkpoint, not an artifact; export it: {hint}")


def _inside(folder: Path, name: Any) -> Path | None:
    """The file of that name in `folder`; None for what is no plain file name, which a manifest never has."""
    plain = isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
    return folder / name if plain else None


def _first_line(text: object) -> str:
    return (str(text).strip().splitlines() or [""])[0][:200]
