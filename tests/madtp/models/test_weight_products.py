"""Weight products: every matrix that multiplies activations has a place, under the checkpoint's names."""

from collections import Counter

import pytest
import torch

from madtp.checkpoint.loading import MODELS
from madtp.models.parts import parts_of
from madtp.models.weight_products import GROUPS, part_weight_names, weight_products
from tests.helpers import sizes

CONFIGS = {
    "nlvr": sizes.BASE,
    "vqa": sizes.VQA,
    "caption": sizes.CAPTION,
    "retrieval": sizes.RETRIEVAL,
    "clip": sizes.CLIP,
}
EMBEDDINGS = ("embeddings.weight", "embedding.weight", "embedding", "cls_token", "pos_embed")


def model_of(task: str) -> torch.nn.Module:
    with torch.device("meta"):
        return MODELS[task](CONFIGS[task])


@pytest.mark.parametrize("task", CONFIGS)
def test_every_matrix_is_a_product_or_an_embedding(task: str) -> None:
    model = model_of(task)
    matrices = {name for name, weight in model.named_parameters() if weight.dim() >= 2}
    assert all(name.endswith(EMBEDDINGS) for name in matrices - weight_products(model).keys())


@pytest.mark.parametrize("task", CONFIGS)
def test_every_layer_has_the_same_groups(task: str) -> None:
    layers: dict[tuple[str, int], Counter[str]] = {}
    for product in weight_products(model_of(task)).values():
        assert product.group in GROUPS
        if product.layer is not None:
            layers.setdefault((product.encoder, product.layer), Counter())[product.group] += 1
    for (encoder, _), groups in layers.items():
        assert groups.keys() == layers[encoder, 0].keys()
        assert {"qkv", "projection", "fc1", "fc2"} <= groups.keys()


@pytest.mark.parametrize("task", CONFIGS)
def test_parts_know_the_products_by_names_of_their_own(task: str) -> None:
    model = model_of(task)
    products, named = weight_products(model), dict(model.named_parameters(remove_duplicate=False))
    for part in parts_of(model).values():
        own = dict(part.module.named_parameters(remove_duplicate=False))
        names = part_weight_names(model, part)
        assert names
        assert all(full in products and own[local] is named[full] for local, full in names.items())


def test_patterns_name_places() -> None:
    product = weight_products(model_of("nlvr"))["visual_encoder.blocks.3.attn.qkv.weight"]
    assert product.place == "vision.3.qkv"
    assert [pattern for pattern in ("vision.*.qkv", "vision.3.*", "text.*") if product.matches(pattern)] == [
        "vision.*.qkv",
        "vision.3.*",
    ]
