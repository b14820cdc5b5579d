"""What `export.session.session.Session` returns: the product of each task, with the tokens that it took."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from madtp.tasks.ranking import NOT_MATCHED

Tokens = dict[str, tuple[int, ...]]  # encoder ("vision", "text") -> tokens after each layer, class token included


@dataclass(frozen=True)
class Judgement:
    """Whether a sentence is true of two images.

    Attributes:
        probability: that it is true, 0 to 1.
        logits: of false and true.
        tokens: see `Tokens`; of both images, which keep equally many.
        batch: requests in its batch, this one included; with more than one the answer can depend on the others.
    """

    answer: bool
    probability: float
    logits: tuple[float, float]
    tokens: Tokens
    batch: int


@dataclass(frozen=True)
class Answer:
    """The answer to a question about an image.

    Attributes:
        how: "ranked" among candidates, or "generated".
        top: (candidate, score) of those that were read to the end, best first; none where it was generated. Scores are
            log probabilities of whole answers as `madtp.tasks.answers.RankedAnswers` gives them.
        ids: of the answer, [DEC] first, without padding.
    """

    text: str
    how: Literal["ranked", "generated"]
    top: list[tuple[str, float]]
    ids: list[int]
    tokens: Tokens
    batch: int


@dataclass(frozen=True)
class Caption:
    """A sentence about an image.

    Attributes:
        text: without the prompt.
        ids: [DEC] and the prompt first, without padding.
    """

    text: str
    ids: list[int]
    tokens: Tokens
    batch: int


Found = list[list[tuple[int, float]]]  # of each query (place in the list, score), best first


@dataclass(frozen=True)
class RankingBatch:
    """Batch sizes of a ranking: with 1 no score depends on what else is ranked, with more it can.

    Attributes:
        images, texts: images and texts encoded per batch.
        pairs: pairs of a row matched per batch (retrieval); clip matches none.
    """

    images: int
    texts: int
    pairs: int


@dataclass(frozen=True)
class Ranking:
    """Scores of I images and T texts.

    Attributes:
        sim: [I, T] float32, similarity of the embeddings.
        score_i2t: [I, T] ranks the texts of each image. In retrieval it is -100 outside the best `k_test` of its row,
            the similarity plus the matching logit within; in clip it is the similarity.
        score_t2i: [T, I] ranks the images of each text.
        tokens: "vision" [I, layers] and "text" [T, layers] int32, tokens after each layer; in retrieval also "match"
            [P, layers], of the P pairs in the order in which they were matched: row by row of score_i2t, then of
            score_t2i, the most similar first.
    """

    sim: Tensor
    score_i2t: Tensor
    score_t2i: Tensor
    tokens: dict[str, Tensor]
    batch: RankingBatch

    def top(self, k: int) -> tuple[Found, Found]:
        """The best k texts of each image and the best k images of each text; fewer where fewer were matched."""
        return _best(self.score_i2t, k), _best(self.score_t2i, k)


def _best(scores: Tensor, k: int) -> Found:
    best = scores.topk(min(k, scores.shape[1]), dim=1)
    return [
        [(place, value) for place, value in zip(places, values, strict=True) if value != NOT_MATCHED]
        for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
