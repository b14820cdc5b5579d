"""The samples that bench and report take for an artifact."""

from pathlib import Path
from typing import Any

from export.engine.profile import batch_and_text
from export.samples.choice import DataOptions, choose_samples
from madtp.data.samples import Config, SampleSet


def samples_of(manifest: Any, folder: Path, config: Config, options: DataOptions, demos: int = 16) -> SampleSet:
    """Samples for the artifact in `folder`, without its checkpoint."""
    vocabulary = None if manifest.vocabulary_file is None else folder / manifest.vocabulary_file
    return choose_samples(options, None, vocabulary, config, *batch_and_text(manifest), demos=demos)
