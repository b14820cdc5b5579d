"""Checkpoints, recognised by their bytes; none is loaded."""

from pathlib import Path

from export.inspect.inspection import Inspection, first_line
from madtp.checkpoint.format import LEGACY, check_format
from madtp.errors import CheckpointError, listing

CHECKPOINT_SUFFIXES = {".pt", ".pth"}


def inspect_checkpoint(found: Inspection, path: Path, start: bytes) -> None:
    found.kind = "checkpoint"
    try:
        others = check_format(path)
    except CheckpointError as error:
        found.damage.append(f"{error.why[:1].lower()}{first_line(error.why)[1:]}")
        return
    found.details["format"] = "torch.save before 1.6" if start.startswith(LEGACY) else "torch.save"
    if others:
        found.notes.append(f"it holds more than tensors, so that export refuses to load it: {listing(others)}")
    else:
        command = f"python -m export --ckpt {path} --engine out.plan"
        found.notes.append(f"a checkpoint, not an artifact; export it with {command}")
