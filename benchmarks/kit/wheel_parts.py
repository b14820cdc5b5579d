"""A wheel that is larger than what may be carried at once: parts in folders of their own, joined where it is installed.

Of `gpu-kit` they are `gpu-kit-onnxruntime-1`, `-2`, ... beside it. Uses the standard library only.
"""

import hashlib
import json
from pathlib import Path

ABOUT, CONTENT = "part.json", "content"
MOST_BYTES = 59_000_000  # of a part


class MissingPartsError(Exception):
    """The parts are not all there, or not of one wheel; the message says which."""


def part_folder(kit: Path, number: int) -> Path:
    """The folder of a part, counted from 1, beside the kit."""
    return kit.with_name(f"{kit.name}-onnxruntime-{number}")


def split_wheel(wheel: Path, kit: Path) -> list[Path]:
    """Write the parts of `wheel` beside the kit, over earlier ones; return their folders.

    Raises:
        OSError: a folder cannot be written.
    """
    content = wheel.read_bytes()
    pieces = [content[start : start + MOST_BYTES] for start in range(0, len(content), MOST_BYTES)]
    about = {"wheel": wheel.name, "sha256": hashlib.sha256(content).hexdigest(), "parts": len(pieces)}
    folders = [part_folder(kit, number) for number in range(1, len(pieces) + 1)]
    for number, (folder, piece) in enumerate(zip(folders, pieces, strict=True), start=1):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONTENT).write_bytes(piece)
        (folder / ABOUT).write_text(json.dumps({**about, "part": number}) + "\n", encoding="utf-8")
    return folders


def join_wheel(kit: Path, target: Path) -> Path:
    """Join the parts beside the kit into a wheel in the folder `target`.

    Raises:
        MissingPartsError: some are missing, or they are not of one wheel.
        OSError: the wheel cannot be written.
    """
    first = part_folder(kit, 1)
    if not (first / ABOUT).is_file():
        raise MissingPartsError(f"onnxruntime-gpu is not beside this kit: there is no '{first.name}'")
    about = json.loads((first / ABOUT).read_text(encoding="utf-8"))
    folders = [part_folder(kit, number) for number in range(1, about["parts"] + 1)]
    missing = [folder.name for folder in folders if not (folder / CONTENT).is_file()]
    if missing:
        raise MissingPartsError(f"of {about['wheel']} there is no {', '.join(missing)}")
    wheel, digest = target / about["wheel"], hashlib.sha256()
    with wheel.open("wb") as file:
        for folder in folders:
            piece = (folder / CONTENT).read_bytes()
            digest.update(piece)
            file.write(piece)
    if digest.hexdigest() != about["sha256"]:
        raise MissingPartsError(f"the parts beside this kit do not make {about['wheel']}: they are of several packings")
    return wheel
