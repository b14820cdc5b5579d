"""Samples to run a model on: a folder of the user's, or the demo's."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.data.annotations import LABELS, is_there
from madtp.data.default_samples import demo_samples
from madtp.data.images import image_path, read_image
from madtp.data.preprocess import Sample, image_tensor
from madtp.data.texts import shown, text_fault
from madtp.data.tokenize import READERS, ClipTextProcessor, TextProcessor, normalize_text, pad_ids, text_processor
from madtp.errors import InputError
from madtp.files.inputs import read_json
from madtp.models.config import BlipConfig, ClipConfig

MIN_SAMPLES = 8
INDEX = "samples.json"
VOCABULARY = "vocab.txt"
FIRST_WORD_ID = 200  # below it are special tokens and single characters, in every vocabulary of this family
CAPTION_PROMPT = "a picture of "  # that the published captioning models were trained to go on from
HASHED_PROMPT = "a picture of"
# The text of an entry in samples.json, by task; captioning has none. NLVR2's own annotation says "sentence".
TEXT_FIELDS = {"nlvr": "sentence", "vqa": "question", "caption": None, "retrieval": "caption", "clip": "caption"}
ANSWER_FIELDS = {"vqa": "answer", "caption": "caption"}  # what is known to be right, a text or several; may be left out

Config = BlipConfig | ClipConfig
Processor = TextProcessor | ClipTextProcessor


@dataclass(frozen=True)
class Request:
    """One prepared request: images [3, S, S] float32 (two for NLVR), token ids (of captioning the prompt's), and the
    known answer (1 true, 0 false) if any."""

    images: tuple[Tensor, ...]
    ids: list[int]
    label: int | None = None


@dataclass(frozen=True)
class SampleSet:
    """Samples, prepared for a model.

    Attributes:
        fits: whether the ids are those of the words; otherwise they are stable but mean nothing to the model.
        vocabulary: the vocabulary file that made the ids; None without one (CLIP needs none).
        vocabulary_sha256: hash of what made the ids; None if they do not fit.
        kind: "samples" (a folder), "data set", "demo" or "synthetic".
        texts: the text of every sample as it was given; "" if the task asks none.
        answers: the answers (vqa) or captions of every sample that are known to be right.
        processor: what made the ids; None if they do not fit.
    """

    requests: list[Request]
    origin: str
    fits: bool
    vocabulary: Path | None = None
    vocabulary_sha256: str | None = None
    kind: str = "samples"
    texts: Sequence[str] = ()
    answers: Sequence[tuple[str, ...]] = ()
    processor: Processor | None = None

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def words(self) -> str:
        """What the ids mean to the model: "read", "hashed" (stable ids without a meaning) or "random"."""
        return "read" if self.fits else "random" if self.kind == "synthetic" else "hashed"

    def to_json(self) -> dict[str, Any]:
        """What a verdict says of its samples."""
        return {"kind": self.kind, "origin": self.origin, "count": len(self), "words": self.words}


def collate(requests: Sequence[Request], config: Config) -> dict[str, Tensor]:
    """Inputs of `madtp.tasks.requests.run_request` for a batch of requests, texts padded to the longest or as the
    task wants.

    nlvr: image0, image1, input_ids, attention_mask. vqa, retrieval: image, input_ids, attention_mask. clip: image,
    input_ids [B, context_length]. caption: image, prompt_ids.
    """
    names = ("image0", "image1") if config.task == "nlvr" else ("image",)
    batch = {name: torch.stack([request.images[index] for request in requests]) for index, name in enumerate(names)}
    rows = [request.ids for request in requests]
    if isinstance(config, ClipConfig):
        return batch | {"input_ids": torch.stack([_filled(row, config.context_length) for row in rows])}
    if config.task == "caption":
        return batch | {"prompt_ids": torch.tensor(rows)}
    reader = READERS[config.task]
    ids, mask = pad_ids(rows, config, (reader.max_ids or 0) if reader.padded else 0)
    return batch | {"input_ids": ids, "attention_mask": mask}


def _filled(ids: list[int], length: int) -> Tensor:
    return F.pad(torch.tensor(ids, dtype=torch.int64), (0, length - len(ids)))


def find_vocabulary(checkpoint: Path | None, folder: Path | None = None) -> Path | None:
    """`vocab.txt` in the sample folder, else beside the checkpoint, else None."""
    for place in (folder, None if checkpoint is None else checkpoint.parent):
        if place is not None and (place / VOCABULARY).is_file():
            return place / VOCABULARY
    return None


def sample_processor(
    checkpoint: Path | None, folder: Path, config: Config, vocabulary: Path | None = None
) -> Processor:
    """What turns the texts of a folder of samples into ids; `vocabulary` is known to be the model's.

    Raises:
        InputError: there is no vocabulary, or another model's.
    """
    vocabulary = vocabulary or find_vocabulary(checkpoint, folder)
    if vocabulary is None and not isinstance(config, ClipConfig):
        other = ", and the artifact has none" if checkpoint is None else f" or beside '{checkpoint}'"
        raise InputError(
            f"there is no {VOCABULARY} in '{folder}'{other}",
            "Without the checkpoint's vocabulary the sentences cannot be turned into token ids.",
            f"Copy it to '{folder / VOCABULARY}'.",
        )
    return text_processor(config, vocabulary)


def load_samples(
    folder: Path | None,
    checkpoint: Path | None,
    config: Config,
    least: int = MIN_SAMPLES,
    vocabulary: Path | None = None,
    *,
    allow_outside: bool = False,
    demos: int | None = None,
) -> SampleSet:
    """At least `least` samples: of `folder`, or without one the demo's.

    A folder holds `samples.json`, the image files that it names, and `vocab.txt` unless that lies beside the
    checkpoint. Entries are {"sentence", "images": [left, right], "label": "True" | "False"} for nlvr, as NLVR2
    annotates; {"question", "image"} and perhaps "answer" for vqa; {"image"} and perhaps "caption" for caption;
    {"caption", "image"} for retrieval and clip.

    Args:
        checkpoint: the model's; a vocabulary may lie beside it. None if there is only an artifact.
        vocabulary: a vocabulary that is known to be the model's; None looks for one.
        demos: how many of the demo's samples; None takes twice MIN_SAMPLES.

    Raises:
        InputError: anything in the folder that cannot be used, naming it.
    """
    if folder is not None:
        samples = read_samples(folder, config.task, least, allow_outside=allow_outside)
        processor = sample_processor(checkpoint, folder, config, vocabulary)
        used = None if isinstance(config, ClipConfig) else vocabulary or find_vocabulary(checkpoint, folder)
        origin = f"{len(samples)} sample{'s' * (len(samples) > 1)} of '{folder}'"
        return _prepare(samples, origin, processor, used, config, "samples")
    samples = demo_samples(config.task, demos or 2 * MIN_SAMPLES)
    origin = f"{len(samples)} of the demo's samples (--samples names others)"
    used = None if isinstance(config, ClipConfig) else vocabulary or find_vocabulary(checkpoint)
    try:
        if used is not None or isinstance(config, ClipConfig):
            return _prepare(samples, origin, text_processor(config, used), used, config, "demo")
    except InputError:
        pass  # a vocabulary lies beside the checkpoint, but it is another model's
    # Another model's words: any ids do for comparing two runs of one model, as long as the user knows.
    lacking = f"because no {VOCABULARY} fits" if isinstance(config, BlipConfig) else "because CLIP's does not fit"
    return _prepare(samples, f"{origin}; words hashed to ids, {lacking}", None, None, config, "demo")


def _prepare(
    samples: Sequence[Sample],
    origin: str,
    processor: Processor | None,
    vocabulary: Path | None,
    config: Config,
    kind: str,
) -> SampleSet:
    captions = config.task == "caption"  # their texts are what is to be seen in the image, and no input
    return SampleSet(
        prepare_samples(samples, processor, config),
        origin,
        processor is not None,
        vocabulary,
        None if processor is None else processor.sha256,
        kind,
        ["" if captions else sample.text or "" for sample in samples],
        [sample.answers or ((sample.text,) if captions and sample.text is not None else ()) for sample in samples],
        processor,
    )


def prepare_samples(samples: Sequence[Sample], processor: Processor | None, config: Config) -> list[Request]:
    """Every sample as the model takes it.

    Raises:
        InputError: a text that is too long, naming the sample.
    """
    requests = []
    for number, sample in enumerate(samples):
        try:
            requests.append(prepare_sample(sample, processor, config))
        except InputError as error:
            raise InputError(f"sample {number}: {error.what}", error.why, error.fix) from error
    return requests


def prepare_sample(sample: Sample, processor: Processor | None, config: Config) -> Request:
    """A sample as the model takes it; without a processor its words become stable ids of no meaning."""
    images = tuple(image_tensor(image, config.image_size) for image in sample.images)
    if processor is None:
        ids = hashed_ids(sample.text or "", config)
    elif isinstance(processor, TextProcessor) and config.task == "caption":
        ids = processor.prompt_ids(CAPTION_PROMPT)
    else:
        ids = processor.ids(sample.text or "")
    return Request(images, ids, None if sample.label is None else int(sample.label))


def hashed_ids(text: str, config: Config) -> list[int]:
    """Ids of a text without a vocabulary: the task's first id, one stable id a word, its last id."""
    first, last, longest = edge_ids(config)
    words = hashed_words(text, config)[: longest - (1 if last is None else 2)]
    least = min(FIRST_WORD_ID, config.vocab_size // 2)
    span = max(config.vocab_size - 2 - least, 1)
    ids = [first, *(least + zlib.crc32(word.encode()) % span for word in words)]
    return ids if last is None else [*ids, last]


def hashed_words(text: str, config: Config) -> list[str]:
    """The words that `hashed_ids` gives an id each."""
    return (HASHED_PROMPT if config.task == "caption" else normalize_text(text, READERS[config.task])).split()


def edge_ids(config: Config) -> tuple[int, int | None, int]:
    """First and last id of a request's text (a caption's prompt has no last), and the most ids that it can have."""
    if isinstance(config, ClipConfig):
        return config.sot_token_id, config.eot_token_id, config.context_length
    if config.task == "caption":
        return config.bos_token_id, None, config.max_position
    longest = min(config.max_position, READERS[config.task].max_ids or config.max_position)
    return (config.cls_token_id if config.task == "retrieval" else config.enc_token_id), config.sep_token_id, longest


def read_samples(folder: Path, task: str, least: int = MIN_SAMPLES, *, allow_outside: bool = False) -> list[Sample]:
    """The samples that `folder` lists, images decoded; with `allow_outside` also of images outside of it."""
    entries = enumerate(read_index(folder, task, least))
    return [read_sample(folder, number, entry, task, allow_outside=allow_outside) for number, entry in entries]


def read_index(folder: Path, task: str, least: int = MIN_SAMPLES) -> list[Any]:
    """The entries of the folder's `samples.json`, not looked into yet.

    Raises:
        InputError: it cannot be read, is not a list, or has fewer than `least`.
    """
    if not is_there(folder, folder=True):
        raise InputError(
            f"there is no folder '{folder}'",
            "It should hold samples.",
            f"Name one with '{INDEX}', the images that it lists, and '{VOCABULARY}'.",
        )
    index = folder / INDEX
    try:
        entries = read_json(index)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read '{index}'", str(error), f"It has to be a JSON list of {_entry_form(task)}."
        ) from error
    if not isinstance(entries, list) or len(entries) < least:
        count = len(entries) if isinstance(entries, list) else "no"
        raise InputError(
            f"'{index}' lists {count} samples", f"A check needs at least {least}.", "Add samples to the list."
        )
    return entries


def _entry_form(task: str) -> str:
    """What an entry looks like, for messages."""
    if task == "nlvr":
        return '{"sentence": ..., "images": [left, right], "label": "True"}'
    field = TEXT_FIELDS[task]
    return '{"image": ...}' if field is None else f'{{"{field}": ..., "image": ...}}'


def read_sample(folder: Path, number: int, entry: Any, task: str, *, allow_outside: bool = False) -> Sample:
    """Entry `number` of the folder's index, images decoded; with `allow_outside` also of images outside of it.

    Raises:
        InputError: the entry or an image cannot be used.
    """
    place = f"entry {number} of '{folder / INDEX}'"
    field = TEXT_FIELDS[task]
    text = entry.get(field) if isinstance(entry, dict) and field else None
    fault = text_fault(text) if field is not None else None
    if not isinstance(entry, dict) or fault is not None:
        raise InputError(
            f"{place} has no {field or 'image'} that can be used",
            f"It {fault}: {shown(text)}." if isinstance(entry, dict) else "It is not an object.",
            f"It has to be {_entry_form(task)}.",
        )
    if task == "nlvr":
        names = entry.get("images")
        if not isinstance(names, list) or len(names) != 2 or not all(isinstance(name, str) for name in names):
            raise InputError(f"{place} does not name two images", 'It has to have "images": [left, right].')
    else:
        names = [entry.get("image")]
        if not isinstance(names[0], str):
            raise InputError(f"{place} does not name an image", f"It has to be {_entry_form(task)}.")
    label = entry.get("label") if task == "nlvr" else None
    known = None if label is None else LABELS.get(str(label).lower())
    if label is not None and known is None:
        raise InputError(f"{place} has the label {label!r:.40}", "It can be True or False.", "Correct or leave it out.")
    answers = _known_answers(entry, ANSWER_FIELDS.get(task, ""), place)
    paths = [image_path(folder, name, folder / INDEX, allow_outside) for name in names]
    return Sample(tuple(read_image(path) for path in paths), text, known, answers)


def _known_answers(entry: dict[str, Any], field: str, place: str) -> tuple[str, ...]:
    """What an entry says is right."""
    given = entry.get(field)
    answers = [] if given is None else given if isinstance(given, list) else [given]
    if not all(isinstance(answer, str) for answer in answers):
        raise InputError(
            f"{place} has the {field} {given!r:.40}", "It can be a text or several.", "Correct or leave it out."
        )
    return tuple(answers)
