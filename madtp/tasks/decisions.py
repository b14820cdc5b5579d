"""What outputs decide: the answers, whatever the numbers behind them."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from madtp.tasks.requests import Outputs

DECIDED_BY_LARGEST = ("logits", "itm_logits", "sim")  # outputs whose largest column is the answer
EMBEDDINGS = ("image_embed", "text_embed")
DECIDED_AS_WRITTEN = ("answer_ids", "caption_ids")  # generated texts, which are the answer


def decisions(outputs: Outputs, pad_id: int) -> dict[str, list[Hashable]]:
    """The answer of every request of a batch, by the output that gives it; scores of a single column decide nothing.

    Args:
        pad_id: what fills the rows of shorter generated texts.
    """
    largest = {name: outputs[name] for name in DECIDED_BY_LARGEST if name in outputs and outputs[name].shape[1] > 1}
    written = {name: outputs[name] for name in DECIDED_AS_WRITTEN if name in outputs}
    return {
        **{name: list(scores.argmax(dim=1).tolist()) for name, scores in largest.items()},
        **{name: list(map(tuple, strip_padding(texts, pad_id))) for name, texts in written.items()},
    }


def best_matches(embedded: Sequence[Outputs]) -> dict[str, list[Hashable]]:
    """Each image's best text and each text's best image among those of several batches, by their embeddings.

    They say more than ranks among those of one batch.
    """
    images, texts = (torch.cat([outputs[name] for outputs in embedded]).float() for name in EMBEDDINGS)
    similarity = images @ texts.mT
    return {"text of image": similarity.argmax(dim=1).tolist(), "image of text": similarity.argmax(dim=0).tolist()}


def texts_equal(expected: Tensor, actual: Tensor, pad_id: int) -> Tensor:
    """[B]: which generated texts are the same; how far a batch's longest text pads the others does not matter."""
    pairs = zip(strip_padding(expected, pad_id), strip_padding(actual, pad_id), strict=True)
    return torch.tensor([left == right for left, right in pairs])


def strip_padding(texts: Tensor, pad_id: int) -> list[list[int]]:
    """Ids of every text [B, L] without the padding behind them."""
    lengths = ((texts != pad_id) * torch.arange(1, texts.shape[1] + 1)).amax(dim=1).tolist()
    return [ids[:length] for ids, length in zip(texts.tolist(), lengths, strict=True)]
