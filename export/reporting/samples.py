"""The samples that a page is made of."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from export.options import Range
from export.pipeline import check_samples
from export.profile import batch_and_text
from export.synthetic import synthetic_samples
from madtp.config import ClipConfig
from madtp.demo.data import held_out_samples
from madtp.demo.photos import photo_samples
from madtp.errors import InputError
from madtp.preprocess import Sample
from madtp.samples import VOCABULARY, Config, Processor, SampleSet, prepare_sample, read_samples
from madtp.tokenize import text_processor

DEMO_SAMPLES = 16
MAX_SAMPLES = 32  # each runs at every temperature


@dataclass(frozen=True)
class ReportSamples:
    """Prepared requests, their texts as they were given ("" where there is none), and what made the ids, if it fits."""

    prepared: SampleSet
    texts: list[str]
    processor: Processor | None


def report_samples(
    manifest: Mapping[str, Any], artifact_folder: Path, config: Config, folder: Path | None, synthetic: bool
) -> ReportSamples:
    """The first MAX_SAMPLES samples of a folder, generated ones, or the demo's.

    Args:
        manifest: of the artifact.
        artifact_folder: where it lies; its vocabulary is used before that of `folder`.
        config: of its model.
        folder: of samples, see `madtp.samples.load_samples`.
        synthetic: random pixels and ids.

    Raises:
        InputError: a folder that cannot be used, or no vocabulary for its texts.
        OptionError: the artifact was not built for texts of this length.
    """
    batch, text = batch_and_text(manifest["parts"])
    if synthetic:
        made = synthetic_samples(config, batch, text)
        return ReportSamples(made, [""] * len(made), None)
    found = None if folder is None else read_samples(folder, config.task)
    processor = _processor(manifest, artifact_folder, config, folder)
    if found is None:
        demo = held_out_samples if config.task == "nlvr" else partial(photo_samples, task=config.task)
        samples: list[Sample] = demo(DEMO_SAMPLES)
        origin = f"{len(samples)} of the demo's samples (--samples names others)"
        if processor is None:
            origin += "; words hashed to ids, because no vocabulary fits"
    else:
        samples = found[:MAX_SAMPLES]
        first = "" if len(found) == len(samples) else f"the first {len(samples)} of "
        origin = f"{first}{len(found)} samples of '{folder}'"
    requests = [prepare_sample(sample, processor, config) for sample in samples]
    prepared = SampleSet(requests, origin, processor is not None)
    # CLIP's texts are all filled up to the length that its profile names.
    check_samples(prepared, config, batch, Range(1, 1, 1) if isinstance(config, ClipConfig) else text)
    asked = config.task != "caption"  # its samples' texts are what is to be seen, and no input
    return ReportSamples(prepared, [(sample.text or "") if asked else "" for sample in samples], processor)


def _processor(
    manifest: Mapping[str, Any], artifact_folder: Path, config: Config, folder: Path | None
) -> Processor | None:
    """None only for the demo's samples: any ids do for them, as long as the page says so."""
    entry = manifest["preprocessing"]["text"]["vocabulary"]
    path = artifact_folder / entry["file"] if entry is not None and entry["file"] is not None else None
    if path is None and folder is not None and (folder / VOCABULARY).is_file():
        path = folder / VOCABULARY
    if folder is not None and path is None and config.task != "clip":
        raise InputError(
            f"there is no {VOCABULARY} in '{folder}', and the artifact has none",
            "Without the checkpoint's vocabulary the texts cannot be turned into token ids.",
            f"Copy it to '{folder / VOCABULARY}'.",
        )
    if path is None and config.task != "clip":
        return None
    try:
        return text_processor(config, path)
    except InputError:
        if folder is not None:
            raise
        return None  # CLIP with another vocabulary than its own
