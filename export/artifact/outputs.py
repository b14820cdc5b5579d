"""What an export may write, and which files an artifact consists of, so that no command writes over one of them."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from export.artifact.fields import named_files
from export.artifact.reader import manifest_path, open_manifest
from export.errors import ManifestError
from madtp.errors import OutputError
from madtp.files.inputs import read_json
from madtp.files.outputs import check_separate, same_file
from madtp.files.staging import check_unprotected, check_writable


def files_of(artifact: Path | None) -> list[Path]:
    """What a command that is given an artifact reads: it, its manifest, and all files that this lists."""
    if artifact is None:
        return []
    files = [artifact]
    with suppress(ManifestError):  # said where the manifest is needed
        path, manifest = open_manifest(artifact)
        files += [path, *(path.parent / name for name in (manifest.artifact, *dict(manifest.named_files())))]
    return files


def check_export(engine: Path, names: Iterable[str], inputs: Iterable[Path | None]) -> None:
    """Refuse an export that would take the place of anything but an earlier one of the same name.

    An earlier export is told by its manifest, of whatever schema: it may be replaced if it is of an artifact of this
    name, and with it the files that it lists. An empty file may be replaced too.

    Args:
        engine: what --engine names.
        names: of the files that are written beside the manifest.

    Raises:
        OutputError: a file cannot be written, or is an input, another artifact's, or somebody else's.
    """
    manifest = manifest_path(engine)
    given = [path for path in inputs if path is not None]
    written = [engine.with_name(name) for name in dict.fromkeys([engine.name, *names])]
    for path in (*written, manifest):
        check_writable(path)
        check_separate(path, given)
    _check_links(manifest, written)
    owned = owned_files(engine)
    for path in written:
        if _holds_something(path) and path.name not in owned:
            raise OutputError(
                f"'{path}' is there already and is not of an earlier export to '{engine.name}'",
                f"There is no manifest '{manifest}' that lists it, and the export would replace it.",
                "Give --engine another name or folder, or remove that file first.",
            )
    for path in (*written, manifest):
        check_unprotected(path)


def _check_links(manifest: Path, written: Iterable[Path]) -> None:
    """Refuse symbolic links through which half of an artifact elsewhere would be replaced."""
    folder, home = manifest.parent.resolve(), manifest.resolve()
    for path in written:
        place = path.resolve()
        others = {place.with_name(manifest.name), manifest_path(place)} if place.parent != folder else set()
        foreign = [other for other in others if other.exists() and other.resolve() != home]
        if foreign or (home.parent != folder and place.parent != home.parent):
            raise OutputError(
                f"'{path}' and the manifest '{manifest}' lead to different places",
                f"They are written to '{place}' and '{home}', and an artifact that lies there would be damaged.",
                "Remove the symbolic links, or give --engine another folder.",
            )


def owned_files(engine: Path) -> set[str]:
    """Names of the files of an earlier export to the same name, as its manifest lists them; none where there was none.

    Raises:
        OutputError: at the manifest's place lies another artifact's manifest, or something that is none.
    """
    path = manifest_path(engine)
    if not _holds_something(path):
        return set()
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError):
        content = None
    if not _is_manifest(content):
        raise OutputError(
            f"'{path}' is there already and is not the manifest of an export",
            f"The export writes its manifest there, beside '{engine.name}'.",
            "Give --engine another name or folder, or remove that file first.",
        )
    if content["artifact"] != engine.name:
        raise OutputError(
            f"'{path}' is the manifest of '{content['artifact']}'",
            f"That of '{engine.name}' has the same name, so that only one of both can lie here.",
            "Give --engine another stem or folder, or remove that artifact and its manifest first.",
        )
    # Files of an export begin with its stem: nothing else is touched, whatever a manifest says.
    return {name for name in named_files(content) if name.startswith(f"{engine.stem}.") and "/" not in name}


def stale_files(engine: Path, names: Iterable[str], inputs: Iterable[Path | None]) -> set[str]:
    """Names of the files of an earlier export that a new one deletes: it writes no such file, and read none of them.

    Raises:
        OutputError: see `owned_files`.
    """
    given = [path for path in inputs if path is not None]
    old = owned_files(engine) - set(names)
    return {name for name in old if not any(same_file(engine.with_name(name), path) for path in given)}


def _is_manifest(content: Any) -> bool:
    """Of whatever schema."""
    if not isinstance(content, dict) or not isinstance(content.get("artifact"), str):
        return False
    return isinstance(content.get("schema"), int) and isinstance(content.get("parts"), list)


def _holds_something(path: Path) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0
