"""Tasks that rank a whole data set: retrieval and clip. All is embedded; then retrieval matches row by row."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from export.evaluate.evaluation import (
    EvaluateOptions,
    Report,
    Scoring,
    batch_size,
    check_readable,
    scored,
    sum_tokens,
)
from export.evaluate.journal import Entry
from export.evaluate.metrics import Scores, recall
from export.session.arguments import spans
from export.session.products import RankingBatch
from export.session.requests import FilledRunner, compare_embeddings, count_runs, kept_tokens
from export.session.session import Session
from madtp.data.datasets import Dataset, RetrievalData
from madtp.data.images import read_image
from madtp.data.preprocess import image_tensor
from madtp.data.texts import shown
from madtp.models.config import RetrievalConfig
from madtp.tasks.ranking import K_TEST, TEXT_BATCH, Candidates, Matcher, embed, scatter
from madtp.tasks.requests import RetrievalRunners

SHOWN = 10  # best ones of each image and text in the results; recall looks at no more


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
        check_readable(session, named)
        self.runners = {name: FilledRunner(runner, session.batch.min) for name, runner in session.runners.items()}
        image_batch = batch_size(session, options)
        self.image_batches = spans(len(self.data.images), image_batch, "images")
        self.published = options.batch is not None
        text_batch = min(TEXT_BATCH, session.batch.max) if self.published else image_batch
        self.text_batches = spans(len(self.data.texts), text_batch, "texts")
        self.batch = RankingBatch(image_batch, text_batch, pairs=1)
        self.settings: dict[str, Any] = {"image_batch": image_batch, "text_batch": text_batch}
        self.input_ids: Tensor
        self.mask: Tensor | None
        self.input_ids, self.mask = session.processor.batch(self.data.texts, cut=True)
        self.cut = sum(map(session.processor.is_cut, self.data.texts))

    def _texts(self, report: Report) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Batches of ids and masks; each is reported as done when the next one is asked for."""
        for begin, end in _reported(self.text_batches, "embedding texts", report):
            yield self.input_ids[begin:end], None if self.mask is None else self.mask[begin:end]

    def _images(self, report: Report) -> Iterator[Tensor]:
        """Batches of images, decoded when they are asked for."""
        settings = self.session.manifest.preprocessing.image
        for begin, end in _reported(self.image_batches, "embedding images", report):
            pictures = map(read_image, self.data.images[begin:end])
            yield torch.stack(
                [image_tensor(picture, settings.size, settings.mean, settings.std) for picture in pictures]
            )

    def answers(self, best_texts: Sequence[Sequence[int]], best_images: Sequence[Sequence[int]]) -> Any:
        """The best of each image and each text, by number."""
        return {
            "images": [{"image": key, "texts": list(texts)} for key, texts in zip(self.keys, best_texts, strict=True)],
            "texts": [{"text": number, "images": list(images)} for number, images in enumerate(best_images)],
        }


class ClipWork(_Ranking):
    """CLIP compares embeddings: one step."""

    steps = 1

    def run(self, step: int, report: Report) -> Entry:
        texts = (ids for ids, _ in self._texts(report))
        ranking = compare_embeddings(self.runners, self._images(report), texts, self.batch, self.temperature)
        metrics = recall(ranking.score_i2t, ranking.score_t2i, self.data.texts_of_image)
        best = {"best_texts": _best(ranking.score_i2t), "best_images": _best(ranking.score_t2i)}
        tokens = {"tokens": sum_tokens(ranking.tokens), "cut": self.cut}
        return {"metrics": metrics, "unscored": metrics.unscored, **best, **tokens}

    def score(self, entries: Sequence[Entry]) -> Scoring:
        (entry,) = entries
        answers = self.answers(entry["best_texts"], entry["best_images"])
        return scored(Scores(entry["metrics"], entry["unscored"]), answers)


class RetrievalWork(_Ranking):
    """BLIP matches the best of each row: a step for all embeddings, one for each image, one for each text."""

    def __init__(self, session: Session, dataset: Dataset, options: EvaluateOptions, temperature: float) -> None:
        super().__init__(session, dataset, options, temperature)
        assert isinstance(session.config, RetrievalConfig)
        self.config = session.config
        self.images, self.texts = len(self.data.images), len(self.data.texts)
        self.steps = 1 + self.images + self.texts
        self.k_test = min(options.k_test or K_TEST, max(self.images, self.texts))
        self.match_batch = min(self.k_test, session.batch.max if self.published else self.batch.images)
        self.settings |= {"k_test": self.k_test, "match_batch": self.match_batch}
        self._counted = count_runs(self.runners)
        self._matcher: Matcher | None = None

    def run(self, step: int, report: Report) -> Entry:
        tokens = {}
        if self._matcher is None:  # also where a run goes on: embeddings are not kept
            self._matcher = self._embed(report)
            counted = {name: self._counted[name] for name in ("image", "text")}
            tokens = kept_tokens(counted)
        if step == 0:
            return {"tokens": sum_tokens(tokens), "cut": self.cut}
        text = step - 1 - self.images
        if text < 0:
            found = self._matcher.texts_of(step - 1)
            report("matching texts to images", step, self.images)
        else:
            found = self._matcher.images_of(text)
            report("matching images to texts", text + 1, self.texts)
        tokens = kept_tokens({"match": self._counted["match"]})
        return {
            "candidates": found.indices.tolist(),
            "scores": found.scores.tolist(),
            "tokens": sum_tokens(tokens),
            "cut": 0,
        }

    def _embed(self, report: Report) -> Matcher:
        assert self.mask is not None
        model = RetrievalRunners(self.config, self._counted, self.temperature)
        texts = ((ids, mask) for ids, mask in self._texts(report) if mask is not None)
        embeddings = embed(model, self._images(report), texts)
        return Matcher(model, embeddings, self.input_ids, self.mask, self.k_test, self.match_batch)

    def score(self, entries: Sequence[Entry]) -> Scoring:
        score_i2t = _scores(entries[1 : 1 + self.images], self.texts)
        score_t2i = _scores(entries[1 + self.images :], self.images)
        metrics = recall(score_i2t, score_t2i, self.data.texts_of_image, self.k_test)
        return scored(metrics, self.answers(_best(score_i2t), _best(score_t2i)))


def _reported(batches: Sequence[tuple[int, int]], stage: str, report: Report) -> Iterator[tuple[int, int]]:
    """The batches; each is reported as done when the next one is asked for."""
    total = batches[-1][1]
    for begin, end in batches:
        report(stage, begin, total)
        yield begin, end
    report(stage, total, total)


def _scores(entries: Sequence[Entry], columns: int) -> Tensor:
    """[rows, columns]: the scores of matched pairs, -100 for the others."""
    rows = (Candidates(torch.tensor(entry["candidates"]), torch.tensor(entry["scores"])) for entry in entries)
    return scatter(rows, columns)


def _best(scores: Tensor) -> list[list[int]]:
    """The best columns of each row, best first; of equal ones the earlier."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :SHOWN].tolist()
