"""The samples that an artifact is shown: of a folder, generated, or the demo's. No checkpoint is needed."""

from dataclasses import dataclass
from pathlib import Path

from export.artifact.manifest import Manifest
from export.engine.profile import batch_and_text
from export.samples.profile import check_samples
from export.samples.synthetic import synthetic_samples
from madtp.data.samples import VOCABULARY, Config, Processor, SampleSet, demo_samples, prepare_samples, read_samples
from madtp.data.tokenize import text_processor
from madtp.errors import InputError


@dataclass(frozen=True)
class ArtifactSamples:
    """Prepared requests, their texts as they were given ("" where there is none), what made the ids, if it fits, and
    the answers (vqa) or captions that are known to be right."""

    prepared: SampleSet
    texts: list[str]
    processor: Processor | None
    answers: list[tuple[str, ...]]


def artifact_samples(
    manifest: Manifest,
    folder: Path,
    config: Config,
    samples: Path | None,
    synthetic: bool,
    *,
    demos: int,
    limit: int | None = None,
    allow_outside: bool = False,
) -> ArtifactSamples:
    """Samples of a folder, generated ones, or the demo's.

    Args:
        manifest: of the artifact.
        folder: where it lies; its vocabulary is used before that of `samples`.
        config: of its model.
        samples: a folder of samples, see `madtp.data.samples.load_samples`; one sample is enough.
        synthetic: random pixels and ids.
        demos: how many of the demo's samples.
        limit: most samples of the folder, the first ones; None is all.
        allow_outside: also take images whose names lead out of the folder.

    Raises:
        InputError: a folder that cannot be used, or no vocabulary for its texts.
        OptionError: the artifact was not built for texts of this length.
    """
    batch, text = batch_and_text(manifest)
    if synthetic:
        made = synthetic_samples(config, batch, text)
        return ArtifactSamples(made, [""] * len(made), None, [()] * len(made))
    found = None if samples is None else read_samples(samples, config.task, 1, allow_outside=allow_outside)
    processor = _processor(manifest, folder, config, samples)
    if found is None:
        found = demo_samples(config.task, demos)
        origin = f"{len(found)} of the demo's samples (--samples names others)"
        if processor is None:
            origin += "; words hashed to ids, because no vocabulary fits"
    else:
        first = f"the first {limit} of " if limit is not None and len(found) > limit else ""
        origin = f"{first}{len(found)} sample{'s' * (len(found) > 1)} of '{samples}'"
        found = found[:limit]
    requests = prepare_samples(found, processor, config)
    prepared = SampleSet(requests, origin, processor is not None)
    check_samples(prepared, config, batch, text)
    asked = config.task != "caption"  # the texts of the demo's samples are what is to be seen, and no input
    texts = [(sample.text or "") if asked else "" for sample in found]
    answers = [sample.answers or (() if asked or sample.text is None else (sample.text,)) for sample in found]
    return ArtifactSamples(prepared, texts, processor, answers)


def _processor(manifest: Manifest, folder: Path, config: Config, samples: Path | None) -> Processor | None:
    """None only for the demo's samples: any ids do for them, as long as the origin says so."""
    path = None if manifest.vocabulary_file is None else folder / manifest.vocabulary_file
    if path is None and samples is not None and (samples / VOCABULARY).is_file():
        path = samples / VOCABULARY
    if samples is not None and path is None and config.task != "clip":
        raise InputError(
            f"there is no {VOCABULARY} in '{samples}', and the artifact has none",
            "Without the checkpoint's vocabulary the texts cannot be turned into token ids.",
            f"Copy it to '{samples / VOCABULARY}'.",
        )
    if path is None and config.task != "clip":
        return None
    try:
        return text_processor(config, path)
    except InputError:
        if samples is not None:
            raise
        return None  # CLIP with another vocabulary than its own
