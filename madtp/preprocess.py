"""From images and sentences to model inputs, as the official evaluation does it (docs/semantics.md, section 8)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from torch import Tensor

from madtp.config import NlvrConfig
from madtp.errors import InputError

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP, used by every BLIP checkpoint
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ADDED_TOKENS = 2  # [DEC] and [ENC] follow the vocabulary file
DROPPED_PUNCTUATION = re.compile(r'[.!"()*#:;~]')


@dataclass(frozen=True)
class NlvrSample:
    """One request: two images and a sentence; `label` says whether it is true of them, where that is known."""

    image0: Image.Image
    image1: Image.Image
    sentence: str
    label: bool | None = None


def image_tensor(image: Image.Image, size: int) -> Tensor:
    """[3, size, size] float32: RGB, bicubic resize to a square (aspect ratio not kept), CLIP's mean and deviation."""
    resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, dtype=np.float32) / 255
    normalized = (pixels - np.array(IMAGE_MEAN, np.float32)) / np.array(IMAGE_STD, np.float32)
    return torch.from_numpy(normalized.transpose(2, 0, 1).copy())


def normalize_sentence(sentence: str) -> str:
    """Lower case, some punctuation dropped, white space collapsed, as the official NLVR reader does.

    Unlike it, a sentence of more than 40 words is not cut: text over the limit is an error, never another question.
    """
    return " ".join(DROPPED_PUNCTUATION.sub(" ", sentence.lower()).split())


class TextProcessor:
    """Sentences to WordPiece ids with the vocabulary that the checkpoint was trained with.

    Args:
        vocab: `vocab.txt`, one piece a line; [DEC] and [ENC] are the two ids after it.
        config: the model's sizes; its vocabulary has to be two larger than the file.

    Raises:
        InputError: unreadable vocabulary, or one of another model.
    """

    def __init__(self, vocab: Path | str, config: NlvrConfig) -> None:
        try:
            with Path(vocab).open(encoding="utf-8") as file:  # not splitlines(): it also splits at U+2028 and the like
                lines = [line.rstrip("\n") for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read the vocabulary '{vocab}'", str(error), "Put the checkpoint's vocab.txt there."
            ) from error
        missing = [token for token in SPECIAL_TOKENS if token not in lines]
        if missing or len(lines) + ADDED_TOKENS != config.vocab_size:
            raise InputError(
                f"the vocabulary '{vocab}' does not belong to this checkpoint",
                f"It lacks {', '.join(missing)}."
                if missing
                else f"It has {len(lines)} pieces; the model has {config.vocab_size}, [DEC] and [ENC] included.",
                "Use the vocab.txt that the checkpoint was trained with.",
            )
        self.config = config
        self._tokenizer = BertWordPieceTokenizer(str(vocab), lowercase=True)

    def ids(self, sentence: str) -> list[int]:
        """Ids of one sentence: [ENC], its pieces, [SEP]."""
        pieces = self._tokenizer.encode(normalize_sentence(sentence), add_special_tokens=False).ids
        return [self.config.enc_token_id, *pieces, self.config.sep_token_id]

    def batch(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask [B, L] int64, padded to the longest sentence.

        Raises:
            InputError: a sentence has more tokens than the model has positions.
        """
        return pad_ids([self.ids(sentence) for sentence in sentences], self.config)


def pad_ids(rows: Sequence[Sequence[int]], config: NlvrConfig) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask [B, L] int64 of id rows, padded to the longest."""
    longest = max(len(row) for row in rows)
    if longest > config.max_position:
        raise InputError(
            f"a sentence has {longest} tokens",
            f"The model has {config.max_position} positions.",
            "Shorten the sentence; it is not cut silently because that would ask another question.",
        )
    ids = torch.full((len(rows), longest), config.pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask
