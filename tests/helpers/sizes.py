"""Sizes of the published models, and models of those sizes with generated weights."""

from typing import Any

import torch

from madtp.models.config import CaptionConfig, ClipConfig, NlvrConfig, RetrievalConfig, VqaConfig
from madtp.models.nlvr import NlvrModel
from tests.helpers.generate import generated_state

TEMPERATURE = 0.4
_BLIP: dict[str, Any] = {
    "patch_size": 16,
    "vit_dim": 768,
    "vit_depth": 12,
    "vit_heads": 12,
    "vit_mlp": 3072,
    "text_hidden": 768,
    "text_layers": 12,
    "text_heads": 12,
    "text_inter": 3072,
    "vocab_size": 30524,
    "max_position": 512,
    "sd_num": 100,
    "sd_dim": 768,
}
BASE = NlvrConfig(image_size=384, **_BLIP)
VQA = VqaConfig(image_size=480, **_BLIP)
CAPTION = CaptionConfig(image_size=384, **_BLIP)
RETRIEVAL = RetrievalConfig(image_size=384, **_BLIP)
CLIP = ClipConfig(
    embed_dim=768,
    image_size=336,
    patch_size=14,
    vision_layers=24,
    vision_width=1024,
    vision_heads=16,
    context_length=77,
    vocab_size=49408,
    text_width=768,
    text_heads=12,
    text_layers=12,
    sd_num=100,
    sd_dim=768,
)


def generated_model() -> NlvrModel:
    """BLIP-NLVR of base size with generated weights, seed 0."""
    with torch.device("meta"):
        model = NlvrModel(BASE, TEMPERATURE)
    model.load_state_dict(generated_state(model, seed=0), assign=True)
    return model.eval()
