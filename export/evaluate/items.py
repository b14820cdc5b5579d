"""Tasks whose items are answered on their own, batch by batch: nlvr, vqa, caption."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.errors import BackendError
from export.evaluate.evaluation import (
    EvaluateOptions,
    Report,
    Scoring,
    add_tokens,
    batch_size,
    check_readable,
    scored,
)
from export.evaluate.journal import Entry
from export.evaluate.metrics import accuracy, caption_scores, vqa_score
from export.session.arguments import spans
from export.session.products import Tokens
from export.session.session import Session
from madtp.data.annotations import Id
from madtp.data.datasets import CaptionItem, Dataset, Item, NlvrItem, VqaItem
from madtp.data.images import read_image
from madtp.data.texts import shown
from madtp.errors import InputError
from madtp.tasks.answers import K_ANSWERS

# How the published evaluations write.
ANSWER_LIMITS: dict[str, Any] = {"beams": 3, "max_length": 10, "min_length": 1}
CAPTION_LIMITS: dict[str, Any] = {"beams": 3, "max_length": 20, "min_length": 5}
COCO_FILE = re.compile(r"COCO_[a-z]+[0-9]{4}_([0-9]{12})")


@dataclass
class _ItemWork(ABC):
    """Items of their own, batch by batch in the order of the annotation file."""

    session: Session
    items: Sequence[Item]
    batch: int
    temperature: float
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.settings = {"batch": self.batch}
        self.spans = spans(len(self.items), self.batch, "items")

    @property
    def steps(self) -> int:
        return len(self.spans)

    def run(self, step: int, report: Report) -> Entry:
        begin, end = self.spans[step]
        batch = self.items[begin:end]
        report("answering", begin, len(self.items))
        answers, tokens = self._ask(batch)
        report("answering", end, len(self.items))
        return {"answers": answers, "tokens": add_tokens(tokens), "cut": sum(map(self._is_cut, batch))}

    def _is_cut(self, item: Item) -> bool:
        """Whether its text is longer than the published code reads."""
        return bool(_text(item)) and self.session.processor.is_cut(_text(item))

    @abstractmethod
    def _ask(self, batch: Sequence[Any]) -> tuple[list[Any], list[Tokens]]:
        """Answers and token counts."""

    def _answers(self, entries: Sequence[Entry]) -> list[Any]:
        return [answer for entry in entries for answer in entry["answers"]]


class _NlvrWork(_ItemWork):
    items: Sequence[NlvrItem]

    def _ask(self, batch: Sequence[NlvrItem]) -> tuple[list[Any], list[Tokens]]:
        pairs = [(read_image(item.images[0]), read_image(item.images[1])) for item in batch]
        sentences = [item.sentence for item in batch]
        judged = self.session.judge(pairs, sentences, batch=self.batch, temperature=self.temperature, cut=True)
        return [[judgement.answer, judgement.probability] for judgement in judged], [one.tokens for one in judged]

    def score(self, entries: Sequence[Entry]) -> Scoring:
        given = self._answers(entries)
        answers = [
            {"identifier": item.key, "answer": answer, "probability": probability}
            for item, (answer, probability) in zip(self.items, given, strict=True)
        ]
        labels = [item.label for item in self.items if item.label is not None]
        if len(labels) < len(given):
            lacking = [item.key for item in self.items if item.label is None]
            return Scoring(None, answers, f"not every sentence has a label: {_first(lacking, self.items)}")
        scores = accuracy([answer for answer, _ in given], labels)
        return scored(scores, answers)


@dataclass
class _VqaWork(_ItemWork):
    items: Sequence[VqaItem]
    candidates: tuple[str, ...] | None  # None: answers are written

    def __post_init__(self) -> None:
        self.ranked = min(K_ANSWERS, len(self.candidates or ()))
        asked = ANSWER_LIMITS if self.candidates is None else {"k": self.ranked}
        super().__post_init__()
        self.settings |= {"generate": self.candidates is None, **asked}

    def _ask(self, batch: Sequence[VqaItem]) -> tuple[list[Any], list[Tokens]]:
        images, questions = [read_image(item.image) for item in batch], [item.question for item in batch]
        search = ANSWER_LIMITS
        if self.candidates is not None:
            search = {"candidates": self.candidates, "k": self.ranked}
        answered = self.session.answer(
            images, questions, batch=self.batch, temperature=self.temperature, cut=True, **search
        )
        return [answer.text for answer in answered], [answer.tokens for answer in answered]

    def score(self, entries: Sequence[Entry]) -> Scoring:
        texts = self._answers(entries)
        ids = [item.key for item in self.items]
        answers = [{"question_id": key, "answer": text} for key, text in zip(ids, texts, strict=True)]
        lacking = [item.key for item in self.items if not item.answers]
        if lacking:
            reason = f"not every question has answers to compare with: {_first(lacking, self.items)}"
            return Scoring(None, answers, reason)
        scores = vqa_score(texts, [item.answers for item in self.items], ids)
        return scored(scores, answers)


class _CaptionWork(_ItemWork):
    items: Sequence[CaptionItem]

    def __post_init__(self) -> None:
        super().__post_init__()
        prompt = self.session.manifest.preprocessing.text.prompt
        self.settings |= {"prompt": prompt, **CAPTION_LIMITS}
        first = dict[str, Path]()
        for item in self.items:  # one image may have the id that another one's name gives
            other = first.setdefault(str(_image_id(item)), item.image)
            if other != item.image:
                raise InputError(
                    f"the images '{other}' and '{item.image}' have one id, {shown(_image_id(item))}",
                    "One was taken from the number in the file's name; the results could not be told apart.",
                    'Give every entry an "image_id".',
                )

    def _ask(self, batch: Sequence[CaptionItem]) -> tuple[list[Any], list[Tokens]]:
        images = [read_image(item.image) for item in batch]
        written = self.session.caption(images, batch=self.batch, temperature=self.temperature, **CAPTION_LIMITS)
        return [caption.text for caption in written], [caption.tokens for caption in written]

    def score(self, entries: Sequence[Entry]) -> Scoring:
        texts = self._answers(entries)
        ids = [_image_id(item) for item in self.items]
        answers = [{"image_id": key, "caption": text} for key, text in zip(ids, texts, strict=True)]
        try:
            scores = caption_scores(texts, [item.captions for item in self.items], ids)
            return scored(scores, answers)
        except BackendError as error:
            fix = f"{error.fix} Then run the same command again: it only scores, the captions are kept."
            return Scoring(None, answers, f"{error.what}. {fix}", scorable=True)


def item_work(
    session: Session, dataset: Dataset, options: EvaluateOptions, temperature: float
) -> _NlvrWork | _VqaWork | _CaptionWork:
    """The evaluation of an artifact of nlvr, vqa or caption.

    Raises:
        InputError: vqa should choose from a list of answers, and the data set has none.
        OptionError, InputError: see `batch_size` and `check_readable`.
    """
    batch = batch_size(session, options)
    items: Any = dataset.items  # of the task's type
    check_readable(
        session, [(f"{_called(item)} of '{dataset.annotation}'", _text(item)) for item in items if _text(item)]
    )
    if session.task == "nlvr":
        return _NlvrWork(session, items, batch, temperature)
    if session.task == "caption":
        return _CaptionWork(session, items, batch, temperature)
    if dataset.answer_list is None and not options.generate:
        raise InputError(
            f"there is no answer_list.json beside '{dataset.annotation}'",
            "The published evaluation chooses from that list of answers.",
            "Put it there, or have answers written: --generate.",
        )
    candidates = None if options.generate else dataset.answer_list
    return _VqaWork(session, items, batch, temperature, candidates)


def _image_id(item: CaptionItem) -> Id:
    """The id of an image; where the file gives none, the number in a name of COCO's, which its evaluation knows."""
    found = COCO_FILE.fullmatch(Path(str(item.key)).stem) if item.named else None
    return item.key if found is None else int(found[1])


def _text(item: Item) -> str:
    """What goes in besides images; nothing does for a caption."""
    if isinstance(item, NlvrItem):
        return item.sentence
    return item.question if isinstance(item, VqaItem) else ""


def _called(item: Item) -> str:
    return f"the {'sentence' if isinstance(item, NlvrItem) else 'question'} {shown(item.key)}"


def _first(lacking: Sequence[Id], items: Sequence[Item]) -> str:
    return f"{len(lacking)} of {len(items)} have none, the first is {shown(lacking[0])}"
