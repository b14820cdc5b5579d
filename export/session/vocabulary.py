"""The text processor of an artifact; no checkpoint is needed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from madtp.data.samples import Config, Processor
from madtp.data.tokenize import text_processor
from madtp.errors import InputError
from madtp.models.config import ClipConfig


def artifact_processor(manifest: Mapping[str, Any], folder: Path, config: Config, vocabulary: Path | None) -> Processor:
    """The text processor of an artifact whose manifest lies in `folder`.

    `vocabulary` wins over the file that the manifest names, and has to be the one that the artifact was exported with,
    if it was exported with any.

    Raises:
        InputError: there is no vocabulary, or it is another model's.
    """
    if vocabulary is not None and isinstance(config, ClipConfig):
        raise InputError(
            f"the vocabulary '{vocabulary}' does not apply to clip", "CLIP's table comes with a package.", "Omit it."
        )
    entry = manifest["preprocessing"]["text"]["vocabulary"]
    path = vocabulary
    if path is None and entry is not None and entry["file"] is not None:
        path = folder / entry["file"]
    if path is None and not isinstance(config, ClipConfig):
        raise InputError(
            f"there is no vocabulary beside '{manifest['artifact']}'",
            "The checkpoint had no vocab.txt beside it when it was exported, so texts cannot be turned into ids.",
            "Name the checkpoint's vocab.txt (vocabulary=..., or --vocab).",
        )
    processor = text_processor(config, path)
    if entry is not None and processor.sha256 != entry["sha256"]:
        raise InputError(
            f"the vocabulary '{path or 'of clip'}' is not the one that the artifact was exported with",
            "Its sha256 differs.",
            "Use the vocab.txt of the checkpoint." if path else "Install the versions in constraints.txt.",
        )
    return processor
