"""The files of an artifact, held to the hashes in its manifest."""

from pathlib import Path

from export.artifact.manifest import PART_NAMES, BucketEntry, Manifest, Part
from export.artifact.onnx_file import external_locations
from export.errors import ManifestError
from madtp.files.inputs import sha256

MOST_BYTES = 2**38  # of a file of an artifact


def check_files(manifest: Manifest, folder: Path, *, changed: bool = False) -> list[str]:
    """Refuse an artifact of which any file is missing or another than the manifest describes.

    Args:
        changed: take graphs, plans and weights that are another. A plugin library, which is code, is never taken.

    Returns:
        The names of files that are another; without `changed` there are none. Weights beside a graph may be missing.

    Raises:
        ManifestError: naming the file; also for parts that are not those of the task, or of several checkpoints.
    """
    names = [part.name for part in manifest.parts]
    if sorted(names) != sorted(PART_NAMES[manifest.task]):
        raise ManifestError(
            f"the manifest lists the parts {', '.join(names)}",
            f"A {manifest.task} model has {', '.join(PART_NAMES[manifest.task])}.",
            "Export again.",
        )
    foreign = [part.name for part in manifest.parts if part.checkpoint_sha256 != manifest.checkpoint.sha256]
    if foreign:
        raise ManifestError(
            f"the part '{foreign[0]}' was made from another checkpoint than the manifest's",
            "Parts of different models give answers, but wrong ones.",
            "Export again, all parts at once.",
        )
    found = []
    taken = {name for part in manifest.parts for name, _ in part.named_files()} if changed else set()
    for name, digest in dict.fromkeys(manifest.named_files()):  # a file of two hashes fails one of them
        path = folder / name
        if name not in taken:
            check_file(path, digest, manifest.artifact)
            continue
        moved = name.endswith(".data") and not path.exists()  # a tool may have put weights into the graph
        if moved or _sha256_of(path, manifest.artifact) != digest:
            found.append(name)
    for part in manifest.parts:
        if not part.is_plan:
            for graph in part.engines:
                _check_locations(graph, folder)
    return found


def _check_locations(part: Part | BucketEntry, folder: Path) -> None:
    """Refuse a graph whose weights lie in another file than the one whose hash was checked."""
    known = set() if part.external_data is None else {part.external_data.file}
    path = folder / part.artifact
    foreign = sorted(external_locations(path) - known)
    if foreign:
        raise ManifestError(
            f"'{path}' takes weights from '{foreign[0]:.80}'",
            "Its manifest names no such file, so that nothing vouches for what is in it.",
            "Use the files of one export, or export again.",
        )


def check_file(path: Path, digest: str, artifact: str) -> None:
    """Refuse a file that is missing or has another sha256; `artifact` is for the message."""
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
