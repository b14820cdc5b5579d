"""The retrieval evaluation: every image against every text by embedding, the best pairs once more by matching."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from madtp.errors import InputError
from madtp.models.config import RetrievalConfig
from madtp.models.retrieval import ImageOutput, MatchOutput, PackedImageOutput, TextOutput

NOT_MATCHED = -100.0  # the score of a pair that was not among the best by similarity
TEXT_BATCH = 256  # texts embedded together in the published evaluation
K_TEST = 256  # candidates matched in each row: of the published COCO evaluation; 128 for Flickr30k


class RetrievalParts(Protocol):
    """What ranking needs of a model: the three parts of `RetrievalModel`, in torch or behind an engine."""

    config: RetrievalConfig

    def encode_image(
        self, image: Tensor, temperature: Tensor | float | None = None
    ) -> ImageOutput | PackedImageOutput: ...

    def encode_text(
        self, input_ids: Tensor, attention_mask: Tensor, temperature: Tensor | float | None = None
    ) -> TextOutput: ...

    def match(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        image_tokens: Tensor,
        temperature: Tensor | float | None = None,
        image_lengths: Tensor | None = None,
    ) -> MatchOutput: ...


class RankingScores(NamedTuple):
    """I images and T texts: similarity [I, T] of the embeddings; score_i2t [I, T] ranks the texts of each image,
    score_t2i [T, I] the images of each text. A score is -100 outside the best `k_test` of its row."""

    sim: Tensor
    score_i2t: Tensor
    score_t2i: Tensor


class Embeddings(NamedTuple):
    """Of I images and T texts: similarity [I, T], and the tokens [n_i, C] of each image; whether the model takes images
    with different numbers of tokens in one batch."""

    sim: Tensor
    image_tokens: list[Tensor]
    packed: bool


class Candidates(NamedTuple):
    """The best K candidates of an image or text by similarity: their indices [K], and scores [K] float."""

    indices: Tensor
    scores: Tensor


def rank(
    model: RetrievalParts,
    images: Iterable[Tensor],
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    k_test: int,
    text_batch: int = TEXT_BATCH,
    match_batch: int | None = None,
    temperature: Tensor | float | None = None,
) -> RankingScores:
    """Rank texts for every image and images for every text, as the published evaluation does.

    The best `k_test` of each row by similarity are matched, in one batch a row; their score is the matching logit plus
    the similarity. How many tokens stay depends on the batch, so `images`, `text_batch`, `k_test` and `match_batch` are
    part of the result.

    Args:
        images: batches [b, 3, S, S] float, normalised; the caller chooses their sizes.
        input_ids: [T, L] int64, first id [CLS]; attention_mask: [T, L], 1 for words and 0 for padding.
        k_test: candidates of each row; all of them where there are fewer.

    Raises:
        InputError: no images or no texts, images of another size, ids that do not start with [CLS], a mask of another
            shape, `k_test`, `text_batch` or `match_batch` below 1.
    """
    sizes = {"k_test": k_test, "text_batch": text_batch, "match_batch": 1 if match_batch is None else match_batch}
    _check(model.config, input_ids, attention_mask, sizes)
    texts = zip(input_ids.split(text_batch), attention_mask.split(text_batch), strict=True)
    embeddings = embed(model, images, texts, temperature)
    matcher = Matcher(model, embeddings, input_ids, attention_mask, k_test, match_batch, temperature)
    rows, columns = embeddings.sim.shape
    score_i2t = scatter(map(matcher.texts_of, range(rows)), columns)
    return RankingScores(embeddings.sim, score_i2t, scatter(map(matcher.images_of, range(columns)), rows))


@torch.no_grad()
def embed(
    model: RetrievalParts,
    images: Iterable[Tensor],
    texts: Iterable[tuple[Tensor, Tensor]],
    temperature: Tensor | float | None = None,
) -> Embeddings:
    """Embed batches of images and batches of texts, which are ids and masks; see `rank`."""
    text_embed = torch.cat([model.encode_text(ids, mask, temperature).text_embed for ids, mask in texts])
    encoded = []
    for index, batch in enumerate(images):
        _check_images(model.config.image_size, index, batch)
        encoded.append(model.encode_image(batch, temperature))
    if not encoded:
        raise InputError("there are no images to rank", "The iterable of image batches is empty.", "Give at least one.")
    sim = torch.cat([output.image_embed for output in encoded]) @ text_embed.mT
    packed = isinstance(encoded[0], PackedImageOutput)
    return Embeddings(sim, [image for output in encoded for image in _own_tokens(output)], packed)


def _own_tokens(output: ImageOutput | PackedImageOutput) -> Iterable[Tensor]:
    """[n_i, C] of each image."""
    if isinstance(output, PackedImageOutput):
        counts = output.image_lengths.tolist()
        return (tokens[:count] for tokens, count in zip(output.image_tokens, counts, strict=True))
    return output.image_tokens


class Matcher:
    """Matches each image or text with its best candidates.

    Args:
        match_batch: pairs of a row that are matched together; None is all of them, as published. Smaller batches may
            keep other tokens, and so give other scores. 1 matches each pair on its own, without filling of its image
            (see `image_tokens`): its score depends on nothing else.
    """

    def __init__(
        self,
        model: RetrievalParts,
        embeddings: Embeddings,
        input_ids: Tensor,
        attention_mask: Tensor,
        k_test: int,
        match_batch: int | None = None,
        temperature: Tensor | float | None = None,
    ) -> None:
        self._model, self._embeddings, self._mask = model, embeddings, attention_mask
        self._k_test, self._match_batch, self._temperature = k_test, match_batch, temperature
        self._pair_ids = input_ids.clone()
        self._pair_ids[:, 0] = model.config.enc_token_id

    def texts_of(self, image: int) -> Candidates:
        """The best texts of an image."""
        values, texts = self._best(self._embeddings.sim[image])
        return Candidates(texts, values + self._logits(texts, torch.full_like(texts, image)))

    def images_of(self, text: int) -> Candidates:
        """The best images of a text."""
        values, images = self._best(self._embeddings.sim[:, text])
        return Candidates(images, values + self._logits(torch.full_like(images, text), images))

    def _best(self, row: Tensor) -> tuple[Tensor, Tensor]:
        values, indices = row.topk(min(self._k_test, len(row)))
        return values, indices

    @torch.no_grad()
    def _logits(self, texts: Tensor, images: Tensor) -> Tensor:
        """[K]: the matching logit of each pair of a text and an image, both [K] indices."""
        size = self._match_batch or len(texts)
        logits = []
        for words, shown in zip(texts.split(size), images.split(size), strict=True):
            seen, lengths = self._shown(shown)
            output = self._model.match(self._pair_ids[words], self._mask[words], seen, self._temperature, lengths)
            logits.append(output.itm_logits[:, 1])
        return torch.cat(logits)

    def _shown(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [K, n, C] of images [K], and in the packed layout how many each has."""
        tokens = self._embeddings.image_tokens
        if not self._embeddings.packed:
            return pair_tokens(tokens, images, self._match_batch), None
        own = [tokens[index] for index in images.tolist()]
        return pad_sequence(own, batch_first=True), torch.tensor([len(image) for image in own])


def scatter(rows: Iterable[Candidates], columns: int) -> Tensor:
    """Scores [rows, columns]: of the candidates of each row, and -100 for the others."""
    scores = []
    for indices, values in rows:
        scores.append(values.new_full((columns,), NOT_MATCHED))
        scores[-1][indices] = values
    return torch.stack(scores)


def pair_tokens(tokens: Sequence[Tensor], wanted: Tensor, match_batch: int | None) -> Tensor:
    """Image tokens [K, n, C] of the pairs that one call matches, K being `match_batch` or less.

    With a `match_batch` of 1 they are the image's own; otherwise `image_tokens` fills them as published.
    """
    return tokens[int(wanted)][None] if match_batch == 1 else image_tokens(tokens, wanted)


def image_tokens(tokens: Sequence[Tensor], wanted: Tensor) -> Tensor:
    """Tokens [K, n, C] of the images `wanted` [K], n being the longest of *all* of `tokens` ([n_i, C] each).

    Images of different batches keep different numbers of tokens. In the recorded evaluation a shorter one is filled up
    with copies of its own class token, and a text attends to the copies as to any other token.
    """
    longest = max(map(len, tokens))
    filled = {
        index: torch.cat([tokens[index], tokens[index][:1].expand(longest - len(tokens[index]), -1)])
        for index in set(wanted.tolist())
    }
    return torch.stack([filled[index] for index in wanted.tolist()])


def _check_images(size: int, index: int, batch: Tensor) -> None:
    if batch.dim() != 4 or not len(batch) or batch.shape[1:] != (3, size, size):
        raise InputError(
            f"batch {index} of the images is {list(batch.shape)}",
            f"It has to be [images, 3, {size}, {size}], with at least one image.",
        )


def _check(config: RetrievalConfig, input_ids: Tensor, attention_mask: Tensor, at_least_one: dict[str, int]) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{name} is {value}", "Nothing can be ranked with it.", f"Set {name} to 1 or more.")
    if input_ids.dim() != 2 or not input_ids.numel():
        raise InputError(f"input_ids have the shape {list(input_ids.shape)}", "They have to be [texts, length].")
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"the attention mask is {list(attention_mask.shape)}, the ids are {list(input_ids.shape)}",
            "Each id needs a 1 (word) or a 0 (padding).",
        )
    others = (input_ids[:, 0] != config.cls_token_id).nonzero()
    if len(others):
        raise InputError(
            f"the first id of text {int(others[0])} is not {config.cls_token_id}",
            "Texts are embedded with [CLS] first; ranking puts [ENC] there itself, for the matching.",
            "Give the ids with [CLS] first, or correct 'cls_token_id' in the configuration.",
        )
