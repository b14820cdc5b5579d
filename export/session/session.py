"""Requests to an artifact: images and texts in, the task's product out. See also `python -m export run`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Never

import torch
from PIL import Image
from torch import Tensor

from export.engine.op_library import PROVIDERS, Provider
from export.engine.profile import batch_and_text
from export.errors import OptionError
from export.runtime.artifact import Artifact
from export.runtime.buckets import OverflowCount
from export.runtime.checked import finite_runners
from export.runtime.forks import forked
from export.runtime.runner import RunnerOptions
from export.session.arguments import (
    DecoderLimits,
    check_batch,
    check_images,
    check_temperature,
    check_texts,
    check_whole,
    spans,
)
from export.session.products import Answer, Caption, Judgement, Ranking, RankingBatch
from export.session.requests import (
    FilledRunner,
    choose_answers,
    compare_embeddings,
    generate_answers,
    generate_captions,
    judge_statements,
    rank_pairs,
)
from export.session.vocabulary import artifact_processor
from madtp.data.images import check_image
from madtp.data.preprocess import image_tensor
from madtp.data.samples import Request, collate
from madtp.data.texts import check_answers, shown
from madtp.data.tokenize import TextProcessor
from madtp.errors import InputError
from madtp.models.config import CaptionConfig, RetrievalConfig, VqaConfig
from madtp.tasks.answers import K_ANSWERS
from madtp.tasks.ranking import K_TEST
from madtp.tasks.requests import Runner

METHODS = {"nlvr": "judge", "vqa": "answer", "caption": "caption", "retrieval": "rank", "clip": "rank"}
TEXTS = {"nlvr": "sentences", "vqa": "questions"}  # what each task calls them


class Session:
    """An open artifact. Use it as a context, or call `close`.

    Images are PIL images of any 8-bit mode; their EXIF orientation is ignored, as in the published code. No answer
    depends on another request: those of a packed artifact run in batches of its `--batch` OPT, unless its activations
    are quantized while it runs; those of a dynamic one run one at a time. `batch=` runs more per batch, as published
    evaluations do: a dynamic batch keeps one token count (`"batching": "reference"` in the manifest) and pads its
    texts, so that an answer can depend on the others in its batch. Every product states its batch.

    `temperature=` is the pruning temperature: 0 is dense, None is the manifest's. `cut=` truncates an overlong text, as
    the published code does, instead of refusing it.

    Threads may share a session and its images. Processes may not: each opens its own session.

    Args:
        manifest: `out.json`, or the artifact beside it.
        vocabulary: `vocab.txt` of the checkpoint; None is the file that the manifest names. CLIP needs none.
        threads: number of threads of ONNX Runtime; None leaves the choice to it.
        provider: of ONNX Runtime: "cpu" or "cuda".
        library: op library, whose kernels take the place of the custom ops' function bodies in an `.onnx` artifact;
            None is the installed one where it can be used, "none" runs the bodies.

    Attributes:
        task: "nlvr", "vqa", "caption", "retrieval" or "clip".
        temperature: the manifest's, which is the default of every request.
        batch, text: ranges of requests per batch, and of tokens per text, that the artifact was built for.
        execution: how ONNX Runtime runs it, with which library, or why without; None for a plan.

    Raises:
        ManifestError: no manifest, or its files are missing, swapped, or not of one checkpoint.
        InputError: there is no vocabulary, or it does not belong to the model.
        BackendError: no GPU of this machine can run the plan, the runtime refuses a file or has no such provider here.
        PluginError: the library that was named may not be loaded, or cannot be.
        OptionError: a library or a provider for a plan.
    """

    def __init__(
        self,
        manifest: Path | str,
        *,
        vocabulary: Path | None = None,
        threads: int | None = None,
        provider: Provider = "cpu",
        library: str | Path | None = None,
    ) -> None:
        if provider not in PROVIDERS:
            raise OptionError(f"provider is {provider!r}", "", f"Use one of {', '.join(PROVIDERS)}.")
        self._artifact = Artifact.open(Path(manifest))
        self.manifest, self.config = self._artifact.manifest, self._artifact.config
        self.task: str = self.manifest.task
        self.temperature = float(self.manifest.temperature)
        self.processor = artifact_processor(self._artifact, vocabulary)
        self.batch, self.text = batch_and_text(self.manifest)
        self._usual_batch = self.batch.opt if self.manifest.is_batch_invariant else 1
        self.backend = self._artifact.backend
        self._artifact.check_runs()
        self.execution = self._artifact.execution(library, provider)
        if forked():
            torch.set_num_threads(1)  # its pool stayed with the parent; a call would wait for it for ever
        opened = self._artifact.open_runners(RunnerOptions(threads, execution=self.execution))
        self.runners: dict[str, Runner] = {**finite_runners(opened, "asked by a session")}
        self._process = os.getpid()

    @property
    def overflows(self) -> OverflowCount:
        """Calls of engines with less room than for everything, and how often one did not have enough: the call then ran
        again with more. None of either where sizes depend on data."""
        return self._artifact.overflows

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Release the parts; no request can follow. In a forked child they stay open, because they are its parent's."""
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
            images: the left and right image of each request.

        Raises:
            InputError: another task's session, or a request that cannot be used, which it names.
        """
        runners, tau = self._begin("judge", temperature, batch=batch)
        ids = self._ids(sentences, cut)
        for number, pair in enumerate(check_images(images)):
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"request {number} has no pair of images", fix="Give (left, right) of each sentence.")
        products = []
        for inputs, size in self._batches(images, ids, batch):
            logits, tokens = judge_statements(runners, inputs, tau)
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
            candidates: answers to choose from, all different.
            k: candidates, likeliest first words first, that are read to the end; all where there are fewer. None is
                128, or as many as the decoder was built for.
            beams: beams of the search; 1 is greedy search.
            max_length, min_length: ids of a written answer, see `madtp.tasks.generation.Limits`; [DEC] counts.

        Raises:
            InputError: another task's session; a request or a candidate that cannot be used, which it names; more
                beams, candidates or ids than the decoder was built for.
        """
        numbers = {"k": k, "beams": beams, "max_length": max_length, "min_length": min_length, "batch": batch}
        runners, tau = self._begin("answer", temperature, **numbers)
        assert isinstance(self.config, VqaConfig)
        assert isinstance(self.processor, TextProcessor)
        batches = self._batches(images, self._ids(questions, cut), batch)
        decoder = DecoderLimits.read(self.manifest)
        if candidates is not None:
            k = min(min(K_ANSWERS, decoder.texts) if k is None else k, len(check_texts(candidates, "candidates")))
            decoder.check(k, "candidates (k)", 1, 1)
            return self._ranked(runners, batches, candidates, k, tau)
        if k is not None:
            raise InputError("k does not apply without candidates", "It is how many of them are read.", "Leave it out.")
        decoder.check(beams, "beams", 1, max_length)
        products = []
        for inputs, size in batches:
            search = {"beams": beams, "max_length": max_length, "min_length": min_length}
            written, tokens = generate_answers(self.config, runners, inputs, tau, **search)
            for row, used in zip(written[:size].tolist(), tokens[:size], strict=True):
                text = _unpadded(row, self.config.pad_token_id)
                products.append(Answer(self.processor.decode(text), "generated", [], text, used, size))
        return products

    def _ranked(
        self,
        runners: dict[str, Runner],
        batches: Iterator[tuple[dict[str, Tensor], int]],
        candidates: Sequence[str],
        k: int,
        temperature: float,
    ) -> list[Answer]:
        """Answers chosen among the candidates, `k` of which are read to the end."""
        assert isinstance(self.config, VqaConfig)
        assert isinstance(self.processor, TextProcessor)
        check_answers(candidates, "the candidates are", "candidate")
        known = [self.processor.answer_ids(candidate) for candidate in candidates]
        DecoderLimits.read(self.manifest).check_candidates(candidates, known)
        if self.batch.min > 1:
            raise InputError(
                "this artifact cannot rank candidates",
                f"They are read question by question, and it was built for batches of {self.batch}.",
                f"Export again with --batch 1:{self.batch.opt}:{self.batch.max}, or ask without candidates.",
            )
        answers = self.processor.answers(candidates)
        products = []
        for inputs, size in batches:
            ranked, tokens = choose_answers(self.config, runners, inputs, answers, k, temperature)
            for number, used in enumerate(tokens[:size]):
                order = ranked.topk_log_prob_sum[number].argsort(descending=True, stable=True)
                scores = ranked.topk_log_prob_sum[number][order].tolist()
                places = ranked.topk_index[number][order].tolist()
                top = [(candidates[place], score) for place, score in zip(places, scores, strict=True)]
                best = int(ranked.answer_index[number])
                products.append(Answer(candidates[best], "ranked", top, known[best], used, size))
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
            prompt: prompt that every caption continues; None is the manifest's.
            beams: beams of the search; 1 is greedy search.
            max_length, min_length: ids of a caption, see `madtp.tasks.generation.Limits`; the prompt counts.

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
        (prompt,) = check_texts([prompt], "prompts")
        first = self.processor.prompt_ids(prompt)
        DecoderLimits.read(self.manifest).check(beams, "beams", len(first), max_length)
        begins = self.processor.decode(first)
        products = []
        for inputs, size in self._batches(images, [first] * len(check_images(images)), batch):
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
            k_test: candidates that retrieval matches in each row (see `madtp.tasks.ranking.rank`); None is 256. clip
                matches nothing.
            batch: images, texts and matched pairs per batch; None is 1, or the usual batch of a packed artifact: no
                score depends on what else is ranked.
            image_batch, text_batch, match_batch: each of the three on its own; None is `batch`.

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
        size = self._batch(batch)
        sizes = RankingBatch(
            *(size if given is None else check_batch(given, self.batch, name) for name, given in batches.items())
        )
        ids, mask = self.processor.batch(check_texts(texts, "texts"), cut=cut)
        pictures = self._pictures(images, sizes.images)
        filled = {name: FilledRunner(runner, self.batch.min) for name, runner in runners.items()}
        if isinstance(self.config, RetrievalConfig) and mask is not None:
            return rank_pairs(self.config, filled, pictures, ids, mask, k_test or K_TEST, sizes, tau)
        return compare_embeddings(filled, pictures, ids.split(sizes.texts), sizes, tau)

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
        check_whole(numbers)
        return self.runners, check_temperature(self.temperature if temperature is None else temperature)

    def _ids(self, texts: Sequence[str], cut: bool) -> list[list[int]]:
        """Ids of every text, which the artifact can take."""
        name = TEXTS[self.task]
        rows = self.processor.rows(check_texts(texts, name), name.removesuffix("s"), cut=cut)
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
        if len(check_images(images)) != len(ids):
            raise InputError(
                f"there are {len(images)} requests by their images and {len(ids)} by their texts",
                fix="Give as many of both.",
            )
        for begin, end in spans(len(ids), self._batch(batch), "requests"):
            requests = [Request(self._prepared(images, number), ids[number]) for number in range(begin, end)]
            copies = [requests[-1]] * (self.batch.min - len(requests))
            yield collate([*requests, *copies], self.config), len(requests)

    def _batch(self, batch: int | None) -> int:
        return check_batch(batch, self.batch, "batch", self._usual_batch)

    def _prepared(self, images: Sequence[Any], number: int) -> tuple[Tensor, ...]:
        """The images of one request."""
        if self.task != "nlvr":
            return (self._pixels(images[number], f"image {number}"),)
        left, right = images[number]
        return self._pixels(left, f"the left image {number}"), self._pixels(right, f"the right image {number}")

    def _pictures(self, images: Sequence[Image.Image], size: int) -> Iterator[Tensor]:
        """Batches of images, prepared when they are needed: thousands may be ranked."""
        for begin, end in spans(len(check_images(images)), size, "images"):
            yield torch.stack([self._pixels(images[number], f"image {number}") for number in range(begin, end)])

    def _pixels(self, image: object, name: str) -> Tensor:
        settings = self.manifest.preprocessing.image
        return image_tensor(check_image(image, name), settings.size, settings.mean, settings.std)


def _unpadded(ids: list[int], pad: int) -> list[int]:
    """The ids without what fills the row behind them."""
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids
