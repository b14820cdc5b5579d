"""Tasks that rank a whole data set: retrieval and clip. All is embedded; then retrieval matches row by row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.evaluate.evaluation import (
    EvaluateOptions,
    Outcome,
    Report,
    Tokens,
    add_tokens,
    batch_size,
    check_texts,
    scored,
)
from export.evaluate.journal import Entry
from export.evaluate.metrics import recall
from export.session.requests import FilledRunner
from export.session.session import Session, spans
from madtp.data.datasets import Dataset, RetrievalData
from madtp.data.images import read_image
from madtp.data.preprocess import image_tensor
from madtp.data.texts import shown
from madtp.models.config import RetrievalConfig
from madtp.tasks.ranking import NOT_MATCHED, TEXT_BATCH, pair_tokens
from madtp.tasks.requests import Outputs, token_counts

K_TEST = 256  # of the published COCO evaluation; 128 for Flickr30k
SHOWN = 10  # best ones of each image and text in the results; recall looks at no more


@dataclass(frozen=True)
class _Embedded:
    """Of all images and texts: similarity [I, T], what matching takes, tokens after each layer, texts that were cut.

    `image_tokens` holds [n_i, C] of each image; `input_ids` and `attention_mask` are [T, L]. All three are for
    retrieval; clip matches nothing.
    """

    sim: Tensor
    image_tokens: list[Tensor]
    input_ids: Tensor
    attention_mask: Tensor | None
    tokens: Entry
    cut: int


class _Ranking:
    """What retrieval and clip share. Embeddings are not kept in the journal: a run that goes on computes them again."""

    def __init__(self, session: Session, dataset: Dataset, options: EvaluateOptions, temperature: float) -> None:
        assert dataset.retrieval is not None
        self.session, self.temperature = session, temperature
        self.data: RetrievalData = dataset.retrieval
        self.keys = [item.key for item in dataset.items]
        named = [
            (f"caption {text} of '{dataset.annotation}', of the image {shown(key)}", self.data.texts[text])
            for key, own in zip(self.keys, self.data.texts_of_image, strict=True)
            for text in own
        ]
        check_texts(session, named)
        self.runners = {name: FilledRunner(runner, session.batch.min) for name, runner in session.runners.items()}
        image_batch = batch_size(session, options)
        self.image_batches = spans(len(self.data.images), image_batch, "images")
        self.published = options.batch is not None
        text_batch = min(TEXT_BATCH, session.batch.max) if self.published else 1
        self.text_batches = spans(len(self.data.texts), text_batch, "texts")
        self.settings: dict[str, Any] = {"image_batch": image_batch, "text_batch": text_batch}
        self._embedded: _Embedded | None = None

    def embedded(self, report: Report) -> _Embedded:
        """Embed everything, once a run."""
        if self._embedded is None:
            self._embedded = self._embed(report)
        return self._embedded

    def _embed(self, report: Report) -> _Embedded:
        processor, counts = self.session.processor, list[Tokens]()
        input_ids, mask = processor.batch(self.data.texts, cut=True)
        texts, images, tokens = list[Tensor](), list[Tensor](), list[Tensor]()
        for begin, end in _reported(self.text_batches, "embedding texts", report):
            words = {"input_ids": input_ids[begin:end]} | ({} if mask is None else {"attention_mask": mask[begin:end]})
            outputs = self._run("text", words)
            texts.append(outputs["text_embed"])
            counts += _requests(outputs)
        for begin, end in _reported(self.image_batches, "embedding images", report):
            outputs = self._run("image", {"image": torch.stack(list(map(self._pixels, self.data.images[begin:end])))})
            images.append(outputs["image_embed"])
            tokens += outputs.get("image_tokens", [])
            counts += _requests(outputs)
        sim = torch.cat(images) @ torch.cat(texts).mT
        cut = sum(processor.is_cut(text) for text in self.data.texts)
        return _Embedded(sim, tokens, input_ids, mask, add_tokens(counts), cut)

    def _pixels(self, path: Path) -> Tensor:
        settings = self.session.manifest.preprocessing.image
        return image_tensor(read_image(path), settings.size, settings.mean, settings.std)

    def _run(self, part: str, inputs: dict[str, Tensor]) -> Outputs:
        return self.runners[part].run(inputs, self.temperature)

    def answers(self, best_texts: Sequence[Sequence[int]], best_images: Sequence[Sequence[int]]) -> Any:
        """The best of each image and each text, by number."""
        return {
            "images": [{"image": key, "texts": list(texts)} for key, texts in zip(self.keys, best_texts, strict=True)],
            "texts": [{"text": number, "images": list(images)} for number, images in enumerate(best_images)],
        }


class _ClipWork(_Ranking):
    """CLIP compares embeddings: one step."""

    steps = 1

    def run(self, step: int, report: Report) -> Entry:
        embedded = self.embedded(report)
        sim = embedded.sim
        metrics = recall(sim, sim.mT, self.data.texts_of_image)
        best = {"best_texts": _best(sim), "best_images": _best(sim.mT)}
        return {
            "metrics": metrics,
            "unscored": metrics.unscored,
            **best,
            "tokens": embedded.tokens,
            "cut": embedded.cut,
        }

    def outcome(self, entries: Sequence[Entry]) -> Outcome:
        (entry,) = entries
        answers = self.answers(entry["best_texts"], entry["best_images"])
        return scored(entry["metrics"], entry["unscored"], answers)


class _RetrievalWork(_Ranking):
    """BLIP matches the best of each row: a step for all embeddings, one for each image, one for each text."""

    def __init__(self, session: Session, dataset: Dataset, options: EvaluateOptions, temperature: float) -> None:
        super().__init__(session, dataset, options, temperature)
        assert isinstance(session.config, RetrievalConfig)
        self.config = session.config
        self.images, self.texts = len(self.data.images), len(self.data.texts)
        self.steps = 1 + self.images + self.texts
        self.k_test = min(options.k_test or K_TEST, max(self.images, self.texts))
        self.match_batch = min(self.k_test, session.batch.max) if self.published else 1
        self.settings |= {"k_test": self.k_test, "match_batch": self.match_batch}

    def run(self, step: int, report: Report) -> Entry:
        embedded = self.embedded(report)
        if step == 0:
            return {"tokens": embedded.tokens, "cut": embedded.cut}
        text = step - 1 - self.images
        if text < 0:
            image = step - 1
            entry = self._row(embedded, embedded.sim[image], lambda texts: (texts, torch.full_like(texts, image)))
            report("matching texts to images", step, self.images)
        else:
            entry = self._row(embedded, embedded.sim[:, text], lambda images: (torch.full_like(images, text), images))
            report("matching images to texts", text + 1, self.texts)
        return entry

    def _row(self, embedded: _Embedded, sim: Tensor, pairs: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Entry:
        """The best `k_test` candidates of a row, and their scores: similarity plus matching logit."""
        assert embedded.attention_mask is not None
        values, candidates = sim.topk(min(self.k_test, len(sim)))
        texts, images = pairs(candidates)
        logits, counts = list[Tensor](), list[Tokens]()
        for begin, end in spans(len(candidates), self.match_batch, "candidates"):
            words, shown = texts[begin:end], images[begin:end]
            input_ids = embedded.input_ids[words]
            input_ids[:, 0] = self.config.enc_token_id
            inputs = {
                "input_ids": input_ids,
                "attention_mask": embedded.attention_mask[words],
                "image_tokens": pair_tokens(embedded.image_tokens, shown, self.match_batch),
            }
            outputs = self._run("match", inputs)
            logits.append(outputs["itm_logits"][:, 1])
            counts += [{"match": row} for row in outputs["text_token_counts"].tolist()]
        scores = values + torch.cat(logits)
        tokens = add_tokens(counts)
        return {"candidates": candidates.tolist(), "scores": scores.tolist(), "tokens": tokens, "cut": 0}

    def outcome(self, entries: Sequence[Entry]) -> Outcome:
        score_i2t = _scores(entries[1 : 1 + self.images], self.texts)
        score_t2i = _scores(entries[1 + self.images :], self.images)
        metrics = recall(score_i2t, score_t2i, self.data.texts_of_image, self.k_test)
        return scored(metrics, metrics.unscored, self.answers(_best(score_i2t), _best(score_t2i)))


def ranking_work(
    session: Session, dataset: Dataset, options: EvaluateOptions, temperature: float
) -> _ClipWork | _RetrievalWork:
    """The evaluation of an artifact of retrieval or clip."""
    kind = _ClipWork if session.task == "clip" else _RetrievalWork
    return kind(session, dataset, options, temperature)


def _reported(batches: Sequence[tuple[int, int]], stage: str, report: Report) -> Iterator[tuple[int, int]]:
    """The batches; each is reported as done when the next one is asked for."""
    total = batches[-1][1]
    for begin, end in batches:
        report(stage, begin, total)
        yield begin, end
    report(stage, total, total)


def _requests(outputs: Outputs) -> list[Tokens]:
    """Token counts of each request of a batch."""
    return [{name: row} for name, counts in token_counts(outputs).items() for row in counts.tolist()]


def _scores(entries: Sequence[Entry], columns: int) -> Tensor:
    """[rows, columns]: the scores of matched pairs, -100 for the others."""
    scores = torch.full((len(entries), columns), NOT_MATCHED)
    for row, entry in zip(scores, entries, strict=True):
        row[entry["candidates"]] = torch.tensor(entry["scores"])
    return scores


def _best(scores: Tensor) -> list[list[int]]:
    """The best columns of each row, best first; of equal ones the earlier."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :SHOWN].tolist()
