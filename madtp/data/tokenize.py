"""From texts to token ids, as the published readers of each task do it (docs/semantics.md, section 8)."""

import hashlib
import html
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import BertWordPieceTokenizer, decoders
from torch import Tensor

from madtp.data.texts import shown
from madtp.errors import InputError
from madtp.files.inputs import read_text, sha256
from madtp.models.config import BlipConfig, ClipConfig

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
DEC, ENC = "[DEC]", "[ENC]"  # they follow the vocabulary file, in this order
ADDED_TOKENS = 2
ID_TOKENS = {
    "pad_token_id": "[PAD]",
    "cls_token_id": "[CLS]",
    "sep_token_id": "[SEP]",
    "bos_token_id": DEC,
    "enc_token_id": ENC,
}
DROPPED_PUNCTUATION = re.compile(r'[.!"()*#:;~]')
WHITE_SPACE = re.compile(r"\s{2,}")
# What decoding joins to the word before it, in this order: the rules of transformers 4.15, which BLIP decodes with.
JOINED = (".", "?", "!", ",", "' ", "n't", "'m", "'s", "'ve", "'re")


@dataclass(frozen=True)
class Reader:
    """How the published reader of a task treats a text. Whatever is longer, it cuts.

    Attributes:
        dropped_as: what takes the place of dropped punctuation; where it is a space, white space is collapsed too.
        max_ids: ids that are read, special ones included; None: as many as come.
        padded: every row of ids is filled up to `max_ids`, whatever else is in its batch.
    """

    dropped_as: str
    max_words: int
    max_ids: int | None = None
    padded: bool = False


READERS = {
    "nlvr": Reader(" ", 40),
    "vqa": Reader("", 50, 35),
    "retrieval": Reader(" ", 30, 35, padded=True),
    "clip": Reader(" ", 30),  # ids: the context length
}


@dataclass(frozen=True)
class ReadText:
    """A text as its task's reader reads it: normalised, as ids, and, if it was cut, why."""

    normalized: str
    ids: list[int]
    cut: str


def normalize_text(text: str, reader: Reader) -> str:
    """Lower case, some punctuation dropped, and nothing cut yet."""
    kept = DROPPED_PUNCTUATION.sub(reader.dropped_as, text.lower())
    if not reader.dropped_as:
        return kept.rstrip(" ")
    return WHITE_SPACE.sub(" ", kept).rstrip("\n").strip(" ")


class RequestText(ABC):
    """What the processors of all tasks share: how they read the text of a request."""

    def __init__(self, reader: Reader | None, first_id: int, last_id: int) -> None:
        self.reader = reader
        self._ends = first_id, last_id

    @abstractmethod
    def _pieces(self, text: str) -> list[int]:
        """Ids of a text as it is, without special ones."""

    @abstractmethod
    def piece(self, index: int) -> str:
        """The vocabulary's entry of an id, to be shown; of WordPiece, `##` begins one that goes on with a word."""

    def read(self, text: str) -> ReadText:
        """The text as the published reader reads it, cut where that cuts.

        Raises:
            InputError: the task reads no text, or `text` is none.
        """
        if self.reader is None:
            raise InputError("a captioning request has no text", "It is an image.", "Give the prompt as a prompt.")
        _check_unicode(text)
        limit = self.reader
        words = normalize_text(text, limit).split(" ")
        normalized = " ".join(words[: limit.max_words])
        pieces = self._pieces(normalized)
        room = len(pieces) if limit.max_ids is None else limit.max_ids - len(self._ends)
        cut = ""
        if len(words) > limit.max_words:
            cut = f"has {len(words)} words; the limit is {limit.max_words}"
        elif len(pieces) > room:
            cut = f"has {len(pieces) + len(self._ends)} tokens; the limit is {limit.max_ids}"
        first, last = self._ends
        return ReadText(normalized, [first, *pieces[:room], last], cut)

    def ids(self, text: str, *, cut: bool = False) -> list[int]:
        """Ids of one text, special ones included.

        Args:
            cut: read an overlong text as the published code does, without its end, instead of refusing it.

        Raises:
            InputError: the text is longer than the published code reads, or than the model has positions.
        """
        read = self.read(text)
        if read.cut and not cut:
            raise InputError(
                f"the text {shown(text)} {read.cut}",
                "The published code cuts the rest off; here it is not cut silently, that would ask another question.",
                "Shorten the text, or ask for it to be cut (cut=True; run --cut).",
            )
        return read.ids

    def rows(self, texts: Sequence[str], each: str, *, cut: bool = False) -> list[list[int]]:
        """Ids of every text; an error names the text by `each` and its number.

        Raises:
            InputError: see `ids`.
        """
        rows = []
        for number, text in enumerate(texts):
            try:
                rows.append(self.ids(text, cut=cut))
            except InputError as error:
                raise InputError(f"{each} {number}: {error.what}", error.why, error.fix) from error
        return rows

    def is_cut(self, text: str) -> bool:
        """Whether the published code would not read all of this text."""
        return bool(self.read(text).cut)


class TextProcessor(RequestText):
    """Texts of the BLIP tasks to WordPiece ids, with the vocabulary that the checkpoint was trained with.

    Args:
        vocab: `vocab.txt`, one piece a line; [DEC] and [ENC] are the two ids after it.
        config: the model's sizes and task; its vocabulary has to be two larger than the file.

    Raises:
        InputError: unreadable vocabulary, or one of another model.
    """

    def __init__(self, vocab: Path | str, config: BlipConfig) -> None:
        first_id = config.cls_token_id if config.task == "retrieval" else config.enc_token_id
        super().__init__(READERS.get(config.task), first_id, config.sep_token_id)
        self.config = config
        pieces = _read_vocabulary(vocab, config)
        self.sha256 = sha256(Path(vocab))
        self._tokenizer = BertWordPieceTokenizer({piece: number for number, piece in enumerate(pieces)}, lowercase=True)
        self._tokenizer.add_special_tokens([DEC, ENC])
        self._tokenizer.decoder = decoders.WordPiece(cleanup=False)

    def _pieces(self, text: str) -> list[int]:
        pieces: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return pieces

    def piece(self, index: int) -> str:
        piece: str | None = self._tokenizer.id_to_token(index)
        return f"id {index}" if piece is None else piece

    def ids(self, text: str, *, cut: bool = False) -> list[int]:
        """Ids of a sentence or question: [ENC] (retrieval: [CLS]), its pieces, [SEP]. See `RequestText.ids`."""
        ids = super().ids(text, cut=cut)
        _check_positions(len(ids), self.config, f"the text {shown(text)}")
        return ids

    def batch(self, texts: Sequence[str], *, cut: bool = False) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask [B, L] int64, padded to the longest text; in retrieval L is always 35.

        Raises:
            InputError: see `ids`.
        """
        length = self.reader.max_ids if self.reader is not None and self.reader.padded else None
        return pad_ids(self.rows(texts, "text", cut=cut), self.config, length or 0)

    def answer_ids(self, answer: str) -> list[int]:
        """Ids of an answer of VQA, which is taken as it is: [DEC], its pieces, [SEP]."""
        return [*self.prompt_ids(answer), self.config.sep_token_id]

    def answers(self, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask [A, L] int64 of answers, padded to the longest."""
        return pad_ids([self.answer_ids(answer) for answer in answers], self.config)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids that a caption begins with: [DEC], the pieces of the prompt, which is taken as it is."""
        _check_unicode(prompt)
        return [self.config.bos_token_id, *self._pieces(prompt)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, special ones dropped. A caption still begins with its prompt."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        for part in JOINED:
            text = text.replace(f" {part}", part.rstrip(" "))
        return text


class ClipTextProcessor(RequestText):
    """Captions to the ids of CLIP's byte pair encoding, whose table comes with a package.

    One rare text differs from the published code: an apostrophe before a long s (U+017F) is a token of its own. And
    `<|startoftext|>` or `<|endoftext|>` in a text is text.

    Attributes:
        sha256: of the table, id by id as text.

    Raises:
        InputError: the package is missing, or the model has another vocabulary.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__(
            replace(READERS["clip"], max_ids=config.context_length), config.sot_token_id, config.eot_token_id
        )
        try:
            import instant_clip_tokenizer  # not everywhere: its wheels end at Python 3.12
        except ImportError as error:
            raise InputError(
                "the texts of CLIP need the package instant-clip-tokenizer",
                str(error),
                "Use Python 3.11 or 3.12, or `pip install instant-clip-tokenizer`, which elsewhere needs Rust.",
            ) from error
        self.config = config
        self._tokenizer = instant_clip_tokenizer.Tokenizer()
        start, end = self._tokenizer.start_of_text(), self._tokenizer.end_of_text()
        if (config.vocab_size, config.sot_token_id, config.eot_token_id) != (end + 1, start, end):
            raise InputError(
                "CLIP's vocabulary does not belong to this checkpoint",
                f"It has {end + 1} pieces and its texts stand between {start} and {end}; the model has "
                f"{config.vocab_size} and puts them between {config.sot_token_id} and {config.eot_token_id}.",
                "Texts can be asked of models with the published vocabulary only.",
            )
        table = "\n".join(self._tokenizer.decode([index]) for index in range(config.vocab_size))
        self.sha256 = hashlib.sha256(table.encode()).hexdigest()

    def _pieces(self, text: str) -> list[int]:
        import ftfy  # not at the top: texts of BLIP can be read without it

        # CLIP's own cleaning: mended Unicode (curly quotes become straight), and HTML that was escaped up to twice.
        cleaned = html.unescape(html.unescape(ftfy.fix_text(text)))
        pieces: list[int] = self._tokenizer.encode(cleaned.lower())
        return pieces

    def piece(self, index: int) -> str:
        return str(self._tokenizer.decode([index])).strip()

    def batch(self, texts: Sequence[str], *, cut: bool = False) -> tuple[Tensor, None]:
        """Ids [B, context_length] int64, filled up with zeros; CLIP has no mask.

        Raises:
            InputError: see `ids`.
        """
        ids = torch.zeros(len(texts), self.config.context_length, dtype=torch.int64)
        for index, row in enumerate(self.rows(texts, "text", cut=cut)):
            ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return ids, None


def text_processor(config: BlipConfig | ClipConfig, vocabulary: Path | None) -> TextProcessor | ClipTextProcessor:
    """The processor of a model's texts. CLIP needs no vocabulary file.

    Raises:
        InputError: a BLIP model without a vocabulary, or one that does not belong to the model.
    """
    if isinstance(config, ClipConfig):
        return ClipTextProcessor(config)
    if vocabulary is None:
        raise InputError(
            "there is no vocabulary for this checkpoint",
            "Without it texts cannot be turned into the ids that the model was trained with.",
            "Put its vocab.txt beside the checkpoint; the published BLIP models have that of bert-base-uncased.",
        )
    return TextProcessor(vocabulary, config)


def pad_ids(rows: Sequence[Sequence[int]], config: BlipConfig, length: int = 0) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask [B, L] int64 of id rows, padded to the longest, and to `length` at least.

    Raises:
        InputError: L is more than the model has positions.
    """
    lengths = [len(row) for row in rows]
    longest = max([length, *lengths])
    _check_positions(longest, config, f"text {lengths.index(longest)}" if longest in lengths else "a text")
    ids = torch.full((len(rows), longest), config.pad_token_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask


def _check_positions(tokens: int, config: BlipConfig, name: str) -> None:
    if tokens > config.max_position:
        raise InputError(
            f"{name} has {tokens} tokens",
            f"The model has {config.max_position} positions.",
            "Shorten the text; it is not cut silently because that would ask another question.",
        )


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can spell
        raise InputError(f"the text {shown(text)} is not Unicode", str(error), "Correct the text.") from error


def _read_vocabulary(vocab: Path | str, config: BlipConfig) -> list[str]:
    """The pieces of a vocabulary that is the model's."""
    try:
        text = read_text(Path(vocab)).replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the vocabulary '{vocab}'", str(error), "Put the checkpoint's vocab.txt there."
        ) from error
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): it also splits at U+2028 and the like
    missing = [token for token in SPECIAL_TOKENS if token not in lines]
    if missing:
        why = f"It lacks {', '.join(missing)}."
    elif len(lines) + ADDED_TOKENS != config.vocab_size:
        why = f"It has {len(lines)} pieces; the model has {config.vocab_size}, {DEC} and {ENC} included."
    else:
        entries = [*lines, DEC, ENC]
        wrong = [name for name in config.IDS if entries[getattr(config, name)] != ID_TOKENS[name]]
        if not wrong:
            return lines
        why = f"Its {ID_TOKENS[wrong[0]]} is not entry {getattr(config, wrong[0])}, which is the model's {wrong[0]}."
    raise InputError(
        f"the vocabulary '{vocab}' does not belong to this checkpoint",
        why,
        "Use the vocab.txt that the checkpoint was trained with.",
    )
