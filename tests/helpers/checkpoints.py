"""Checkpoints of tiny models with generated weights, one configuration per task."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from madtp import NlvrConfig, NlvrModel
from madtp.checkpoint.loading import MODELS
from madtp.models.config import CONFIGS
from madtp.models.decoder import TextDecoder
from tests.helpers.generate import generated_state

TINY = {
    "image_size": 32,
    "patch_size": 16,
    "vit_dim": 16,
    "vit_depth": 1,
    "vit_heads": 2,
    "vit_mlp": 32,
    "text_hidden": 16,
    "text_layers": 2,
    "text_heads": 2,
    "text_inter": 32,
    "vocab_size": 300,
    "max_position": 40,
    "sd_num": 8,
    "sd_dim": 16,
    "merge_from": 1,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 298,
    "enc_token_id": 299,
}
# The other tasks: one layer an encoder, and 17 image tokens. CLIP has the vocabulary of its tokenizer, or no texts.
BLIP = {name: size for name, size in TINY.items() if name != "merge_from"} | {"patch_size": 8, "text_layers": 1}
TASK_SIZES = {
    "vqa": BLIP,
    "caption": BLIP,
    "retrieval": BLIP | {"embed_dim": 8},
    "clip": {
        "embed_dim": 8,
        "image_size": 32,
        "patch_size": 8,
        "vision_layers": 1,
        "vision_width": 16,
        "vision_heads": 2,
        "context_length": 20,
        "vocab_size": 49408,
        "text_width": 16,
        "text_heads": 2,
        "text_layers": 1,
        "sd_num": 8,
        "sd_dim": 16,
    },
}
TAU = 2.0


def state_of(config: Mapping[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Generated weights of the model that `config` describes."""
    with torch.device("meta"):
        model = NlvrModel(NlvrConfig(**config))
    return generated_state(model, seed)


def save_checkpoint(path: Path, state: Mapping[str, Any], **entries: Any) -> Path:
    """A checkpoint of the tiny model; tensors and entries that are None are left out."""
    tensors = {key: value for key, value in state.items() if value is not None}
    content = {"model": tensors, "epoch": 3, "temperature": TAU, "config": TINY, **entries}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path


def write_task_checkpoint(task: str, path: Path, seed: int = 0) -> Path:
    """A tiny checkpoint of a task, with generated weights."""
    with torch.device("meta"):
        model = MODELS[task](CONFIGS[task](**TASK_SIZES[task]))
    state = generated_state(model, seed)
    for copy, original in TextDecoder.TIED:
        if f"text_decoder.{copy}" in state:
            state[f"text_decoder.{copy}"] = state[f"text_decoder.{original}"]
    torch.save({"model": state, "epoch": 3, "temperature": TAU, "config": TASK_SIZES[task]}, path)
    return path
