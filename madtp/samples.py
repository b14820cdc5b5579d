"""Samples to run a model on: a folder of the user's, or the demo's."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madtp.config import NlvrConfig
from madtp.demo.data import held_out_samples
from madtp.errors import InputError
from madtp.images import read_image
from madtp.preprocess import NlvrSample, TextProcessor, image_tensor, normalize_sentence, pad_ids

MIN_SAMPLES = 8
INDEX = "samples.json"
VOCABULARY = "vocab.txt"
FIRST_WORD_ID = 200  # below it are special tokens and single characters, in every vocabulary of this family


@dataclass(frozen=True)
class Request:
    """One prepared request: images [3, S, S] float32, token ids, and the known answer (1 true, 0 false) if any."""

    image0: Tensor
    image1: Tensor
    ids: list[int]
    label: int | None


@dataclass(frozen=True)
class SampleSet:
    """Prepared requests, where they come from in words, and the sha256 of the vocabulary that made their ids."""

    requests: list[Request]
    origin: str
    vocabulary_sha256: str | None

    def __len__(self) -> int:
        return len(self.requests)


def collate(requests: Sequence[Request], config: NlvrConfig) -> dict[str, Tensor]:
    """Model inputs by name for a batch of requests, sentences padded to the longest."""
    ids, mask = pad_ids([request.ids for request in requests], config)
    return {
        "image0": torch.stack([request.image0 for request in requests]),
        "image1": torch.stack([request.image1 for request in requests]),
        "input_ids": ids,
        "attention_mask": mask,
    }


def find_vocabulary(checkpoint: Path, folder: Path | None = None) -> Path | None:
    """`vocab.txt` in the sample folder, else beside the checkpoint, else None."""
    for place in (folder, checkpoint.parent):
        if place is not None and (place / VOCABULARY).is_file():
            return place / VOCABULARY
    return None


def sample_vocabulary(checkpoint: Path, folder: Path) -> Path:
    """The vocabulary for a folder of samples.

    Raises:
        InputError: there is none.
    """
    vocabulary = find_vocabulary(checkpoint, folder)
    if vocabulary is None:
        raise InputError(
            f"there is no {VOCABULARY} in '{folder}' or beside '{checkpoint}'",
            "Without the checkpoint's vocabulary the sentences cannot be turned into token ids.",
            f"Copy it to '{folder / VOCABULARY}'.",
        )
    return vocabulary


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # e.g. a name that is too long
        return False


def load_samples(folder: Path | None, checkpoint: Path, config: NlvrConfig) -> SampleSet:
    """At least MIN_SAMPLES samples: of `folder`, or without one the demo's.

    A folder holds `samples.json`, a list of {"sentence", "images": [left, right], "label": "True" | "False"} as NLVR2
    annotates, the image files that it names, and `vocab.txt` unless that lies beside the checkpoint.

    Raises:
        InputError: anything in the folder that cannot be used, naming it.
    """
    if folder is not None and not _is_folder(folder):
        raise InputError(
            f"there is no folder '{folder}'",
            "--samples names a folder of samples.",
            f"Name one with '{INDEX}', the images that it lists, and '{VOCABULARY}'.",
        )
    if folder is not None:
        vocabulary: Path | None = sample_vocabulary(checkpoint, folder)
        samples = read_samples(folder)
        return _prepare(samples, f"{len(samples)} samples of '{folder}'", vocabulary, config)
    vocabulary = find_vocabulary(checkpoint)
    samples = held_out_samples(2 * MIN_SAMPLES)
    origin = f"{len(samples)} of the demo's samples (--samples names others)"
    try:
        if vocabulary is not None:
            return _prepare(samples, origin, vocabulary, config)
    except InputError:
        pass  # a vocabulary lies beside the checkpoint, but it is another model's
    # Another model's words: any ids do for comparing two runs of one model, as long as the user knows.
    return _prepare(samples, f"{origin}; words hashed to ids, because no {VOCABULARY} fits", None, config)


def _prepare(samples: Sequence[NlvrSample], origin: str, vocabulary: Path | None, config: NlvrConfig) -> SampleSet:
    text = TextProcessor(vocabulary, config) if vocabulary is not None else None
    digest = hashlib.sha256(vocabulary.read_bytes()).hexdigest() if vocabulary is not None else None
    return SampleSet([prepare_sample(sample, text, config) for sample in samples], origin, digest)


def prepare_sample(sample: NlvrSample, text: TextProcessor | None, config: NlvrConfig) -> Request:
    """A sample as the model takes it; without a text processor its words become stable ids of no meaning."""
    return Request(
        image_tensor(sample.image0, config.image_size),
        image_tensor(sample.image1, config.image_size),
        text.ids(sample.sentence) if text is not None else hashed_ids(sample.sentence, config),
        None if sample.label is None else int(sample.label),
    )


def hashed_ids(sentence: str, config: NlvrConfig) -> list[int]:
    """Ids of a sentence without a vocabulary: [ENC], one stable id a word, [SEP]."""
    first = min(FIRST_WORD_ID, config.vocab_size // 2)
    span = max(config.vocab_size - 2 - first, 1)
    words = normalize_sentence(sentence).split()[: config.max_position - 2]
    return [config.enc_token_id, *(first + zlib.crc32(word.encode()) % span for word in words), config.sep_token_id]


def read_samples(folder: Path) -> list[NlvrSample]:
    """The samples that `folder` lists, images decoded."""
    return [read_sample(folder, number, entry) for number, entry in enumerate(read_index(folder))]


def read_index(folder: Path) -> list[Any]:
    """The entries of the folder's `samples.json`, not looked into yet.

    Raises:
        InputError: it cannot be read, is no list, or has fewer than MIN_SAMPLES.
    """
    if not _is_folder(folder):
        raise InputError(
            f"there is no folder '{folder}'",
            "It should hold samples.",
            f"Name one with '{INDEX}', the images that it lists, and '{VOCABULARY}'.",
        )
    index = folder / INDEX
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"cannot read '{index}'",
            str(error),
            'It has to be a JSON list of {"sentence": ..., "images": [left, right], "label": "True"}.',
        ) from error
    if not isinstance(entries, list) or len(entries) < MIN_SAMPLES:
        count = len(entries) if isinstance(entries, list) else "no"
        raise InputError(
            f"'{index}' lists {count} samples", f"A check needs at least {MIN_SAMPLES}.", "Add samples to the list."
        )
    return entries


def read_sample(folder: Path, number: int, entry: Any) -> NlvrSample:
    """Entry `number` of the folder's index, images decoded.

    Raises:
        InputError: the entry or an image cannot be used.
    """
    where = f"entry {number} of '{folder / INDEX}'"
    if not isinstance(entry, dict) or not isinstance(entry.get("sentence"), str):
        raise InputError(f"{where} has no sentence", 'It has to have a "sentence" that is a string.')
    images = entry.get("images")
    if not isinstance(images, list) or len(images) != 2 or not all(isinstance(name, str) for name in images):
        raise InputError(f"{where} does not name two images", 'It has to have "images": [left, right].')
    label = {"true": True, "false": False}.get(str(entry.get("label", "")).lower())
    first, second = (read_image(folder / name) for name in images)
    return NlvrSample(first, second, entry["sentence"], label)
