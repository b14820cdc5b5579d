"""The files of an artifact, held to the hashes in its manifest."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from export.artifact.manifest import PART_NAMES, TensorInfo
from export.artifact.onnx_file import external_locations
from export.artifact.reader import TOGETHER
from export.errors import ManifestError
from madtp.files.inputs import sha256

MOST_BYTES = 2**38  # of a file of an artifact


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
            TOGETHER,
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
