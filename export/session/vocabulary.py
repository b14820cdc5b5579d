"""The text processor of an artifact; no checkpoint is needed."""

from pathlib import Path

from export.runtime.artifact import Artifact
from madtp.data.samples import Processor
from madtp.data.tokenize import text_processor
from madtp.errors import InputError
from madtp.models.config import ClipConfig


def artifact_processor(artifact: Artifact, vocabulary: Path | None) -> Processor:
    """The text processor of an artifact.

    `vocabulary` wins over the file that the manifest names, and has to be the one that the artifact was exported with,
    if it was exported with any.

    Raises:
        InputError: there is no vocabulary, or it is another model's.
    """
    config, entry = artifact.config, artifact.manifest.preprocessing.text.vocabulary
    if vocabulary is not None and isinstance(config, ClipConfig):
        raise InputError(
            f"the vocabulary '{vocabulary}' does not apply to clip", "CLIP's table comes with a package.", "Omit it."
        )
    path = vocabulary or artifact.vocabulary
    if path is None and not isinstance(config, ClipConfig):
        raise InputError(
            f"there is no vocabulary beside '{artifact.manifest.artifact}'",
            "The checkpoint had no vocab.txt beside it when it was exported, so texts cannot be turned into ids.",
            "Name the checkpoint's vocab.txt (vocabulary=..., or --vocab).",
        )
    processor = text_processor(config, path)
    if entry is not None and processor.sha256 != entry.sha256:
        raise InputError(
            f"the vocabulary '{path or 'of clip'}' is not the one that the artifact was exported with",
            "Its sha256 differs.",
            "Use the vocab.txt of the checkpoint." if path else "Install the versions in constraints.txt.",
        )
    return processor
