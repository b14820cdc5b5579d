"""Asking an artifact: images and texts in, the task's product out. `python -m export run` is its command line."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from export.artifact import close_runners, model_config, open_parts, runtime
from export.errors import BackendError
from export.manifest import check_files, open_manifest
from export.products import Answer, Caption, Judgement, Ranking
from export.profile import batch_and_text
from export.requests import choose_answers, compare_embeddings, generate_answers, generate_captions, judge, rank_pairs
from export.runner import RunnerOptions
from madtp.checkpoint import MAX_TEMPERATURE
from madtp.config import CaptionConfig, ClipConfig, RetrievalConfig, VqaConfig
from madtp.errors import InputError
from madtp.images import check_image
from madtp.preprocess import image_tensor
from madtp.samples import Config, Processor, Request, collate
from madtp.tasks import Runner
from madtp.tokenize import TextProcessor, text_processor

METHODS = {"nlvr": "judge", "vqa": "answer", "caption": "caption", "retrieval": "rank", "clip": "rank"}
TEXTS = {"nlvr": "sentences", "vqa": "questions"}  # what each task calls them
K_TEST = 256  # candidates of each row, of the published evaluation


class Session:
    """An opened artifact. Use as a context, or `close` it.

    Images are PIL images of any 8-bit mode; their EXIF orientation is ignored, as the published readers do. Requests
    run in batches as large as the artifact was built for; a batch runs with one K, so that an answer can depend on
    what it is asked together with (`"batching": "reference"` in the manifest).

    Args:
        manifest: `out.json`, or the artifact that lies beside it.
        vocabulary: `vocab.txt` of the checkpoint; None is the file that the manifest names. CLIP needs none.
        threads: of ONNX Runtime; None is its own choice.

    Attributes:
        task: "nlvr", "vqa", "caption", "retrieval" or "clip".
        config: sizes of the model.
        manifest: as read.
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
        path, self.manifest = open_manifest(Path(manifest))
        check_files(self.manifest, path.parent)
        self.task: str = self.manifest["task"]
        self.config = model_config(self.manifest, path)
        self.temperature = float(self.manifest["temperature"])
        self.processor = _processor(self.manifest, path.parent, vocabulary, self.config)
        self.batch, self.text = batch_and_text(self.manifest["parts"])
        self.backend = runtime(self.manifest)
        if not self.backend.can_run:
            raise BackendError(
                f"no GPU of this machine can run the plan '{path.parent / self.manifest['artifact']}'",
                f"It was built with {self.backend.name}: {self.backend.reason}.",
                "Run it on a machine with such a GPU, or export to .onnx, which runs anywhere.",
            )
        self.runners: dict[str, Runner] = open_parts(self.manifest, path.parent, self.backend, RunnerOptions(threads))

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the parts; nothing can be asked any more."""
        close_runners(self.runners)
        self.runners = {}

    def judge(
        self,
        images: Sequence[tuple[Image.Image, Image.Image]],
        sentences: Sequence[str],
        *,
        temperature: float | None = None,
        cut: bool = False,
    ) -> list[Judgement]:
        """Whether each sentence is true of its two images (nlvr).

        Args:
            images: left and right one of each request.
            sentences: as many.
            temperature: zero is the dense model; None is the default one.
            cut: read an overlong sentence without its end, as the published code does, instead of refusing it.

        Raises:
            InputError: another task's session, or a request that cannot be used, which it names.
        """
        tau = self._begin("judge", temperature)
        ids = self._ids(sentences, cut)
        for number, pair in enumerate(images):
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"request {number} has no pair of images", fix="Give (left, right) of each sentence.")
        products = []
        for inputs in self._batches(images, ids):
            logits, tokens = judge(self.runners, inputs, tau)
            for row, used in zip(logits, tokens, strict=True):
                false, true = row.tolist()
                products.append(Judgement(true > false, row.softmax(dim=0)[1].item(), (false, true), used))
        return products

    def answer(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        *,
        candidates: Sequence[str] | None = None,
        k: int = 128,
        beams: int = 3,
        max_length: int = 10,
        min_length: int = 1,
        temperature: float | None = None,
        cut: bool = False,
    ) -> list[Answer]:
        """Answers to questions about images (vqa): the best of `candidates`, or without them written freely.

        Args:
            images: one of each request.
            questions: as many.
            candidates: answers to choose from.
            k: candidates, likeliest first words first, that are read to the end; all where there are fewer.
            beams: texts that are pursued; 1 is greedy search.
            max_length, min_length: ids of a written answer, see `madtp.generation.Limits`; [DEC] counts.
            temperature: zero is the dense model; None is the default one.
            cut: read an overlong question without its end instead of refusing it.

        Raises:
            InputError: another task's session, a request that cannot be used, or more beams, candidates or ids than
                the decoder was built for.
        """
        tau = self._begin("answer", temperature)
        assert isinstance(self.config, VqaConfig)
        assert isinstance(self.processor, TextProcessor)
        ids = self._ids(questions, cut)
        products = []
        if candidates is not None:
            known = [self.processor.answer_ids(candidate) for candidate in _texts(candidates, "candidates")]
            k = min(k, len(known))
            self._check_decoder(k, "candidates (k)", 1, max(map(len, known)))
            if self.batch.min > 1:
                raise InputError(
                    "this artifact cannot rank candidates",
                    f"They are read question by question, and it was built for batches of {self.batch}.",
                    f"Export again with --batch 1:{self.batch.opt}:{self.batch.max}, or ask without candidates.",
                )
            answers = self.processor.answers(candidates)
            for inputs in self._batches(images, ids):
                ranked, tokens = choose_answers(self.config, self.runners, inputs, answers, k, tau)
                for number, used in enumerate(tokens):
                    order = ranked.topk_log_prob_sum[number].argsort(descending=True, stable=True)
                    scores = ranked.topk_log_prob_sum[number][order].tolist()
                    places = ranked.topk_index[number][order].tolist()
                    top = [(candidates[place], score) for place, score in zip(places, scores, strict=True)]
                    best = int(ranked.answer_index[number])
                    products.append(Answer(candidates[best], "ranked", top, known[best], used))
            return products
        self._check_decoder(beams, "beams", 1, max_length)
        for inputs in self._batches(images, ids):
            search = {"beams": beams, "max_length": max_length, "min_length": min_length}
            written, tokens = generate_answers(self.config, self.runners, inputs, tau, **search)
            for row, used in zip(written.tolist(), tokens, strict=True):
                text = _unpadded(row, self.config.pad_token_id)
                products.append(Answer(self.processor.decode(text), "generated", [], text, used))
        return products

    def caption(
        self,
        images: Sequence[Image.Image],
        *,
        prompt: str | None = None,
        beams: int = 3,
        max_length: int = 20,
        min_length: int = 5,
        temperature: float | None = None,
    ) -> list[Caption]:
        """Sentences about images (caption).

        Args:
            images: one of each request.
            prompt: what every caption goes on from; None is the manifest's.
            beams: texts that are pursued; 1 is greedy search.
            max_length, min_length: ids of a caption, see `madtp.generation.Limits`; the prompt counts.
            temperature: zero is the dense model; None is the default one.

        Raises:
            InputError: another task's session, an image that cannot be used, or more beams or ids than the decoder was
                built for.
        """
        tau = self._begin("caption", temperature)
        assert isinstance(self.config, CaptionConfig)
        assert isinstance(self.processor, TextProcessor)
        first = self.processor.prompt_ids(
            self.manifest["preprocessing"]["text"]["prompt"] if prompt is None else prompt
        )
        self._check_decoder(beams, "beams", len(first), max_length)
        begins = self.processor.decode(first)
        products = []
        for inputs in self._batches(images, [first] * len(_images(images))):
            search = {"beams": beams, "max_length": max_length, "min_length": min_length}
            written, tokens = generate_captions(self.config, self.runners, inputs, tau, **search)
            for row, used in zip(written.tolist(), tokens, strict=True):
                ids = _unpadded(row, self.config.pad_token_id)
                text = self.processor.decode(ids).removeprefix(begins).strip()
                products.append(Caption(text, ids, used))
        return products

    def rank(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        *,
        k_test: int | None = None,
        image_batch: int | None = None,
        text_batch: int | None = None,
        temperature: float | None = None,
        cut: bool = False,
    ) -> Ranking:
        """Texts for every image and images for every text (retrieval, clip).

        Args:
            images: any number.
            texts: any number.
            k_test: retrieval: candidates of each row that are matched, in batches of the largest size that the artifact
                was built for (see `madtp.ranking.rank`); None is 256. clip matches nothing.
            image_batch, text_batch: that are encoded together; None, or more than that size, is that size.
            temperature: zero is the dense model; None is the default one.
            cut: read an overlong text without its end instead of refusing it.

        Raises:
            InputError: another task's session, or an image or text that cannot be used.
        """
        tau = self._begin("rank", temperature)
        least = self.batch.min
        for name, size, lowest in (
            ("k_test", k_test, 1),
            ("image_batch", image_batch, least),
            ("text_batch", text_batch, least),
        ):
            if size is not None and size < lowest:
                raise InputError(f"{name} is {size}", f"It has to be {lowest} or more.")
        if k_test is not None and self.task == "clip":
            raise InputError("k_test does not apply to clip", "It compares embeddings and matches no pairs.")
        ids, mask = self.processor.batch(_texts(texts, "texts"), cut=cut)
        words = min(text_batch or self.batch.max, self.batch.max)
        pictures = self._pictures(images, image_batch)
        if isinstance(self.config, RetrievalConfig) and mask is not None:
            sizes = {"k_test": k_test or K_TEST, "text_batch": words, "match_batch": self.batch.max}
            return rank_pairs(self.config, self.runners, pictures, ids, mask, temperature=tau, **sizes)
        batches = ids.split(batch_sizes(len(ids), least, words, "texts"))
        return compare_embeddings(self.runners, pictures, batches, tau)

    def _begin(self, method: str, temperature: float | None) -> float:
        """The temperature of a request, once it is clear that it can be made."""
        if METHODS[self.task] != method:
            raise InputError(
                f"this session is of a {self.task} model, which cannot {method}",
                fix=f"Use session.{METHODS[self.task]}(...).",
            )
        if not self.runners:
            raise InputError("the session is closed", fix="Open another one.")
        tau = self.temperature if temperature is None else temperature
        if not 0 <= tau <= MAX_TEMPERATURE:
            raise InputError(
                f"the temperature is {tau}", "It has to be a finite number, zero or more.", "Use 0 for the dense model."
            )
        return float(tau)

    def _ids(self, texts: Sequence[str], cut: bool) -> list[list[int]]:
        """Ids of every text, which the artifact can take."""
        rows = [self.processor.ids(text, cut=cut) for text in _texts(texts, TEXTS[self.task])]
        for text, row in zip(texts, rows, strict=True):
            if not self.text.min <= len(row) <= self.text.max:
                raise InputError(
                    f"the text '{text[:60]}' has {len(row)} tokens",
                    f"The artifact was built for {self.text.min} to {self.text.max}.",
                    "Use another text, or export again with another --text.",
                )
        return rows

    def _batches(self, images: Sequence[Any], ids: list[list[int]]) -> Iterator[dict[str, Tensor]]:
        """Inputs of one batch after another, as large as the artifact takes them; prepared when they are needed."""
        if len(_images(images)) != len(ids):
            raise InputError(
                f"there are {len(images)} requests by their images and {len(ids)} by their texts",
                fix="Give as many of both.",
            )
        sizes = batch_sizes(len(ids), self.batch.min, self.batch.max, "requests")
        start = 0
        for size in sizes:
            numbers = range(start, start + size)
            yield collate([Request(self._prepared(images, number), ids[number]) for number in numbers], self.config)
            start += size

    def _prepared(self, images: Sequence[Any], number: int) -> tuple[Tensor, ...]:
        """The images of one request."""
        if self.task != "nlvr":
            return (self._pixels(images[number], f"image {number}"),)
        left, right = images[number]
        return self._pixels(left, f"the left image {number}"), self._pixels(right, f"the right image {number}")

    def _pictures(self, images: Sequence[Image.Image], size: int | None) -> Iterator[Tensor]:
        """Batches of images, prepared when they are needed: thousands may be ranked."""
        largest = min(size or self.batch.max, self.batch.max)
        sizes = batch_sizes(len(_images(images)), self.batch.min, largest, "images")
        start = 0
        for size in sizes:
            numbers = range(start, start + size)
            yield torch.stack([self._pixels(images[number], f"image {number}") for number in numbers])
            start += size

    def _pixels(self, image: object, name: str) -> Tensor:
        settings = self.manifest["preprocessing"]["image"]
        return image_tensor(check_image(image, name), settings["size"], settings["mean"], settings["std"])

    def _check_decoder(self, texts: int, name: str, prompt: int, ids: int) -> None:
        """Refuse what the decoder was not built for: texts at once, ids of a prompt, ids of a text."""
        profile = next(part["profile"] for part in self.manifest["parts"] if part["name"] == "decoder")
        _, _, (_, most_texts, most_new) = profile["input_ids"]
        most_ids = profile["past"][2][5] + 2  # the last id is written, not read, and the one before it is new
        for what, asked, least, most in (
            (name, texts, 1, most_texts),
            ("ids of a prompt", prompt, 1, most_new),
            ("ids of a text", ids, 1, most_ids),
        ):
            if not least <= asked <= most:
                raise InputError(
                    f"{asked} {what} were asked for", f"The artifact's decoder was built for {least} to {most}."
                )


def batch_sizes(count: int, least: int, most: int, what: str) -> list[int]:
    """How `count` requests are cut into batches of `least` to `most`, large ones first.

    Raises:
        InputError: there are none, or they cannot be cut so.
    """
    number = -(-count // most)
    if count < max(number * least, 1):
        raise InputError(
            f"there are {count} {what}",
            f"They are run in batches of {least} to {most}.",
            "Give more, or export again with a smaller MIN in --batch." if count else "Give at least one.",
        )
    sizes: list[int] = []
    for following in reversed(range(number)):
        sizes.append(min(most, count - sum(sizes) - following * least))
    return sizes


def _processor(manifest: Mapping[str, Any], folder: Path, given: Path | None, config: Config) -> Processor:
    """What turns texts into ids; its vocabulary is the one that the artifact was exported with, where it was with one.

    Raises:
        InputError: there is none, or another model's.
    """
    entry = manifest["preprocessing"]["text"]["vocabulary"]
    if given is not None and isinstance(config, ClipConfig):
        raise InputError(
            f"the vocabulary '{given}' does not apply to clip", "Its table comes with a package.", "Leave it out."
        )
    path = given
    if path is None and entry is not None and entry["file"] is not None:
        path = folder / entry["file"]
    if path is None and not isinstance(config, ClipConfig):
        raise InputError(
            f"there is no vocabulary beside '{manifest['artifact']}'",
            "No vocab.txt lay beside the checkpoint when it was exported, so texts cannot be turned into ids.",
            "Name the checkpoint's vocab.txt (vocabulary=..., or --vocab).",
        )
    processor = text_processor(config, path)
    if entry is not None and processor.sha256 != entry["sha256"]:
        raise InputError(
            f"the vocabulary '{path or 'of clip'}' is not the one that the artifact was exported with",
            "Its sha256 is another.",
            "Use the vocab.txt of the checkpoint." if path else "Install the versions in constraints.txt.",
        )
    return processor


def _images(images: Sequence[Any]) -> Sequence[Any]:
    if isinstance(images, Image.Image):
        raise InputError("the images are one image", "They have to be a list.", "Give [image].")
    return images


def _texts(texts: Sequence[str], what: str) -> Sequence[str]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"the {what} are no list of texts", fix=f"Give {what} as a list of str.")
    if not texts:
        raise InputError(f"there are no {what}", fix="Give at least one.")
    return texts


def _unpadded(ids: list[int], pad: int) -> list[int]:
    """The ids without what fills the row behind them."""
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids
