"""Inspecting a file without running anything in it: artifacts, ONNX files, plans, plugin libraries, checkpoints.

Files may be foreign, truncated or damaged: what can be read is shown, and what is wrong is listed beside it.
"""

from pathlib import Path

from export.artifact.files import MOST_BYTES
from export.artifact.reader import manifest_path
from export.errors import ManifestError
from export.inspect.artifact import NO_ARTIFACT, inspect_artifact, inspect_json, manifest_beside, whole_artifact
from export.inspect.checkpoint import CHECKPOINT_SUFFIXES, inspect_checkpoint
from export.inspect.compatibility import Compatibility, Machine, onnx_compatibility
from export.inspect.inspection import Inspection, first_line, note_lone
from export.inspect.library import inspect_library
from export.inspect.onnx_file import read_onnx
from export.inspect.plan import PLAN_SUFFIXES, RTX_MAGIC, TENSORRT_MAGIC, inspect_plan
from madtp.errors import InputError
from madtp.files.inputs import open_regular, sha256


def inspect_file(path: Path, machine: Machine) -> Inspection:
    """Find out what `path` is, and whether `machine` runs it.

    Raises:
        InputError: the file cannot be read at all.
    """
    try:
        if not path.exists() and path.suffix in (".onnx", ".plan") and (whole := whole_artifact(path)) is not None:
            path = whole
        if not path.is_file():
            why = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
            raise InputError(f"cannot read '{path}'", f"It {why}.", "Name an artifact, its manifest, or another file.")
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


def _fill(found: Inspection, path: Path, start: bytes) -> None:
    if path.suffix == ".json":
        inspect_json(found, path)
        return
    is_library = path.suffix == ".so" or start.startswith(b"\x7fELF")
    beside = None if is_library or path.suffix in CHECKPOINT_SUFFIXES else manifest_beside(path, found)
    if beside is not None:
        inspect_artifact(found, *beside)
        return
    found.sha256 = sha256(path)
    if not found.bytes:
        found.damage.append("the file is empty")
        if path.suffix == ".onnx" or path.suffix in PLAN_SUFFIXES:
            found.verdict = Compatibility(False, ("it is damaged",))
    elif is_library:
        inspect_library(found, path)
    elif path.suffix == ".onnx":
        _inspect_onnx(found, path)
    elif path.suffix in PLAN_SUFFIXES or start.startswith((RTX_MAGIC, TENSORRT_MAGIC)):
        inspect_plan(found, start)
    elif path.suffix in CHECKPOINT_SUFFIXES:
        inspect_checkpoint(found, path, start)
    else:
        found.notes.append(NO_ARTIFACT)


def _inspect_onnx(found: Inspection, path: Path) -> None:
    found.kind = "onnx"
    note_lone(found, f"no manifest beside it ('{manifest_path(path).name}')")
    try:
        found.onnx = read_onnx(path)
    except ManifestError as error:
        found.damage.append(first_line(error) + f" ({error.why})")
        found.verdict = Compatibility(False, ("it is damaged",))
        return
    damage = [f"'{name}', which holds weights: {state}" for name, state in found.onnx.external.items()]
    wrong = [text for text in damage if not text.endswith(": found")]
    found.damage.extend(wrong)
    found.verdict = onnx_compatibility([found.onnx], None, ["weights are missing"] if wrong else [], found.machine)
