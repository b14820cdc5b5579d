"""Asking an artifact: images and texts in, the task's product out. `python -m export run` is its command line."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Never

import torch
from PIL import Image
from torch import Tensor

from export.artifact.manifest import Profile
from export.engine.profile import batch_and_text
from export.runtime.artifact import Artifact
from export.runtime.forks import forked
from export.runtime.runner import RunnerOptions, finite_runners
from export.session.products import Answer, Caption, Judgement, Ranking, RankingBatch
from export.session.requests import (
    FilledRunner,
    choose_answers,
    compare_embeddings,
    generate_answers,
    generate_captions,
    judge,
    rank_pairs,
)
from madtp.data.images import check_image
from madtp.data.preprocess import image_tensor
from madtp.data.samples import Processor, Request, collate
from madtp.data.texts import check_answers, shown
from madtp.data.tokenize import TextProcessor, text_processor
from madtp.errors import InputError
from madtp.models.config import MAX_TEMPERATURE, CaptionConfig, ClipConfig, RetrievalConfig, VqaConfig
from madtp.tasks.requests import Runner

METHODS = {"nlvr": "judge", "vqa": "answer", "caption": "caption", "retrieval": "rank", "clip": "rank"}
TEXTS = {"nlvr": "sentences", "vqa": "questions"}  # what each task calls them
K_ANSWERS = 128  # candidates that are read to the end, of the published evaluation
K_TEST = 256  # candidates of each row, of the published evaluation


class Session:
    """An opened artifact. Use as a context, or `close` it.

    Images are PIL images of any 8-bit mode; their EXIF orientation is ignored, as the published readers do. Requests
    run one at a time, so that no answer depends on what else is asked. `batch=` runs more at once, as the published
    evaluations do: such a batch keeps one number of tokens (`"batching": "reference"` in the manifest) and pads its
    texts, so that an answer can depend on what it is asked together with. Every product says how it was asked.

    Threads may share a session, and images; processes may not: each opens its own.

    Args:
        manifest: `out.json`, or the artifact that lies beside it.
        vocabulary: `vocab.txt` of the checkpoint; None is the file that the manifest names. CLIP needs none.
        threads: of ONNX Runtime; None is its own choice.

    Attributes:
        task: "nlvr", "vqa", "caption", "retrieval" or "clip".
        config: sizes of the model.
        manifest: of the artifact (`export.artifact.manifest.Manifest`).
        temperature: default of every request: the manifest's.
        backend: that runs the parts.
        processor: of texts.
        runners: of the parts, by name.
        batch, text: requests and tokens of a text that the artifact was built for.

    Raises:
        ManifestError: no manifest, or its files are missing, swapped, or not of one checkpoint.
        InputError: there is no vocabulary, or it does not belong to the model.
        BackendError: no GPU of this machine can run the plan, or the runtime refuses a file.
    """

    def __init__(self, manifest: Path | str, *, vocabulary: Path | None = None, threads: int | None = None) -> None:
        self._artifact = Artifact.open(Path(manifest))
        self.manifest, self.config = self._artifact.manifest, self._artifact.config
        self.task: str = self.manifest.task
        self.temperature = float(self.manifest.temperature)
        self.processor = _processor(self._artifact, vocabulary)
        self.batch, self.text = batch_and_text(self.manifest)
        self.backend = self._artifact.backend
        self._artifact.check_runs()
        if forked():
            torch.set_num_threads(1)  # its pool stayed with the parent; a call would wait for it for ever
        opened = self._artifact.open_runners(RunnerOptions(threads))
        self.runners: dict[str, Runner] = {**finite_runners(opened, "asked by a session")}
        self._process = os.getpid()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the parts; nothing can be asked any more. In a forked child they stay: they are its parent's."""
        self.runners = {}
        self._artifact.close()

    def __reduce__(self) -> Never:
        """Refuse to be pickled, as `multiprocessing` would to hand it to another process."""
        raise InputError(
            "a session cannot be sent to another process",
            "What runs it stays here: its threads, its place on a GPU.",
            "Send the manifest's path, and open a session there.",
        )

    def judge(
        self,
        images: Sequence[tuple[Image.Image, Image.Image]],
        sentences: Sequence[str],
        *,
        batch: int | None = None,
        temperature: float | None = None,
        cut: bool = False,
    ) -> list[Judgement]:
        """Whether each sentence is true of its two images (nlvr).

        Args:
            images: left and right one of each request.
            sentences: as many.
            batch: requests that run together; None is one, and no answer depends on another request.
            temperature: zero is the dense model; None is the default one.
            cut: read an overlong sentence without its end, as the published code does, instead of refusing it.

        Raises:
            InputError: another task's session, or a request that cannot be used, which it names.
        """
        runners, tau = self._begin("judge", temperature, batch=batch)
        ids = self._ids(sentences, cut)
        for number, pair in enumerate(_images(images)):
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"request {number} has no pair of images", fix="Give (left, right) of each sentence.")
        products = []
        for inputs, size in self._batches(images, ids, batch):
            logits, tokens = judge(runners, inputs, tau)
            for row, used in zip(logits[:size], tokens[:size], strict=True):
                false, true = row.tolist()
                products.append(Judgement(true > false, row.softmax(dim=0)[1].item(), (false, true), used, size))
        return products

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        candidates: Sequence[str] | None = None,
        k: int | None = None,
        beams: int = 3,
        max_length: int = 10,
        min_length: int = 1,
        batch: int | None = None,
        temperature: float | None = None,
        cut: bool = False,
    ) -> list[Answer]:
        """Answers to questions about images (vqa): the best of `candidates`, or without them written freely.

        Args:
            images: one of each request.
            questions: as many.
            candidates: answers to choose from, all different.
            k: candidates, likeliest first words first, that are read to the end; all where there are fewer. None is
                128, or as many as the decoder was built for.
            beams: texts that are pursued; 1 is greedy search.
            max_length, min_length: ids of a written answer, see `madtp.tasks.generation.Limits`; [DEC] counts.
            batch: requests that run together; None is one, and no answer depends on another request.
            temperature: zero is the dense model; None is the default one.
            cut: read an overlong question without its end instead of refusing it.

        Raises:
            InputError: another task's session; a request or a candidate that cannot be used, which it names; more
                beams, candidates or ids than the decoder was built for.
        """
        numbers = {"k": k, "beams": beams, "max_length": max_length, "min_length": min_length, "batch": batch}
        runners, tau = self._begin("answer", temperature, **numbers)
        assert isinstance(self.config, VqaConfig)
        assert isinstance(self.processor, TextProcessor)
        ids = self._ids(questions, cut)
        products = []
        if candidates is None and k is not None:
            raise InputError("k does not apply without candidates", "It is how many of them are read.", "Leave it out.")
        if candidates is not None:
            k = min(self._most_texts(K_ANSWERS) if k is None else k, len(_texts(candidates, "candidates")))
            self._check_decoder(k, "candidates (k)", 1, 1)
            check_answers(candidates, "the candidates are", "candidate")
            known = [self.processor.answer_ids(candidate) for candidate in candidates]
            self._check_candidates(candidates, known)
            if self.batch.min > 1:
                raise InputError(
                    "this artifact cannot rank candidates",
                    f"They are read question by question, and it was built for batches of {self.batch}.",
                    f"Export again with --batch 1:{self.batch.opt}:{self.batch.max}, or ask without candidates.",
                )
            answers = self.processor.answers(candidates)
            for inputs, size in self._batches(images, ids, batch):
                ranked, tokens = choose_answers(self.config, runners, inputs, answers, k, tau)
                for number, used in enumerate(tokens[:size]):
                    order = ranked.topk_log_prob_sum[number].argsort(descending=True, stable=True)
                    scores = ranked.topk_log_prob_sum[number][order].tolist()
                    places = ranked.topk_index[number][order].tolist()
                    top = [(candidates[place], score) for place, score in zip(places, scores, strict=True)]
                    best = int(ranked.answer_index[number])
                    products.append(Answer(candidates[best], "ranked", top, known[best], used, size))
            return products
        self._check_decoder(beams, "beams", 1, max_length)
        for inputs, size in self._batches(images, ids, batch):
            search = {"beams": beams, "max_length": max_length, "min_length": min_length}
            written, tokens = generate_answers(self.config, runners, inputs, tau, **search)
            for row, used in zip(written[:size].tolist(), tokens[:size], strict=True):
                text = _unpadded(row, self.config.pad_token_id)
                products.append(Answer(self.processor.decode(text), "generated", [], text, used, size))
        return products

    def caption(
        self,
        images: Sequence[Image.Image],
        *,
        prompt: str | None = None,
        beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        batch: int | None = None,
        temperature: float | None = None,
    ) -> list[Caption]:
        """Sentences about images (caption).

        Args:
            images: one of each request.
            prompt: what every caption goes on from; None is the manifest's.
            beams: texts that are pursued; 1 is greedy search.
            max_length, min_length: ids of a caption, see `madtp.tasks.generation.Limits`; the prompt counts.
            batch: images that run together; None is one, and no caption depends on another image.
            temperature: zero is the dense model; None is the default one.

        Raises:
            InputError: another task's session, an image that cannot be used, or more beams or ids than the decoder was
                built for.
        """
        runners, tau = self._begin(
            "caption", temperature, beams=beams, max_length=max_length, min_length=min_length, batch=batch
        )
        assert isinstance(self.config, CaptionConfig)
        assert isinstance(self.processor, TextProcessor)
        if prompt is None:
            prompt = self.manifest.preprocessing.text.prompt
        (prompt,) = _texts([prompt], "prompts")
        first = self.processor.prompt_ids(prompt)
        self._check_decoder(beams, "beams", len(first), max_length)
        begins = self.processor.decode(first)
        products = []
        for inputs, size in self._batches(images, [first] * len(_images(images)), batch):
            search = {"beams": beams, "max_length": max_length, "min_length": min_length}
            written, tokens = generate_captions(self.config, runners, inputs, tau, **search)
            for row, used in zip(written[:size].tolist(), tokens[:size], strict=True):
                ids = _unpadded(row, self.config.pad_token_id)
                text = self.processor.decode(ids).removeprefix(begins).strip()
                products.append(Caption(text, ids, used, size))
        return products

    def rank(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        *,
        k_test: int | None = None,
        batch: int | None = None,
        image_batch: int | None = None,
        text_batch: int | None = None,
        match_batch: int | None = None,
        temperature: float | None = None,
        cut: bool = False,
    ) -> Ranking:
        """Texts for every image and images for every text (retrieval, clip).

        Args:
            images: any number.
            texts: any number.
            k_test: retrieval: candidates of each row that are matched (see `madtp.tasks.ranking.rank`); None is 256.
                clip matches nothing.
            batch: images that are encoded together, texts that are, and pairs that are matched together; None is one,
                and no embedding or matching score depends on what else is ranked.
            image_batch, text_batch, match_batch: the three apart; None is `batch`.
            temperature: zero is the dense model; None is the default one.
            cut: read an overlong text without its end instead of refusing it.

        Raises:
            InputError: another task's session, or an image or text that cannot be used.
        """
        batches = {"image_batch": image_batch, "text_batch": text_batch, "match_batch": match_batch}
        runners, tau = self._begin("rank", temperature, k_test=k_test, batch=batch, **batches)
        if k_test is not None and k_test < 1:
            raise InputError(f"k_test is {k_test}", "It has to be 1 or more.")
        for name, option in (("k_test", k_test), ("match_batch", match_batch)):
            if option is not None and self.task == "clip":
                raise InputError(f"{name} does not apply to clip", "It compares embeddings and matches no pairs.")
        size = self._size(batch, "batch")
        sizes = RankingBatch(
            size if image_batch is None else self._size(image_batch, "image_batch"),
            size if text_batch is None else self._size(text_batch, "text_batch"),
            size if match_batch is None else self._size(match_batch, "match_batch"),
        )
        ids, mask = self.processor.batch(_texts(texts, "texts"), cut=cut)
        pictures = self._pictures(images, sizes.images)
        filled = {name: FilledRunner(runner, self.batch.min) for name, runner in runners.items()}
        if isinstance(self.config, RetrievalConfig) and mask is not None:
            return rank_pairs(self.config, filled, pictures, ids, mask, k_test or K_TEST, sizes, tau)
        return compare_embeddings(filled, pictures, ids, sizes, tau)

    def _begin(self, method: str, temperature: float | None, **numbers: int | None) -> tuple[dict[str, Runner], float]:
        """The parts and the temperature of a request, once it is clear that it can be made; `numbers` it has to have
        as whole ones."""
        if self._process != os.getpid():
            raise InputError(
                "the session was opened in another process",
                "What runs it stayed there: its threads, its place on a GPU. Waiting for them would never end.",
                "Open a session in each process.",
            )
        if METHODS[self.task] != method:
            raise InputError(
                f"this session is of a {self.task} model, which cannot {method}",
                fix=f"Use session.{METHODS[self.task]}(...).",
            )
        if not self.runners:
            raise InputError("the session is closed", fix="Open another one.")
        for name, number in numbers.items():
            if number is not None and not hasattr(number, "__index__"):
                raise InputError(f"{name} is {shown(number)}", "It has to be a whole number.")
        tau = self.temperature if temperature is None else temperature
        if not hasattr(tau, "__float__") or not 0 <= tau <= MAX_TEMPERATURE:
            raise InputError(
                f"the temperature is {tau}", "It has to be a finite number, zero or more.", "Use 0 for the dense model."
            )
        return self.runners, float(tau)

    def _size(self, batch: int | None, name: str) -> int:
        """How many run together."""
        if batch is None:
            return 1
        if not 1 <= batch <= self.batch.max:
            raise InputError(
                f"{name} is {batch}",
                f"The artifact takes up to {self.batch.max} requests at a time.",
                f"Choose another number, or export again with --batch 1:{self.batch.opt}:N." if batch > 1 else "",
            )
        return batch

    def _ids(self, texts: Sequence[str], cut: bool) -> list[list[int]]:
        """Ids of every text, which the artifact can take."""
        name = TEXTS[self.task]
        rows = self.processor.rows(_texts(texts, name), name.removesuffix("s"), cut=cut)
        for number, row in enumerate(rows):
            if not self.text.min <= len(row) <= self.text.max:
                raise InputError(
                    f"{name.removesuffix('s')} {number}, {shown(texts[number])}, has {len(row)} tokens",
                    f"The artifact was built for {self.text.min} to {self.text.max}.",
                    "Use another text, or export again with another --text.",
                )
        return rows

    def _batches(
        self, images: Sequence[Any], ids: list[list[int]], batch: int | None
    ) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Inputs of one batch after another, prepared when they are needed, and how many requests each holds.

        Where the artifact takes no fewer than so many, the last request follows as often as it has to. Nothing depends
        on that: copies keep as many tokens as what they are copies of.
        """
        if len(_images(images)) != len(ids):
            raise InputError(
                f"there are {len(images)} requests by their images and {len(ids)} by their texts",
                fix="Give as many of both.",
            )
        for begin, end in spans(len(ids), self._size(batch, "batch"), "requests"):
            requests = [Request(self._prepared(images, number), ids[number]) for number in range(begin, end)]
            copies = [requests[-1]] * (self.batch.min - len(requests))
            yield collate([*requests, *copies], self.config), len(requests)

    def _prepared(self, images: Sequence[Any], number: int) -> tuple[Tensor, ...]:
        """The images of one request."""
        if self.task != "nlvr":
            return (self._pixels(images[number], f"image {number}"),)
        left, right = images[number]
        return self._pixels(left, f"the left image {number}"), self._pixels(right, f"the right image {number}")

    def _pictures(self, images: Sequence[Image.Image], size: int) -> Iterator[Tensor]:
        """Batches of images, prepared when they are needed: thousands may be ranked."""
        for begin, end in spans(len(_images(images)), size, "images"):
            yield torch.stack([self._pixels(images[number], f"image {number}") for number in range(begin, end)])

    def _pixels(self, image: object, name: str) -> Tensor:
        settings = self.manifest.preprocessing.image
        return image_tensor(check_image(image, name), settings.size, settings.mean, settings.std)

    def _check_decoder(self, texts: int, name: str, prompt: int, ids: int, by: str = "") -> None:
        """Refuse what the decoder was not built for: texts at once, ids of a prompt, ids of a text (asked for `by`)."""
        profile = self._decoder_profile()
        _, most_texts, most_new = profile["input_ids"].max
        most_ids = profile["past"].max[5] + 2  # the last id is written, not read, and the one before it is new
        for what, asked, most, fix in (
            (name, texts, most_texts, f"--beams {texts}"),
            ("ids of a prompt", prompt, most_new, f"--max-length {3 * prompt + 1}"),
            ("ids of a text", ids, most_ids, f"--max-length {ids}"),
        ):
            if not 1 <= asked <= most:
                raise InputError(
                    f"{asked} {what} were asked for{by}",
                    f"The artifact's decoder was built for 1 to {most}.",
                    f"Ask for fewer, or export again with {fix}." if asked > most else "Ask for one at least.",
                )

    def _most_texts(self, wanted: int) -> int:
        """`wanted`, or as many texts at once as the decoder was built for."""
        return min(wanted, self._decoder_profile()["input_ids"].max[1])

    def _decoder_profile(self) -> Mapping[str, Profile]:
        return next(part.profile for part in self.manifest.parts if part.name == "decoder")

    def _check_candidates(self, candidates: Sequence[str], ids: Sequence[Sequence[int]]) -> None:
        """Refuse a candidate that has no tokens, or more than the decoder was built for."""
        lengths = [len(row) for row in ids]
        if min(lengths) <= 2:  # [DEC] and [SEP]
            number = lengths.index(min(lengths))
            raise InputError(
                f"candidate {number}, {shown(candidates[number])}, has no words",
                "Nothing is left of it as the model reads it.",
                "Leave it out.",
            )
        number = lengths.index(max(lengths))
        self._check_decoder(1, "candidates", 1, max(lengths), f", by candidate {number}, {shown(candidates[number])}")


def spans(count: int, size: int, what: str) -> list[tuple[int, int]]:
    """Begin and end of batches of `size`; the last one is what is left. InputError where there is nothing."""
    if not count:
        raise InputError(f"there are 0 {what}", fix="Give at least one.")
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def _processor(artifact: Artifact, given: Path | None) -> Processor:
    """What turns texts into ids; its vocabulary is the one that the artifact was exported with, where it was with one.

    Raises:
        InputError: there is none, or another model's.
    """
    config, entry = artifact.config, artifact.manifest.preprocessing.text.vocabulary
    if given is not None and isinstance(config, ClipConfig):
        raise InputError(
            f"the vocabulary '{given}' does not apply to clip", "Its table comes with a package.", "Leave it out."
        )
    path = given or artifact.vocabulary
    if path is None and not isinstance(config, ClipConfig):
        raise InputError(
            f"there is no vocabulary beside '{artifact.manifest.artifact}'",
            "No vocab.txt lay beside the checkpoint when it was exported, so texts cannot be turned into ids.",
            "Name the checkpoint's vocab.txt (vocabulary=..., or --vocab).",
        )
    processor = text_processor(config, path)
    if entry is not None and processor.sha256 != entry.sha256:
        raise InputError(
            f"the vocabulary '{path or 'of clip'}' is not the one that the artifact was exported with",
            "Its sha256 is another.",
            "Use the vocab.txt of the checkpoint." if path else "Install the versions in constraints.txt.",
        )
    return processor


def _images(images: Sequence[Any]) -> Sequence[Any]:
    if isinstance(images, Image.Image):
        raise InputError("the images are one image", "They have to be a list.", "Give [image].")
    if isinstance(images, Mapping) or not hasattr(images, "__len__") or not hasattr(images, "__getitem__"):
        raise InputError("the images are no list", f"They are of type {type(images).__name__}.", "Give list(images).")
    return images


def _texts(texts: Sequence[Any], what: str) -> Sequence[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InputError(f"the {what} are no list of texts", fix=f"Give {what} as a list of str.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            why = f"Counted from 0, number {number} is {shown(text)}, of the type {type(text).__name__}."
            raise InputError(f"the {what} are no list of texts", why, f"Give {what} as a list of str.")
    if not texts:
        raise InputError(f"there are no {what}", fix="Give at least one.")
    return texts


def _unpadded(ids: list[int], pad: int) -> list[int]:
    """The ids without what fills the row behind them."""
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids
