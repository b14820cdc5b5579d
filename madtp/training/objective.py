"""What training with MADTP needs beyond the model: initial weights, and the loss L_task + 0.1 * L_sim."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madtp.models.nlvr import NlvrModel
from madtp.models.retrieval import RetrievalModel
from madtp.tasks.ranking import image_tokens

SIMILARITY_WEIGHT = 0.1  # of L_sim, as published
POSITION_STD = 0.2  # patches have to know where they are before they can be told apart
WORD_POSITION_STD = 0.05
WORD_STD = 0.2
CLASS_STD = 0.02
SPACE_STD = 0.1
CONTRAST = 0.1  # what similarities are divided by before they compete; BLIP learns it from 0.07


@dataclass(frozen=True)
class NlvrBatch:
    """B pairs of images with M statements each.

    Attributes:
        image0, image1: [B, 3, S, S] float32, normalised.
        input_ids, attention_mask: [B * M, L] int64, the statements of the first pair first.
        labels: [B * M] int64, 1 where the statement is true.
    """

    image0: Tensor
    image1: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @property
    def statements(self) -> int:
        """M, statements a pair."""
        return len(self.labels) // len(self.image0)


def initialize(model: NlvrModel | RetrievalModel, generator: torch.Generator) -> None:
    """Fill every parameter with values to start training from; they depend on nothing but `generator`."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    vision, text = model.visual_encoder, model.text_encoder.embeddings
    for parameter, std in (
        (vision.cls_token, CLASS_STD),
        (vision.pos_embed, POSITION_STD),
        (text.word_embeddings.weight, WORD_STD),
        (text.position_embeddings.weight, WORD_POSITION_STD),
        (model.space_dict, SPACE_STD),
    ):
        nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std, generator=generator)


def similarity_loss(vision_aligned: Tensor, text_aligned: Tensor) -> Tensor:
    """L_sim, [] in [0, 2]: one minus the mean cosine similarity of the images' aligned features with the text's.

    Args:
        vision_aligned: [B, T, C], or of two images a text [2B, T, C], all first images, then all second ones.
        text_aligned: [B, T, C].
    """
    pairs = vision_aligned.unflatten(0, (-1, len(text_aligned)))
    return 1 - F.cosine_similarity(pairs, text_aligned[None], dim=-1).mean()


def nlvr_loss(
    model: NlvrModel, batch: NlvrBatch, temperature: Tensor | None, similarity_weight: float = SIMILARITY_WEIGHT
) -> Tensor:
    """L_task + `similarity_weight` * L_sim of a batch, [].

    Every image is encoded once, however many statements there are about it; with one a pair the logits are the model's.

    Args:
        temperature: [] float32, zero prunes nothing; None trains the dense model, which is not aligned: L_task alone.
    """
    collect = temperature is not None
    images, vision = model.visual_encoder(
        torch.cat([batch.image0, batch.image1]), model.space_dict, temperature, collect_aligned=collect
    )
    first, second = _per_statement(images, batch.statements).chunk(2)
    words, text = model.text_encoder(
        batch.input_ids, batch.attention_mask, (first, second), model.space_dict, temperature, collect_aligned=collect
    )
    task = F.cross_entropy(model.cls_head(words[:, 0]), batch.labels)
    if not isinstance(vision.aligned, Tensor) or not isinstance(text.aligned, Tensor):
        return task
    return task + similarity_weight * similarity_loss(_per_statement(vision.aligned, batch.statements), text.aligned)


@dataclass(frozen=True)
class RetrievalBatch:
    """B pairs of an image and a text.

    Attributes:
        image: [B, 3, S, S] float32, normalised.
        input_ids, attention_mask: [B, L] int64, first id [CLS].
        groups: [B] int64; a text fits every image of its own group and no other. There are at least two groups.
    """

    image: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    groups: Tensor


def retrieval_loss(
    model: RetrievalModel,
    batch: RetrievalBatch,
    temperature: Tensor | None,
    generator: torch.Generator,
    similarity_weight: float = SIMILARITY_WEIGHT,
    images_at_once: int | None = None,
) -> Tensor:
    """L_task + `similarity_weight` * L_sim of a batch, []; L_task is BLIP's: contrast of embeddings, and matching.

    Args:
        generator: draws the wrong partners that pairs are matched with, likelier the more similar they are.
        images_at_once: so many images does the vision encoder see together; None is all of them. The image that keeps
            the most tokens decides for these, so a model that is deployed on few at once is trained on few, too.
            Images with fewer tokens are filled up for the matching as in `rank`.
    """
    collect = temperature is not None
    vision = [
        model.visual_encoder(images, model.space_dict, temperature, collect_aligned=collect)
        for images in batch.image.split(images_at_once or len(batch.image))
    ]
    tokens = [image for encoded, _ in vision for image in encoded]
    image = image_tokens(tokens, torch.arange(len(tokens)))
    words, text = model.text_encoder(
        batch.input_ids, batch.attention_mask, (), model.space_dict, temperature, collect_aligned=collect
    )
    image_embed = F.normalize(model.vision_proj(image[:, 0]), dim=-1)
    text_embed = F.normalize(model.text_proj(words[:, 0]), dim=-1)
    similarity = image_embed @ text_embed.mT / CONTRAST
    same = batch.groups[:, None] == batch.groups
    contrast = (_contrast(similarity, same) + _contrast(similarity.mT, same)) / 2
    task = contrast + _matching_loss(model, batch, image, similarity.detach(), same, temperature, generator)
    vision_aligned = [state.aligned for _, state in vision if isinstance(state.aligned, Tensor)]
    if not vision_aligned or not isinstance(text.aligned, Tensor):
        return task
    return task + similarity_weight * similarity_loss(torch.cat(vision_aligned), text.aligned)


def _contrast(similarity: Tensor, same: Tensor) -> Tensor:
    """Cross entropy of every row of `similarity` [B, B] with its right columns, `same`, each as likely."""
    return F.cross_entropy(similarity, same / same.sum(dim=1, keepdim=True))


def _matching_loss(
    model: RetrievalModel,
    batch: RetrievalBatch,
    image: Tensor,
    similarity: Tensor,
    same: Tensor,
    temperature: Tensor | None,
    generator: torch.Generator,
) -> Tensor:
    """Cross entropy of 3B pairs: the right ones, every image with a wrong text, every text with a wrong image."""
    own = torch.arange(len(same))
    other_text, other_image = (
        torch.multinomial(scores.masked_fill(same, -torch.inf).softmax(dim=1), 1, generator=generator)[:, 0]
        for scores in (similarity, similarity.mT)
    )
    images, texts = torch.cat([own, own, other_image]), torch.cat([own, other_text, own])
    ids = batch.input_ids[texts]
    ids[:, 0] = model.config.enc_token_id
    shown = image.index_select(0, images)  # the gradient of image[images] adds up in any order
    words, _ = model.text_encoder(ids, batch.attention_mask[texts], (shown,), model.space_dict, temperature)
    labels = torch.zeros(len(images), dtype=torch.int64)
    labels[: len(own)] = 1
    return F.cross_entropy(model.itm_head(words[:, 0]), labels)


def _per_statement(x: Tensor, statements: int) -> Tensor:
    """[2B, ...] -> [2B * M, ...]: what belongs to an image, repeated for every statement about it."""
    return x.repeat_interleave(statements, dim=0)
